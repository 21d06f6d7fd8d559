"""Synthetic clips of coloured shapes, their prompts, and a checker that reads the content back from the pixels."""
