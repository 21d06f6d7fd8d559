"""Operations that PyTorch needs several passes over memory for: versions in plain PyTorch, and Triton kernels for
NVIDIA GPUs.
"""
