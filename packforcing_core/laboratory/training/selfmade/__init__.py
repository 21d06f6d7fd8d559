"""A compressor from a checkpoint alone: the model generates its own clips, and the compressor is trained on them."""
