"""Our own continuous batching over a paged cache: made for captured decode steps and for running ahead."""
