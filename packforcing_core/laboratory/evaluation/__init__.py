"""What a video is worth: metrics of any video, and a toy world whose facts can be read back exactly."""
