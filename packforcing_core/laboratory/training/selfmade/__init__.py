"""A compressor from a checkpoint alone: the model makes its own clips, and the compressor learns on them."""
