"""Kernels of our own on a CPU, compiled on the machine where a compiler is there; without one torch's stay in use."""
