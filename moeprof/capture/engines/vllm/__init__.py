"""vLLM in the worker's own process, under an interpreter of its own: its scheduler and kernels, stepped by our loop."""
