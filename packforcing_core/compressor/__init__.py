"""The dual-branch compressor: turns a committed block of latent frames into a few tokens for the KV cache."""
