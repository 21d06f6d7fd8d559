"""Prompts to context, outside ComfyUI."""
