"""StackedBars as SVG: one horizontal bar per model on one scale from zero, and a table that is legend and data."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from moeprof.analysis.report.document import StackedBars
from moeprof.core.units import NOT_AVAILABLE, percent, short
from moeprof.render.html.charts.svg import axis_title, element, linear_axis, number

WIDTH, LEFT, RIGHT = 560.0, 2.0, 14.0
BAR, PITCH = 26.0, 62.0
NUM_PART_COLOURS = 13
LABEL_FROM, LABEL_PITCH = 62.0, 7.5  # a part at least this wide, and as wide as its digits, carries its value


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRow:
    """One line of the legend table: colour class, name, and (value, share) text per bar."""

    colour: str
    name: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarsDrawing:
    """Drawn bars (None when nothing was measured), their legend table and the totals as text."""

    picture: Markup | None
    rows: tuple[PartRow, ...]
    totals: tuple[str, ...]


def draw_bars(bars: StackedBars) -> BarsDrawing:
    """The bars as SVG. Unknown parts are left out of the bar and shown as n/a in the table."""
    totals = [sum(_known(values[i]) for _, values in bars.parts) for i in range(len(bars.bars))]
    known = [any(values[i] is not None for _, values in bars.parts) for i in range(len(bars.bars))]
    rows = tuple(
        PartRow(
            colour=f"p{bars.colour_of(n) % NUM_PART_COLOURS}",
            name=name,
            cells=tuple(_cell(value, total, bars.unit) for value, total in zip(values, totals, strict=True)),
        )
        for n, (name, values) in enumerate(bars.parts)
    )
    texts = tuple(short(t, bars.unit) if k else NOT_AVAILABLE for t, k in zip(totals, known, strict=True))
    picture = _picture(bars, totals, texts) if any(known) and max(totals) > 0 else None
    return BarsDrawing(picture=picture, rows=rows, totals=texts)


def _known(value: float | None) -> float:
    """For drawing only: an unknown part has no width."""
    return 0.0 if value is None else max(value, 0.0)


def _cell(value: float | None, total: float, unit: str) -> tuple[str, str]:
    if value is None:
        return NOT_AVAILABLE, ""
    return short(value, unit), percent(value / total) if total > 0 else ""


def _picture(bars: StackedBars, totals: list[float], texts: tuple[str, ...]) -> Markup:
    height = PITCH * len(bars.bars) + 40
    axis = linear_axis([0.0, *totals], bars.unit, LEFT, WIDTH - RIGHT, about=5, round_ends=False)
    bottom = height - 40
    grid = "".join(f"M{number(axis.place(v))} 4V{number(bottom)}" for v, _ in axis.ticks)
    parts = [element("path", class_="grid", d=grid)]
    for i, name in enumerate(bars.bars):
        top = PITCH * i + 24
        parts.append(element("text", name, x=LEFT, y=top - 7, class_="bar-name"))
        parts.append(element("text", texts[i], x=WIDTH - RIGHT, y=top - 7, class_="bar-total e"))
        start = 0.0
        for n, (part, values) in enumerate(bars.parts):
            width = _known(values[i])
            if width > 0:
                tip = f"{name}\n{part}: {short(width, bars.unit)} ({percent(width / totals[i])})"
                ends = axis.place(start), axis.place(start + width)
                parts.append(_segment(*ends, top, bars.colour_of(n), tip, width, bars.unit))
            start += width
    parts += [
        element("text", text, x=axis.place(v), y=bottom + 16, class_="c" if v else None) for v, text in axis.ticks
    ]
    unit = axis_title("", axis.unit).removeprefix(", ")
    if unit:
        parts.append(element("text", unit, x=WIDTH - RIGHT, y=height - 4, class_="axis-title e"))
    label = f"{bars.title}: " + ", ".join(f"{n} {t}" for n, t in zip(bars.bars, texts, strict=True))
    box = f"0 0 {number(WIDTH)} {number(height)}"
    return element("svg", Markup("").join(parts), class_="chart bars", viewBox=box, role="img", aria_label=label)


def _segment(start: float, end: float, top: float, n: int, tip: str, value: float, unit: str) -> Markup:
    colour = f"part p{n % NUM_PART_COLOURS}"
    rect = element(
        "rect", element("title", tip), x=start, y=top, width=max(end - start, 0.4), height=BAR, class_=colour
    )
    label = short(value, unit)
    if end - start < max(LABEL_FROM, LABEL_PITCH * len(label)):
        return rect
    return rect + element("text", label, x=(start + end) / 2, y=top + 17.5, class_="c in-bar")
