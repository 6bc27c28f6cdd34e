"""Virtual hospitals on one machine."""
