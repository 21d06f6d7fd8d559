"""Prompts and their embeddings, outside ComfyUI."""
