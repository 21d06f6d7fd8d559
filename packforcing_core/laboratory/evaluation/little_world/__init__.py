"""Synthetic clips of coloured shapes, their prompts, and a checker that reads every fact back from the pixels."""
