"""The dual-branch compressor: a committed block of latent frames to the few tokens that stand for it later."""
