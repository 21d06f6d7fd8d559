"""A Wan small enough for any CPU, trained on the little world: its weights lie in the package."""
