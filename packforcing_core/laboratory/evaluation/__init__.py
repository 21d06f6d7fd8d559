"""Measures for any video, and a toy world whose content can be verified exactly."""
