"""Triton kernels for a GPU and their launcher."""
