"""From noise to latent blocks: schedule, noise, and the rollout."""
