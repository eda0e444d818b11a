"""Our engine of continuous batching: a paged cache, steps captured once, tokens that stay on the device."""
