"""A render from its recipe to the file: recording blocks, and writing the video."""
