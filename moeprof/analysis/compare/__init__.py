"""What may be compared with what, and its ratios: models, runs, pairs, lanes."""
