"""Triton kernels for GPUs, one a file, each with the same in plain PyTorch beside it."""
