"""A miniature Wan for any CPU, trained on the toy world; its weights are part of the package."""
