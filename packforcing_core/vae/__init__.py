"""The Wan2.1 VAE: pixels to latents and back, streamed one latent frame at a time."""
