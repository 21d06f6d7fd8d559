"""Fused operations: plain PyTorch versions, and Triton kernels for NVIDIA GPUs."""
