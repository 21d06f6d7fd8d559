"""Measures for any video, and a toy world whose content can be checked exactly."""
