"""Names beside points of a chart, where there is room: a name that would lie on another one is left out.

The pointer still shows the values, and a chart's figures stand in a table elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from moeprof.render.html.charts.points import Point
from moeprof.render.html.charts.svg import element

CHARACTER, HEIGHT = 8.0, 15.0  # room of a label, enough for the larger type of narrow screens
AWAY = 7.0  # from its point
Box = tuple[float, float, float, float]


def place_labels(labelled: Sequence[tuple[str, str, Point]], width: float) -> Markup:
    """Labels as SVG text.

    Args:
        labelled: (colour class, text, position of the point) in order of importance.
        width: of the picture.
    """
    taken: list[Box] = [(x - 3, y - 3, x + 3, y + 3) for _, _, (x, y) in labelled]
    parts = []
    for colour, text, point in labelled:
        free = next((spot for spot in _spots(text, point) if _is_free(spot[0], taken, width)), None)
        if text and free is not None:
            box, anchor = free
            taken.append(box)
            x = box[2] if anchor == "e" else box[0]
            parts.append(element("text", text, x=x, y=box[3] - 4, class_=f"point-label {colour} {anchor}".rstrip()))
    return Markup("").join(parts)


def _spots(text: str, point: Point) -> list[tuple[Box, str]]:
    """Right above, left above, right below, left below: the box, and which end of the text it hangs on."""
    x, y = point
    long = CHARACTER * len(text)
    rights = [(x + AWAY, top, x + AWAY + long, top + HEIGHT) for top in (y - HEIGHT - 2, y + 2)]
    lefts = [(x - AWAY - long, top, x - AWAY, top + HEIGHT) for top in (y - HEIGHT - 2, y + 2)]
    return [(rights[0], ""), (lefts[0], "e"), (rights[1], ""), (lefts[1], "e")]


def _is_free(box: Box, taken: Sequence[Box], width: float) -> bool:
    if box[0] < 0 or box[2] > width:
        return False
    return all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for b in taken)
