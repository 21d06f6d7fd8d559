"""What decides a render, before anything runs: its recipe, what it begins from, and what it will take."""
