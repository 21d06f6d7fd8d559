"""The `packforcing` command."""
