"""Benchmarks that hold the targets of speed: ``python -m benchmarks.bench`` prints them as ratios in one table."""
