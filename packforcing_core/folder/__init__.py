"""A render's folder on disk: what a resume needs after any crash, in files that are never partial."""
