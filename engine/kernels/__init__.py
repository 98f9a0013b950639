"""Triton kernels for GPUs, one a file, each beside a plain PyTorch function that does the same."""
