"""Fewer points, the same picture. Everything here works on positions in user units, after the axes.

Lines: first the extremes per column are kept (first, last, lowest, highest: what a rasteriser would touch), then
points nearer than a third of a unit to the line through their neighbours are dropped (Douglas and Peucker 1973).
Clouds: dots that would lie on each other are drawn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from moeprof.render.html.charts.svg import number

Point = tuple[float, float]
TOLERANCE = 0.3
MAX_DOTS = 1200


def as_steps(points: Sequence[Point]) -> list[Point]:
    """A staircase: each value holds until the next x."""
    if not points:
        return []
    corners = [points[0]]
    for (_, y_before), (x, y) in pairwise(points):
        corners += [(x, y_before), (x, y)]
    return corners


def extremes_per_column(points: Sequence[Point], width: float = 0.5) -> list[Point]:
    """First, lowest, highest and last point of every column of ``width``; x must not fall."""
    kept: list[Point] = []
    column: list[Point] = []
    for point in points:
        if column and int(point[0] / width) != int(column[0][0] / width):
            kept += _extremes(column)
            column = []
        column.append(point)
    return kept + _extremes(column)


def _extremes(column: Sequence[Point]) -> list[Point]:
    if len(column) <= 4:
        return list(column)
    heights = [y for _, y in column]
    index = sorted({0, heights.index(min(heights)), heights.index(max(heights)), len(column) - 1})
    return [column[i] for i in index]


def simplify(points: Sequence[Point], tolerance: float = TOLERANCE) -> list[Point]:
    """Drop points that lie within ``tolerance`` of the line that is drawn without them."""
    if len(points) < 3:
        return list(points)
    xy = np.array(points, dtype=np.float64)
    keep = np.zeros(len(xy), dtype=bool)
    keep[[0, -1]] = True
    stack = [(0, len(xy) - 1)]
    while stack:
        first, last = stack.pop()
        if last - first < 2:
            continue
        distance = _distances(xy[first + 1 : last], xy[first], xy[last])
        worst = int(distance.argmax())
        if distance[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            stack += [(first, middle), (middle, last)]
    return [point for point, kept in zip(points, keep, strict=True) if kept]


def _distances(xy: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Distance of each point to the segment."""
    along = end - start
    length = float(along @ along)
    share = np.clip((xy - start) @ along / length, 0, 1) if length else np.zeros(len(xy))
    return np.asarray(np.hypot(*(xy - start - share[:, None] * along).T))


def line_path(points: Sequence[Point]) -> str:
    """The ``d`` of a line, thinned; empty without points."""
    rising = all(a[0] <= b[0] for a, b in pairwise(points))
    kept = simplify(extremes_per_column(points) if rising else points)
    if len(kept) == 1:
        return f"M{number(kept[0][0])} {number(kept[0][1])}h0"
    return "M" + " ".join(f"{number(x)} {number(y)}" for x, y in kept) if kept else ""


def distinct_dots(points: Sequence[Point], limit: int = MAX_DOTS) -> list[Point]:
    """Dots that cover each other drawn once; cells grow until at most ``limit`` remain."""
    cell = 1.0
    while True:
        dots = {(int(x // cell), int(y // cell)): (x, y) for x, y in reversed(points)}
        if len(dots) <= limit:
            return sorted(dots.values())
        cell *= 1.4


def dots_path(points: Sequence[Point]) -> str:
    """The ``d`` of a cloud: zero-length strokes, which round caps draw as dots."""
    return "".join(f"M{number(x)} {number(y)}h0" for x, y in distinct_dots(points))
