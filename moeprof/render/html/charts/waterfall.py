"""A Waterfall as SVG: one row per step, levels from zero, changes hanging between them, whiskers for the intervals.

Rows, not columns: the names of steps are long. A change that cannot be told from 0 is pale with a dashed outline and
says so in words.
"""

from __future__ import annotations

import textwrap

from markupsafe import Markup

from moeprof.analysis.report.document import Waterfall, WaterfallStep
from moeprof.render.cells import CANNOT_TELL, Span, spans, step_interval, step_text
from moeprof.render.html.charts.svg import Axis, axis_title, element, linear_axis, number

WIDTH, LEFT, RIGHT = 560.0, 2.0, 14.0
BAR, LINE, GAP = 20.0, 19.0, 20.0
LABEL_CHARACTERS = 38  # leaves room for the figure on the same line, in the larger type of narrow screens
CAP = 5.0  # half the height of a whisker's ends
BOTTOM = 40.0


def draw_waterfall(waterfall: Waterfall) -> Markup | None:
    """The waterfall as SVG, or None when there is nothing to draw."""
    if not waterfall.steps:
        return None
    found = spans(waterfall)
    ends = [v for s in found for v in (s.start, s.end, s.low, s.high) if v is not None]
    axis = linear_axis([0.0, *ends], waterfall.unit, LEFT, WIDTH - RIGHT, about=5, round_ends=False)
    labels = [textwrap.wrap(step.label, LABEL_CHARACTERS) or [""] for step in waterfall.steps]
    tops, y = [], 0.0
    for lines in labels:
        y += len(lines) * LINE + 5
        tops.append(y)
        y += BAR + GAP - 5
    body = [_grid(axis, y), _links(found, tops, axis)]
    for step, span, top, lines in zip(waterfall.steps, found, tops, labels, strict=True):
        body.append(_texts(step, waterfall.unit, lines, top))
        body.append(_bar(step, span, top, axis, waterfall.unit))
    body += [element("text", text, x=axis.place(v), y=y + 16, class_="c" if v else None) for v, text in axis.ticks]
    if axis.unit:
        title = axis_title("", axis.unit).removeprefix(", ")
        body.append(element("text", title, x=WIDTH - RIGHT, y=y + BOTTOM - 4, class_="axis-title e"))
    said = "; ".join(_said(step, waterfall.unit) for step in waterfall.steps)
    return element(
        "svg",
        element("desc", said) + Markup("").join(body),
        class_="chart waterfall",
        viewBox=f"0 0 {number(WIDTH)} {number(y + BOTTOM)}",
        role="img",
        aria_label=f"{waterfall.title}: {said}",
    )


def _grid(axis: Axis, bottom: float) -> Markup:
    d = "".join(f"M{number(axis.place(v))} 0V{number(bottom)}" for v, _ in axis.ticks)
    zero = f"M{number(axis.place(0.0))} 0V{number(bottom)}"
    return element("path", class_="grid", d=d) + element("path", class_="axis", d=zero)


def _links(found: tuple[Span, ...], tops: list[float], axis: Axis) -> Markup:
    """Thin lines from the end of a bar to the row that goes on from there."""
    lines = "".join(
        f"M{number(axis.place(span.end))} {number(top + BAR)}V{number(below)}"
        for span, top, below in zip(found[:-1], tops[:-1], tops[1:], strict=True)
    )
    return element("path", class_="link", d=lines) if lines else Markup("")


def _texts(step: WaterfallStep, unit: str, lines: list[str], top: float) -> Markup:
    name = "bar-name" if step.kind == "level" else "step-name"
    first = top - 6 - (len(lines) - 1) * LINE
    parts = [element("text", line, x=LEFT, y=first + n * LINE, class_=name) for n, line in enumerate(lines)]
    figure = step_text(step, unit) + ("" if step.told else f", {CANNOT_TELL}")
    parts.append(element("text", figure, x=WIDTH - RIGHT, y=top - 6, class_="bar-total e"))
    return Markup("").join(parts)


def _bar(step: WaterfallStep, span: Span, top: float, axis: Axis, unit: str) -> Markup:
    left, right = sorted((axis.place(span.start), axis.place(span.end)))
    kind = "level" if step.kind == "level" else "more" if step.value > 0 else "less"
    tip = "\n".join(part for part in (_said(step, unit), step.text) if part)
    rect = element(
        "rect",
        element("title", tip),
        x=left,
        y=top,
        width=max(right - left, 1.0),
        height=BAR,
        class_=f"step {kind}{'' if step.told else ' untold'}",
    )
    if span.low is None or span.high is None:
        return rect
    low, high, middle = axis.place(span.low), axis.place(span.high), top + BAR / 2
    caps = "".join(f"M{number(x)} {number(middle - CAP)}v{number(2 * CAP)}" for x in (low, high))
    return rect + element("path", class_="whisker", d=f"M{number(low)} {number(middle)}H{number(high)}{caps}")


def _said(step: WaterfallStep, unit: str) -> str:
    parts = [f"{step.label}: {step_text(step, unit)}", step_interval(step, unit), "" if step.told else CANNOT_TELL]
    return " ".join(part for part in parts if part)
