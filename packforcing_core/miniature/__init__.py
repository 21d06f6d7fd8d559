"""A Wan small enough for any CPU, trained on the toy world: its weights lie in the package."""
