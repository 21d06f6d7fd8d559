"""Checkpoint files: which family they come from, their keys, reading and checking them."""
