"""Kernels of our own for attention and experts, and the trial that chooses among all candidates."""
