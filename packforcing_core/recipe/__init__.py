"""What decides a render, before anything runs: its recipe, its start, and its planned sizes."""
