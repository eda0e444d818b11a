"""GitLab: Code Quality (what got worse, at the line of its gate) and a metrics report (the figures themselves).

Code Quality matches findings of two branches by fingerprint: it is made of workload, model, gate and verdict, so that
figures may move without a new finding, but a gate that fell from ``cannot tell`` to ``worse`` is one. GitLab stops at
the first finding that lacks a description, fingerprint, severity or location.

The metrics report is OpenMetrics text. GitLab reads it line by line: it cuts at ``#`` even inside a label, splits as a
shell would, and compares values as strings. So ``#`` in a label is written ``%23``, and no blank stands outside quotes.

Sources: https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format,
https://docs.gitlab.com/ci/testing/metrics_reports, https://prometheus.io/docs/specs/om/open_metrics_spec/,
https://gitlab.com/gitlab-org/gitlab (codeclimate.json, lib/gitlab/ci/parsers/metrics/generic.rb).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from prometheus_client import Metric
from prometheus_client.openmetrics.exposition import generate_latest

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.core.text import printable
from moeprof.render.ci.words import case_names, place, point, sentence, workload_file
from moeprof.render.data import json_text

PREFIX = "moeprof_"


def render_code_quality(regression: Regression) -> str:
    """gl-code-quality-report.json as text: a finding per gate that is worse or undecided."""
    found = []
    for gate, name in zip(regression.gates, case_names(regression.gates), strict=True):
        severity = _severity(gate.verdict, regression)
        if severity is not None:
            found.append(_finding(regression, gate, name, severity))
    return json_text(found)


@dataclass(frozen=True, slots=True)
class _Families:
    """What prometheus_client writes: anything that collects families."""

    families: tuple[Metric, ...]

    def collect(self) -> tuple[Metric, ...]:
        return self.families


def render_metrics(regression: Regression) -> str:
    """metrics.txt as text: a gauge per gate (the new run's value, or the lock-step ratio), and gates by verdict."""
    families: dict[str, Metric] = {}
    for gate in regression.gates:
        drawn = point(gate)
        if drawn is None:
            continue
        what = f"{gate.card.title}, new / base" if drawn.is_ratio else f"{gate.card.title}, {drawn.unit}"
        name = PREFIX + _name(gate.key[0]) + ("_ratio" if drawn.is_ratio else "")
        labels = {**dict(gate.key[1]), "workload": regression.workload, "model": gate.model}  # ours win
        family = families.setdefault(name, Metric(name, _flat(what), "gauge"))
        flat = {_name(key): _flat(label) for key, label in labels.items()}
        if all(sample.labels != flat for sample in family.samples):  # two thresholds of one figure are one sample
            family.add_sample(name, flat, drawn.value)
    counts = Metric(f"{PREFIX}gates", "Gates by verdict", "gauge")
    for verdict in ("worse", "cannot tell", "better", "no difference shown"):
        labels = {"workload": _flat(regression.workload), "verdict": verdict}
        counts.add_sample(counts.name, labels, len(regression.with_verdict(verdict)))
    return str(generate_latest(_Families((*families.values(), counts))), "utf-8")


def _severity(verdict: str, regression: Regression) -> str | None:
    if verdict == "cannot tell":
        return "info" if regression.allow_undecided else "minor"
    return "major" if verdict == "worse" else None


def _finding(regression: Regression, gate: GateResult, name: str, severity: str) -> dict[str, Any]:
    # a gate without a place (a flag, a default) is pointed at the workload by its usual name
    file, line = place(gate.gate.source) or (workload_file(regression.workload), 1)
    whole = "\0".join((regression.workload, gate.model, name, gate.verdict))
    return {
        "description": f"{name} of {gate.model}: {sentence(gate)}",
        "check_name": f"moeprof/{gate.key[0]}",
        "fingerprint": hashlib.sha256(whole.encode(errors="surrogatepass")).hexdigest(),
        "severity": severity,
        "location": {"path": file, "lines": {"begin": line}},
    }


def _name(text: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", text)


def _flat(text: str) -> str:
    """Without what GitLab cuts at, and control characters of any kind."""
    flat = re.sub("[\x00-\x09\x0b-\x1f\x7f]", " ", text.replace("#", "%23"))
    return printable(flat)
