"""What the device did during the passes: power, clock, temperature, memory, and when it was throttled. As data."""

from __future__ import annotations

from typing import Literal

import numpy as np

from moeprof.analysis.document import Block, Paragraph
from moeprof.analysis.document_timeline import Timeline, TimelineLine, TimelinePanel, TimelineSpan
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.analysis.tables import FloatArray, PassTables, column
from moeprof.analysis.throttle import in_words, throttled_spans

MOST_PASSES = 12
GAP_RATIO = 0.02  # of the whole axis, between two passes
Style = Literal["line", "dashed"]
# panel -> unit and its lines: column, name, style
PANELS: tuple[tuple[str, str, tuple[tuple[str, str, Style], ...]], ...] = (
    ("power", "W", (("power_w", "", "line"),)),
    ("SM clock", "MHz", (("sm_clock_mhz", "", "line"),)),
    ("temperature", "°C", (("temperature_c", "", "line"),)),
    (
        "device memory",
        "bytes",
        (
            ("device_memory_used_bytes", "used on the device", "line"),
            ("reserved_bytes", "reserved by the allocator", "line"),
            ("allocated_bytes", "allocated", "dashed"),
        ),
    ),
)


def device_timelines(summary: Summary) -> list[Block]:
    """One timeline per model whose device was read; else a sentence that says why there is none."""
    drawn: list[Block] = [found for model in summary.models if (found := _timeline(model)) is not None]
    return drawn or [Paragraph(text=f"No timeline of power, clocks, temperature and memory: {_why_not(summary)}.")]


def _why_not(summary: Summary) -> str:
    if not (summary.record.workload.get("instruments") or {}).get("power", True):
        return "instruments.power is off"
    if str(summary.record.environment.get("device", "")).startswith("cpu"):
        return "the run was on a CPU, which tells none of them"
    return "the device told none of them"


def _timeline(model: ModelSummary) -> Timeline | None:
    """The passes of a model laid end to end."""
    passes = [tables for tables in (*model.rounds, *model.capacity) if len(tables.telemetry)]
    shown = passes[:MOST_PASSES]
    total_s = sum(tables.duration_s for tables in shown)
    starts_s = np.cumsum([0.0, *(tables.duration_s + GAP_RATIO * total_s for tables in shown)])
    panels = tuple(panel for spec in PANELS if (panel := _panel(spec, shown, starts_s)) is not None)
    if not panels:
        return None
    spans = tuple(span for tables, start_s in zip(shown, starts_s, strict=False) for span in _spans(tables, start_s))
    left_out = f" The first {MOST_PASSES} of {len(passes)} passes." if len(passes) > MOST_PASSES else ""
    return Timeline(
        name=f"device-{model.name}",
        title=f"The device during the passes, {model.name}",
        caption=f"Passes are laid end to end, with gaps between them.{left_out} {_told(spans, total_s)}",
        panels=panels,
        spans=spans,
        passes=tuple((float(start_s), tables.name) for tables, start_s in zip(shown, starts_s, strict=False)),
        end_s=float(starts_s[-1] - GAP_RATIO * total_s),
    )


def _panel(
    spec: tuple[str, str, tuple[tuple[str, str, Style], ...]], passes: list[PassTables], starts_s: FloatArray
) -> TimelinePanel | None:
    label, unit, quantities = spec
    lines = tuple(line for quantity in quantities if (line := _line(*quantity, passes, starts_s)) is not None)
    return TimelinePanel(label=label, unit=unit, lines=lines) if lines else None


def _line(name: str, label: str, style: Style, passes: list[PassTables], starts_s: FloatArray) -> TimelineLine | None:
    stretches = []
    for tables, start_s in zip(passes, starts_s, strict=False):
        time, value = column(tables.telemetry, "t_s"), column(tables.telemetry, name)
        known = np.isfinite(value) & (time >= 0) & (time <= tables.duration_s)
        if known.any():
            stretches.append((_floats(time[known] + start_s), _floats(value[known])))
    return TimelineLine(name=label, stretches=tuple(stretches), style=style) if stretches else None


def _spans(tables: PassTables, start_s: float) -> list[TimelineSpan]:
    """Throttled stretches inside the pass."""
    found = []
    for span in throttled_spans(column(tables.telemetry, "t_s"), column(tables.telemetry, "throttle_reasons")):
        begin, end = max(0.0, span.start_s), min(tables.duration_s, span.end_s)
        if end > begin:
            found.append(TimelineSpan(start_s=begin + start_s, end_s=end + start_s, label=in_words(span.codes)))
    return found


def _told(spans: tuple[TimelineSpan, ...], total_s: float) -> str:
    if not spans or total_s <= 0:
        return "The device was not throttled."
    share = 100 * sum(span.end_s - span.start_s for span in spans) / total_s
    why = ", ".join(dict.fromkeys(word for span in spans for word in span.label.split(", ")))
    return f"Throttled for {share:.0f} % of the time (marked): {why}."


def _floats(values: FloatArray) -> tuple[float, ...]:
    return tuple(float(v) for v in values)
