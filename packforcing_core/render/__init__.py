"""A render from its recipe to the file: the blocks that are recorded, and the video that is made of them."""
