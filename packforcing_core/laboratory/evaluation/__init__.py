"""What a video is worth: metrics of any video, and a little world whose facts can be read back exactly."""
