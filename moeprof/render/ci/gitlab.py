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
from collections import Counter
from typing import Any

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.render.ci.words import case_names, place, point, sentence, workload_file
from moeprof.render.data import json_text

PREFIX = "moeprof_"
Samples = dict[tuple[tuple[str, str], ...], float | int]


def render_code_quality(regression: Regression) -> str:
    """gl-code-quality-report.json as text: a finding per gate that is worse, undecided or incomparable."""
    found = []
    for gate, name in zip(regression.gates, case_names(regression.gates), strict=True):
        severity = _severity(gate.verdict, regression)
        if severity is not None:
            found.append(_finding(regression, gate, name, severity))
    return json_text(found)


def render_metrics(regression: Regression) -> str:
    """metrics.txt as text: a gauge per gate (the new run's value, or the lock-step ratio), and gates by verdict."""
    families: dict[str, tuple[str, Samples]] = {}
    for gate in regression.gates:
        drawn = point(gate)
        if drawn is None:
            continue
        what = f"{gate.card.title}, new / base" if drawn.is_ratio else f"{gate.card.title}, {drawn.unit}"
        name = PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", gate.key[0]) + ("_ratio" if drawn.is_ratio else "")
        labels = (("workload", regression.workload), ("model", gate.model), *gate.key[1])
        families.setdefault(name, (what, {}))[1].setdefault(labels, drawn.value)
    verdicts = Counter(gate.verdict for gate in regression.gates)
    counts: Samples = {
        (("workload", regression.workload), ("verdict", verdict)): verdicts[verdict]
        for verdict in ("worse", "cannot tell", "better", "no difference shown")
    }
    families[f"{PREFIX}gates"] = ("Gates by verdict", counts)
    return "".join(_family(name, help_text, samples) for name, (help_text, samples) in families.items()) + "# EOF\n"


def _severity(verdict: str, regression: Regression) -> str | None:
    if verdict == "cannot tell":
        return "info" if regression.allow_undecided else "minor"
    return {"worse": "major", "incomparable": "minor"}.get(verdict)


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


def _family(name: str, help_text: str, samples: Samples) -> str:
    lines = [f"# TYPE {name} gauge", f"# HELP {name} {_escape(help_text)}"]
    lines += [f"{name}{_labels(labels)} {value!r}" for labels, value in samples.items()]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    pairs = {re.sub(r"[^a-zA-Z0-9_]", "_", name): value for name, value in reversed(labels)}  # ours win over a label's
    return "{" + ",".join(f'{name}="{_escape(pairs[name])}"' for name in reversed(pairs)) + "}"


def _escape(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("#", "%23")
    return re.sub("[\x00-\x1f\x7f]", " ", escaped)
