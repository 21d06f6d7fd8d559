"""Checkpoint files: recognising their family, mapping their keys, reading and checking them."""
