"""Operations that PyTorch needs several passes over memory for: plain twins, and Triton kernels for NVIDIA GPUs."""
