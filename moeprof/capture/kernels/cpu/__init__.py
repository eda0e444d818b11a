"""C++ kernels for a CPU, built on the machine that runs them."""
