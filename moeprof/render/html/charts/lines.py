"""A Chart as SVG: lines, staircases, dashed fits, clouds and bands over two axes.

The picture stands without a script. The script only reads positions back from the paths and shows values under the
pointer, so no number is written twice into the page.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moeprof.analysis.report.document import Chart, Series
from moeprof.render.html.charts.labels import place_labels
from moeprof.render.html.charts.points import Point, as_steps, dots_path, line_path
from moeprof.render.html.charts.svg import Axis, axis_title, element, linear_axis, log_axis, number

WIDTH, HEIGHT = 560.0, 290.0
TOP, RIGHT, BOTTOM = 30.0, 18.0, 48.0
CHARACTER = 8.5  # room per character of a tick, enough for the larger type of narrow screens
NUM_MODEL_COLOURS = 7
FEW_DOTS = 100  # so few are drawn larger
FEW_MARKS = 16  # a line through so few points shows where they are


@dataclass(frozen=True, slots=True, kw_only=True)
class LegendEntry:
    """One entry of a legend: the colour class, the style of the mark and the text."""

    colour: str
    style: str
    name: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A drawn chart: the picture (None when there is nothing to draw) and its legend."""

    picture: Markup | None
    legend: tuple[LegendEntry, ...]


def colour_of(name: str, models: Sequence[str], others: list[str]) -> str:
    """The colour class of a series: its model's, where its name starts with one; else a free one.

    Args:
        name: of the series.
        models: model names in the document's order, which is the order of colours.
        others: names without a model that already have a colour; extended when a new one comes.
    """
    mine = [m for m in models if name.startswith(m) and not name[len(m) : len(m) + 1].isalnum()]
    if mine:
        return f"m{models.index(max(mine, key=len)) % NUM_MODEL_COLOURS}"
    if name not in others:
        others.append(name)
    return f"m{(len(models) + others.index(name)) % NUM_MODEL_COLOURS}"


def draw_chart(chart: Chart, models: Sequence[str]) -> Drawing:
    """The chart as SVG with its legend; series of a model take the model's colour."""
    others: list[str] = []
    own = [m for m in models if chart.name.endswith(f"-{m}")]  # a chart of one model: all its series are that model's
    colours = [colour_of(s.name if not own else max(own, key=len), models, others) for s in chart.series]
    kept = [_finite(s, chart) for s in chart.series]
    legend = tuple(
        LegendEntry(colour=c, style=s.style, name=s.name, note=_note(s, k, chart))
        for s, c, k in zip(chart.series, colours, kept, strict=True)
    )
    if not any(points for points, _ in kept):
        return Drawing(picture=None, legend=legend)
    x_axis, y_axis = _axes(chart, kept)
    drawn = zip(chart.series, colours, kept, strict=True)
    marks = sorted(drawn, key=lambda item: item[0].style != "points")  # lines lie over clouds
    body = [_grid(chart, x_axis, y_axis)]
    body += [_series(s, colour, points, bands, x_axis, y_axis) for s, colour, (points, bands) in marks]
    labelled = [
        (colour, label, (x_axis.place(x), y_axis.place(y)))
        for s, colour in zip(chart.series, colours, strict=True)
        for x, y, label in zip(s.x, s.y, s.labels, strict=False)
        if _fits(x, chart.log_x) and _fits(y, chart.log_y)
    ]
    body.append(place_labels(labelled, WIDTH))
    axes = json.dumps([x_axis.for_script(), y_axis.for_script()], ensure_ascii=True, separators=(",", ":"))
    label = f"{chart.title}: {', '.join(s.name for s in chart.series)}"
    picture = element(
        "svg",
        Markup("").join(body),
        class_="chart",
        viewBox=f"0 0 {number(WIDTH)} {number(HEIGHT)}",
        role="img",
        tabindex="0",
        aria_label=label,
        data_axes=axes,
        data_x=chart.x_label,
    )
    return Drawing(picture=picture, legend=legend)


Kept = tuple[list[Point], list[tuple[float, float, float]]]


def _fits(value: float, log: bool) -> bool:
    """Whether an axis has a place for the value."""
    return math.isfinite(value) and not (log and value <= 0)


def _finite(series: Series, chart: Chart) -> Kept:
    """Points that can be drawn, and (x, low, high) of the band."""
    points, bands = [], []
    for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        if not _fits(x, chart.log_x):
            continue
        if _fits(y, chart.log_y):
            points.append((x, y))
        if series.band and all(_fits(v, chart.log_y) for v in series.band[i]):
            bands.append((x, *series.band[i]))
    return points, bands


def _note(series: Series, kept: Kept, chart: Chart) -> str:
    """What the legend must say about a series: how many points, and how many could not be drawn."""
    left_out = len(series.x) - len(kept[0])
    parts = [f"{len(series.x):,} point{'s' if len(series.x) != 1 else ''}"] if series.style == "points" else []
    if not kept[0]:
        parts = ["nothing measured"]
    elif left_out:
        parts.append(
            f"{left_out:,} not drawn{' (0 or below on a logarithmic axis)' if chart.log_x or chart.log_y else ''}"
        )
    return ", ".join(parts)


def _axes(chart: Chart, kept: Sequence[Kept]) -> tuple[Axis, Axis]:
    xs = [x for points, _ in kept for x, _ in points]
    ys = [y for points, _ in kept for _, y in points]
    ys += [v for _, bands in kept for _, low, high in bands for v in (low, high)]
    bottom = HEIGHT - BOTTOM
    log = chart.log_y
    y_axis = log_axis(ys, chart.y_unit, bottom, TOP) if log else linear_axis(ys, chart.y_unit, bottom, TOP, about=5)
    left = 12 + CHARACTER * max((len(text) for _, text in y_axis.ticks), default=1)
    make = log_axis if chart.log_x else lambda *a: linear_axis(*a, about=6, round_ends=False)
    return make(xs, chart.x_unit, left, WIDTH - RIGHT), y_axis


def _grid(chart: Chart, x_axis: Axis, y_axis: Axis) -> Markup:
    bottom, left, right = y_axis.start, x_axis.start, x_axis.end
    lines = "".join(f"M{number(left)} {number(y_axis.place(v))}H{number(right)}" for v, _ in y_axis.ticks)
    marks = "".join(f"M{number(x_axis.place(v))} {number(bottom)}v5" for v, _ in x_axis.ticks)
    parts = [
        element("path", class_="grid", d=lines),
        element("path", class_="axis", d=f"M{number(left)} {number(bottom)}H{number(right)}{marks}"),
        element("text", axis_title(chart.y_label, y_axis.unit), x="0", y="13", class_="axis-title"),
        element("text", axis_title(chart.x_label, x_axis.unit), x=right, y=HEIGHT - 5, class_="axis-title e"),
    ]
    parts += [element("text", text, x=left - 7, y=y_axis.place(v) + 4, class_="e") for v, text in y_axis.ticks]
    parts += [element("text", text, x=x_axis.place(v), y=bottom + 19, class_="c") for v, text in x_axis.ticks]
    return Markup("").join(parts)


def _series(
    series: Series,
    colour: str,
    points: Sequence[Point],
    bands: Sequence[tuple[float, float, float]],
    x_axis: Axis,
    y_axis: Axis,
) -> Markup:
    placed = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
    parts = []
    if bands:
        low = [(x_axis.place(x), y_axis.place(v)) for x, v, _ in bands]
        high = [(x_axis.place(x), y_axis.place(v)) for x, _, v in reversed(bands)]
        d = "M" + " ".join(f"{number(x)} {number(y)}" for x, y in low + high) + "Z"
        parts.append(element("path", class_=f"band {colour}", d=d))
    if series.style == "points":
        d = dots_path(placed)
    else:
        d = line_path(as_steps(placed) if series.style == "steps" else placed)
    few = " few" if series.style == "points" and len(placed) <= FEW_DOTS else ""
    if d:
        parts.append(element("path", class_=f"s {series.style} {colour}{few}", d=d, data_n=series.name))
    if series.style != "points" and placed and (series.labels or (series.style == "line" and len(placed) <= FEW_MARKS)):
        parts.append(element("path", class_=f"mark {colour}", d=dots_path(placed)))
    return Markup("").join(parts)
