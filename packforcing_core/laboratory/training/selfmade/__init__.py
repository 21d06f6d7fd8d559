"""Trains a compressor from a checkpoint alone: the model generates its own training clips."""
