"""Small bar charts as text, in unicode eighths or in ASCII."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeprof.core.trace import IntArray

EIGHTHS = " ▁▂▃▄▅▆▇█"
ASCII_LEVELS = " .:-=+*%#"
HISTOGRAM_BINS = 30


def bars(counts: Sequence[int], *, width: int, ascii_only: bool) -> str:
    """One row of bars, at most ``width`` wide; neighbours are averaged where there are more counts than columns.

    The tallest bar is full; anything above 0 shows at least the lowest bar.
    """
    levels = ASCII_LEVELS if ascii_only else EIGHTHS
    values = np.array([part.mean() for part in np.array_split(np.asarray(counts), min(width, len(counts)))])
    heights = np.ceil(values / max(values.max(), 1e-9) * (len(levels) - 1)).astype(int)
    return "".join(levels[height] for height in heights)


def length_histogram(tokens: IntArray) -> tuple[tuple[int, ...], int, int]:
    """Counts in logarithmic bins, with the shortest and longest length."""
    low, high = int(tokens.min()), int(tokens.max())
    if low == high:
        return (len(tokens),), low, high
    counts = np.histogram(np.log(np.maximum(tokens, 1)), bins=HISTOGRAM_BINS)[0]
    return tuple(counts.tolist()), low, high
