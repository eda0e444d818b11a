"""Dense against sparse, and run against run: ratios, taxes, sizes, loads, verdicts (METRICS sections 1, 7, 8, 9)."""
