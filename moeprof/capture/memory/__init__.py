"""Will it fit: forecast, key-value space, what was measured, out of memory explained."""
