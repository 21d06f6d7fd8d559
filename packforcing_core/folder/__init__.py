"""A render's folder on disk: what it takes to resume after any crash, in files that are never partial."""
