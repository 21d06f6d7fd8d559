"""PackForcing: block-by-block video from Wan2.1 models in constant memory. Imports no ComfyUI."""

__version__ = "0.1.0"
