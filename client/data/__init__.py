"""A site's data: its manifest, reading and checking the cases, the cache, and what is random about training."""
