"""A workload for a trace file: the lines that name it, and a whole one that ends within minutes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.core.trace import Trace
from moeprof.core.workload.traffic import TraceSource

NUM_REQUESTS = 64
LONGEST_S = 30.0  # of a round's arrivals
MAX_RATE_PER_S = 4.0
INPUT_TOKENS, OUTPUT_TOKENS = 256, 64  # what nine in ten requests stay below
MOST_TOKENS = {"max_input_tokens": 512, "max_output_tokens": 96, "too_long": "truncate"}
CONCURRENCY = 4
PLAIN = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)
NOT_TEXT = {"true", "false", "yes", "no", "on", "off", "null", "y", "n", ".inf", ".nan", "."}


def trace_keys(source: TraceSource, path: str) -> dict[str, Any]:
    """The keys of ``traffic.trace`` that name a file and say how it was read."""
    keys: dict[str, Any] = {"path": path}
    for name in ("format", "columns", "timestamp_unit", "block_tokens", "skip_bad_rows"):
        if value := getattr(source, name):
            keys[name] = value
    return keys


def flow(value: Any) -> str:
    """A value on one line of YAML: plain words as they are, other text in quotes, with escapes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(inner)}" for key, inner in value.items()) + "}"
    if not isinstance(value, str):
        return json.dumps(value)
    if PLAIN.fullmatch(value) and value.lower() not in NOT_TEXT:
        return value
    quoted = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08X}" for char in quoted)


def trace_lines(source: TraceSource, path: str) -> list[str]:
    """A workload's ``traffic.trace``, one key a line."""
    lines = ["traffic:", "  trace:"]
    return lines + [f"    {name}: {flow(value)}" for name, value in trace_keys(source, path).items()]


def workload_text(
    trace: Trace, source: TraceSource, *, path: str, name: str, models: list[dict[str, str]], inferred: bool
) -> str:
    """A workload for this trace, with comments: few requests, short enough for a CPU.

    Args:
        trace: as read.
        source: with what the content told.
        path: of the trace, as it stands in the workload.
        name: of the workload.
        models: keys of each model.
        inferred: the columns were told by their names alone.
    """
    number = min(len(trace), NUM_REQUESTS)
    requests = f"{len(trace):,} request{'s' * (len(trace) != 1)}"
    lines = [
        f"# {requests} of {_plain(Path(path).name)}, read as {trace.source}; written by `moeprof init --from`.",
        "# Cut and scaled so that small models replay it within minutes on a CPU: for yours, take those lines out.",
        *(f"# {_plain(note.text)} ({note.count:,})" for note in trace.notes),
        f"name: {flow(name)}",
        *trace_lines(source, path),
    ]
    if inferred:
        at = next(i for i, line in enumerate(lines) if line.startswith("    columns:"))
        lines[at] += "   # told by their names: look whether they are right"
    lines += [f"    {line}" for line in _cuts(trace, number)]
    lines += _times(trace, number)
    if (trace.output_tokens < 0).any() and _has_unknown_outputs(trace):
        lines.append("  lengths: {output: {distribution: fixed, value: 32}}   # rows that state no output length")
    lines += [
        "  prompts: {source: packaged}   # text for rows that have only lengths, and for the warm-up",
        f"  num_requests: {number}   # the first so many; take it out for all {len(trace):,}",
        "models:",
        *(f"  - {flow(model)}" for model in models),
        "rounds: 3",
        "threads: 1",
        "# What a CPU's hour costs, about a two-core cloud machine. On a GPU the price book is asked.",
        "prices: {usd_per_device_hour: 0.10, applies_to: cpu, source: stated in the workload}",
    ]
    return "\n".join(lines) + "\n"


def _cuts(trace: Trace, number: int) -> list[str]:
    lines = []
    if trace.prompt_text is None and trace.messages is None and (trace.output_tokens >= 0).all():
        first = slice(0, number)
        scale = min(
            INPUT_TOKENS / float(np.percentile(trace.input_tokens[first], 90)),
            OUTPUT_TOKENS / float(np.percentile(trace.output_tokens[first], 90)),
        )
        if scale < 1:
            lines.append(f"length_scale: {scale:.3g}   # prompts and outputs become shorter alike")
    return lines + [f"{key}: {value}" for key, value in MOST_TOKENS.items()]


def _times(trace: Trace, number: int) -> list[str]:
    """What becomes of the arrivals: the first requests within half a minute, at a rate that a CPU can serve."""
    span_s = float(trace.arrival_s[number - 1] - trace.arrival_s[0])
    if span_s == 0:
        pattern = f"{{pattern: concurrency, concurrency: {CONCURRENCY}}}"
        return [f"  arrivals: {pattern}   # the file has no times (or one for all): so many in flight"]
    wanted_s = min(max(span_s, number / MAX_RATE_PER_S), LONGEST_S)
    if abs(wanted_s / span_s - 1) < 0.01:
        return []
    return [f"    time_scale: {wanted_s / span_s:.4g}   # 1: the recorded times"]


def _has_unknown_outputs(trace: Trace) -> bool:
    answers = trace.output_text or (None,) * len(trace)
    return any(
        answer is None and tokens < 0 for answer, tokens in zip(answers, trace.output_tokens.tolist(), strict=True)
    )


def _plain(text: str) -> str:
    """Text from a file on one line of comment."""
    return "".join(char if char.isprintable() else "?" for char in text)
