"""PackForcing: block-by-block video from Wan2.1 models in VRAM that does not grow with length. Imports no ComfyUI."""

__version__ = "0.1.0"
