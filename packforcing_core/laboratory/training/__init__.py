"""Training, the same code for the miniature and for Wan2.1-1.3B: stages, and the loop that runs them."""
