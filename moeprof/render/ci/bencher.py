"""Bencher Metric Format: benchmark -> measure -> value with its bounds. Read by ``bencher run --adapter json``.

A benchmark is a model of the workload with the labels of the figure (``ci-smoke/moe{phase=decode}``), a measure is the
metric (``step-mean-s``, unit at its end; ``step-mean-s-ratio`` for a lock-step ratio). Bencher makes both on first use.

Source: https://bencher.dev/docs/reference/bencher-metric-format (lengths, slugs, schema).
"""

from __future__ import annotations

import hashlib
import re

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.render.ci.words import Point, point
from moeprof.render.data import json_text

MAX_SLUG, MAX_NAME = 64, 1024


def render_bmf(regression: Regression) -> str:
    """The file as text."""
    found: dict[str, dict[str, dict[str, float | int]]] = {}
    for gate in regression.gates:
        drawn = point(gate)
        if drawn is not None:
            measure = slug(f"{gate.key[0]}-ratio" if drawn.is_ratio else gate.key[0])
            found.setdefault(_benchmark(regression, gate), {}).setdefault(measure, _metric(drawn))
    return json_text(found)


def slug(name: str) -> str:
    """Lower-case letters, digits and single hyphens, 64 at most; what is longer keeps its own hash."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return _cut(text or "x", name, MAX_SLUG)


def _benchmark(regression: Regression, gate: GateResult) -> str:
    labels = gate.label.removeprefix(gate.key[0])
    name = f"{regression.workload}/{gate.model}{labels}"
    return _cut(name, name, MAX_NAME)


def _metric(drawn: Point) -> dict[str, float | int]:
    metric = {"value": drawn.value}
    if drawn.low is not None and drawn.high is not None:
        metric |= {"lower_value": drawn.low, "upper_value": drawn.high}
    return metric


def _cut(text: str, whole: str, most: int) -> str:
    if len(text) <= most:
        return text
    digest = hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{text[: most - 9].rstrip('-')}-{digest}"
