"""Kernels of our own and the choice between them and those of torch; each agrees with a plain torch form (tests)."""
