"""Training for the miniature and for Wan2.1-1.3B with the same code: stages, and the loop that runs them."""
