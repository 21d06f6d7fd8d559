"""A render's folder on disk: what it takes to go on after any crash, written so that no crash can tear it."""
