"""JSON of github-action-benchmark: a list per direction, as its tools customSmallerIsBetter and customBiggerIsBetter.

Each gate is an entry: name, unit, value, and where known ``range`` (half the 95 % interval; the action reads a number
of two characters or more after the sign) and ``extra`` (its tooltip). A gate without a direction (any change fails)
fits neither list and stands in neither.

Source: https://github.com/benchmark-action/github-action-benchmark (README, src/extract.ts, src/extractRangeInfo.ts).
"""

from __future__ import annotations

from typing import Any

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.core.metric import Better
from moeprof.render.ci.words import Point, case_names, figures, point
from moeprof.render.data import json_text


def render_smaller_is_better(regression: Regression) -> str | None:
    """The list where less is better as text; None without any: the action fails on an empty list."""
    return _render(regression, "lower")


def render_bigger_is_better(regression: Regression) -> str | None:
    """The list where more is better as text; None without any."""
    return _render(regression, "higher")


def _render(regression: Regression, better: Better) -> str | None:
    entries = []
    for gate, name in zip(regression.gates, case_names(regression.gates), strict=True):
        drawn = point(gate) if gate.better == better else None
        if drawn is not None:
            entries.append(_entry(regression, gate, name, drawn))
    return json_text(entries) if entries else None


def _entry(regression: Regression, gate: GateResult, name: str, drawn: Point) -> dict[str, Any]:
    what = f"{name}, new / base" if drawn.is_ratio else name
    entry: dict[str, Any] = {
        "name": f"{regression.workload} / {gate.model} / {what}",
        "unit": drawn.unit,
        "value": drawn.value,
    }
    if drawn.low is not None and drawn.high is not None:
        entry["range"] = f"± {float(f'{(drawn.high - drawn.low) / 2:.6g}')!r}"
    entry["extra"] = f"{gate.verdict}: {figures(gate)}\ndevice: {regression.device}\ngate: {gate.gate.text}"
    return entry
