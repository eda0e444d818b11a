"""Batches of requests of equal length, padded to the longest: for models that no paged cache fits."""
