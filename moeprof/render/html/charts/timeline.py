"""A Timeline as SVG: small charts under each other, over one time axis, with marked stretches across all of them."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from moeprof.analysis.report.document import Timeline, TimelineLine, TimelinePanel
from moeprof.core import units
from moeprof.render.html.charts.lines import CHARACTER, Drawing, LegendEntry
from moeprof.render.html.charts.points import line_path
from moeprof.render.html.charts.svg import Axis, axis_title, element, linear_axis, number

WIDTH, RIGHT = 560.0, 18.0
TOP, PANEL, TITLE, BOTTOM = 20.0, 52.0, 22.0, 44.0
NARROW = 60.0  # a pass that is narrower than its name has none


def draw_timeline(timeline: Timeline) -> Drawing:
    """The picture, and a legend of the lines that share a panel and of the mark."""
    height = TOP + len(timeline.panels) * (TITLE + PANEL) + BOTTOM
    y_axes = [_y_axis(panel, i) for i, panel in enumerate(timeline.panels)]
    left = 12 + CHARACTER * max(len(text) for axis in y_axes for _, text in axis.ticks)
    x_axis = linear_axis([0.0, timeline.end_s], "s", left, WIDTH - RIGHT, about=6, round_ends=False)
    body = [_spans(timeline, x_axis, height), _passes(timeline, x_axis, height)]
    for panel, y_axis in zip(timeline.panels, y_axes, strict=True):
        body.append(_panel(panel, x_axis, y_axis))
    body.append(_time(x_axis, height))
    picture = element(
        "svg",
        element("desc", timeline.caption) + Markup("").join(body),
        class_="chart timeline",
        viewBox=f"0 0 {number(WIDTH)} {number(height)}",
        role="img",
        aria_label=f"{timeline.title}: {', '.join(panel.label for panel in timeline.panels)}",
    )
    return Drawing(picture=picture, legend=_legend(timeline))


def _y_axis(panel: TimelinePanel, place: int) -> Axis:
    values = [value for line in panel.lines for _, values in line.stretches for value in values]
    top = TOP + place * (TITLE + PANEL) + TITLE
    return linear_axis(values, panel.unit, top + PANEL, top, about=2)


def _spans(timeline: Timeline, x_axis: Axis, height: float) -> Markup:
    parts = []
    for span in timeline.spans:
        start, end = x_axis.place(span.start_s), x_axis.place(span.end_s)
        about = element("title", f"{units.seconds(span.end_s - span.start_s)}: {span.label}")
        parts.append(
            element("rect", about, class_="throttled", x=start, y=TOP, width=max(1.0, end - start),
                    height=height - BOTTOM - TOP)
        )  # fmt: skip
    return Markup("").join(parts)


def _passes(timeline: Timeline, x_axis: Axis, height: float) -> Markup:
    """A thin line where each pass begins, and its name where there is room."""
    starts = [x_axis.place(start_s) for start_s, _ in timeline.passes]
    ends = [*starts[1:], x_axis.end]
    lines = "".join(f"M{number(start)} {number(TOP)}V{number(height - BOTTOM)}" for start in starts)
    names = [
        element("text", name, x=start, y="13")
        for (_, name), start, end in zip(timeline.passes, starts, ends, strict=True)
        if end - start >= NARROW
    ]
    return element("path", class_="pass-start", d=lines) + Markup("").join(names)


def _panel(panel: TimelinePanel, x_axis: Axis, y_axis: Axis) -> Markup:
    bottom, left = y_axis.start, x_axis.start
    grid = "".join(f"M{number(left)} {number(y_axis.place(v))}H{number(x_axis.end)}" for v, _ in y_axis.ticks)
    title = axis_title(panel.label, y_axis.unit)
    parts = [
        element("path", class_="grid", d=grid),
        element("path", class_="axis", d=f"M{number(left)} {number(bottom)}H{number(x_axis.end)}"),
        element("text", title, x=left + 2, y=y_axis.end - 6, class_="axis-title"),
    ]
    parts += [element("text", text, x=left - 7, y=y_axis.place(v) + 4, class_="e") for v, text in y_axis.ticks]
    parts += [_line(line, f"m{i}", x_axis, y_axis) for i, line in enumerate(panel.lines)]
    return Markup("").join(parts)


def _line(line: TimelineLine, colour: str, x_axis: Axis, y_axis: Axis) -> Markup:
    paths = []
    for times, values in line.stretches:
        placed = [(x_axis.place(t), y_axis.place(v)) for t, v in zip(times, values, strict=True)]
        paths.append(line_path(placed))
    return element("path", class_=f"s thin {line.style} {colour}", d="".join(paths))


def _time(x_axis: Axis, height: float) -> Markup:
    bottom = height - BOTTOM
    parts = [element("text", text, x=x_axis.place(v), y=bottom + 19, class_="c") for v, text in x_axis.ticks]
    parts.append(element("text", axis_title("time", x_axis.unit), x=x_axis.end, y=height - 5, class_="axis-title e"))
    return Markup("").join(parts)


def _legend(timeline: Timeline) -> tuple[LegendEntry, ...]:
    shared: Sequence[TimelinePanel] = [panel for panel in timeline.panels if any(line.name for line in panel.lines)]
    entries = [
        LegendEntry(colour=f"m{i}", style=line.style, name=line.name, note="")
        for panel in shared
        for i, line in enumerate(panel.lines)
    ]
    if timeline.spans:
        entries.append(LegendEntry(colour="warn", style="throttled", name="throttled", note=""))
    return tuple(entries)
