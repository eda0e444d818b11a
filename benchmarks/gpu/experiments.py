"""Fills the results into EXPERIMENTS.md: each stands between ``<!-- result KEY -->`` and ``<!-- /result -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.gpu.goals import MODELS, number_text
from benchmarks.gpu.results import Results

NOT_YET = "not yet measured"
SLOT = re.compile(r"<!-- result ([a-z0-9-]+) -->.*?<!-- /result -->", re.DOTALL)


def filled(text: str, results: Results) -> str:
    """The text with every result as it is known now.

    Raises:
        ValueError: a slot of the text has no rule here.
    """

    def one(match: re.Match[str]) -> str:
        key = match.group(1)
        if key not in RULES:
            raise ValueError(f"EXPERIMENTS.md: result {key!r} is unknown; known: {', '.join(sorted(RULES))}")
        return f"<!-- result {key} -->{RULES[key](results) or NOT_YET}<!-- /result -->"

    return SLOT.sub(one, text)


def _ways(first: str, second: str) -> Callable[[Results], str]:
    """Two ways to launch a step, by slice and batch: milliseconds and their ratio."""

    def told(results: Results) -> str:
        rows = {row["name"]: row for row in results.cases("engine")}
        lines = []
        for name, row in rows.items():
            if not name.endswith(f": {first}"):
                continue
            case, other = name.removesuffix(f": {first}"), rows.get(name.removesuffix(first) + second, {})
            lines.append(f"{case}: {_pair(row, other, first, second)}")
        return _sentences(lines)

    return told


def _pair(row: Mapping[str, Any], other: Mapping[str, Any], first: str, second: str) -> str:
    if row.get("step_s") and other.get("step_s"):
        ratio = row["step_s"] / other["step_s"]
        return f"{row['step_s'] * 1e3:.2f} ms {first}, {other['step_s'] * 1e3:.2f} ms {second} ({ratio:.2f}x)"
    reasons = [str(one.get("reason")) for one in (row, other) if one.get("reason")]
    return f"not measured ({'; '.join(reasons) or 'one of the two was not run'})"


def _kernels(start: str) -> Callable[[Results], str]:
    """Candidates of one kind: time over the byte floor, error, whether they can be captured."""

    def told(results: Results) -> str:
        lines = [_kernel(row) for row in results.cases("kernels") if row["name"].startswith(start)]
        return _sentences(lines)

    return told


def _kernel(row: Mapping[str, Any]) -> str:
    if row.get("seconds") is None:
        return f"{row['name']}: not measured ({row.get('reason', 'unknown')})"
    return f"{row['name']}: {row['seconds'] * 1e6:.0f} us, {row['over_floor']:.2f}x its bytes, error {row['error']:.1e}"


def _captures(results: Results) -> str:
    lines = []
    for row in results.cases("kernels"):
        if row["name"].startswith("graph: experts"):
            seconds = row.get("graph_s")
            what = f"{seconds * 1e6:.0f} us" if seconds else f"no ({row.get('graph_reason') or row.get('reason')})"
            lines.append(f"{row['name'].removeprefix('graph: experts ')}: {what}")
    return _sentences(lines)


def _figures(*starts: str) -> Callable[[Results], str]:
    """Targets whose keys start so, with verdicts."""

    def told(results: Results) -> str:
        rows = [row for row in results.judged if row.goal.key.startswith(starts) and row.figure is not None]
        return _sentences([_figure(row) for row in rows])

    return told


def _figure(row: Any) -> str:
    if row.figure.value is None:
        return f"{row.goal.title}: not measured ({row.figure.reason})"
    return f"{row.goal.title}: {number_text(row.figure)} ({row.verdict})"


def _load(results: Results) -> str:
    from moeprof.core.record.layout import open_record

    lines = []
    for model, title in MODELS.items():
        record = results.record(f"roofline-{model}")
        if record is not None and (launches := open_record(record).models[0].launches):
            seconds = launches[0].info.load_s
            lines += [] if seconds is None else [f"{title}: {seconds:.1f} s"]
    peaks = _figures("load-peak")(results)
    return "; ".join([*lines, *([peaks] if peaks else [])])


def _launch_cost(results: Results) -> str:
    row = results.case("environment", "launches") or {}
    eager, graph = row.get("eager_s_per_launch"), row.get("graph_s_per_launch")
    if eager is None:
        return ""
    return f"{eager * 1e6:.2f} us one by one, {f'{graph * 1e6:.2f} us' if graph else NOT_YET} in a graph"


def _sentences(lines: list[str]) -> str:
    return "; ".join(lines)


RULES: dict[str, Callable[[Results], str]] = {
    "launch-cost": _launch_cost,
    "graphs": _ways("eager", "graph"),
    "run-ahead": _ways("graph", "graph, run ahead"),
    "compile": _ways("graph, run ahead", "graph, run ahead, compiled layers"),
    "experts-decode-qwen3": _kernels("experts qwen3-30b decode"),
    "experts-decode-mixtral": _kernels("experts mixtral decode"),
    "experts-prefill": lambda results: "; ".join(
        filter(None, (_kernels(f"experts {model} prefill")(results) for model in ("qwen3-30b", "mixtral")))
    ),
    "capture": _captures,
    "attention-mixtral": _kernels("attention mixtral"),
    "attention-qwen3": _kernels("attention qwen3-30b"),
    "attention-prompt": _kernels("prompt "),
    "decode": _figures("decode-over-roofline"),
    "prefill": _figures("prefill-of-matmul"),
    "instruments": _figures("overhead", "save-detailed"),
    "load": _load,
}
