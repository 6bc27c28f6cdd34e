"""A hospital: its data, its local training, and the only door out."""
