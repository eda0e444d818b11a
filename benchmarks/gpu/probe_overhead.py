"""What the instruments cost at batch 1 and at batch 64, with and without every pick kept: paired steps, in turn.

Two engines on the same weights take the same steps, one bare and one with routing tap and recorders; the order
alternates. The shape is that of Qwen3-30B-A3B: 48 MoE layers and short steps, where a tap costs most.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.probe_models import Opened, equal_requests, launch_plan, open_shape
from benchmarks.gpu.probe_tools import Probe
from moeprof.analysis.metrics.overhead import overhead_metrics
from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.instrumented import RoutingInstrument
from moeprof.capture.measure.overhead import measure_overhead
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder
from moeprof.core.record.tables import read_table

SHAPE = "qwen3-30b-a3b"
BATCHES = (1, 64)
INPUT_TOKENS, OUTPUT_TOKENS = 128, 160
SECONDS = 8.0
NAME = "instrumentation_overhead_ratio"


def main(arguments: list[str] | None = None) -> int:
    """One figure per batch, with and without ``save_detailed``."""
    probe = Probe(__doc__, arguments)
    opened = open_shape(SHAPE, probe.device, num_layers=None, is_tiny=probe.is_tiny)
    for detailed in (False, True):
        for batch in sorted(BATCHES, reverse=True):  # experts are tried for the largest steps, which serves all
            key = f"{'save-detailed' if detailed else 'overhead'}/{batch}"
            row = probe.case(key, lambda b=batch, d=detailed: _paired(probe, opened, b, d))  # type: ignore[misc]
            names = ("value", "low", "high", "n")
            probe.found["figures"].append(
                {"key": key, **{name: row.get(name) for name in names}, "reason": row.get("reason", ""),
                 "source": "probe overhead"}
            )  # fmt: skip
            probe.save()
    return 0


def _paired(probe: Probe, opened: Opened, batch: int, detailed: bool) -> dict[str, Any]:
    inputs, outputs, seconds = (16, 24, 1.0) if probe.is_tiny else (INPUT_TOKENS, OUTPUT_TOKENS, SECONDS)
    num = min(batch, 4) if probe.is_tiny else batch
    schedule = equal_requests(num, inputs, outputs)
    # Two engines on one card: each gets a cache for just these requests.
    settings = replace(opened.settings, kv_tokens=num * (inputs + outputs + 64), max_sequences=num)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tapping = RoutingInstrument(
            opened.model, launch_plan(opened, schedule, folder, probe.device, detailed=detailed)
        )
        listeners = ListenerSet(tapping.always)  # the drawn picks are part of both sides
        bare = build_engine(opened.model, settings, ListenerSet(tapping.always), in_turn=True)
        watched = build_engine(opened.model, settings, listeners, in_turn=True)
        try:
            bare.prepare(num, inputs + outputs)
            with tapping.watching(listeners):
                watched.prepare(num, inputs + outputs)
            recorders: list[Recorder] = [RequestRecorder(folder), StepRecorder(folder), *tapping.recorders(folder)]
            measure_overhead(
                bare, watched, schedule, recorders, lambda: tapping.watching(listeners), folder,
                max_seconds=seconds, should_stop=lambda: False,
            )  # fmt: skip
            table = read_table(folder, "overhead")
        finally:
            bare.close()
            watched.close()
            tapping.close()
    return _row(table)


def _row(table: Any) -> dict[str, Any]:
    decode = table[table["phase"] == "decode"]
    figure = next(value for value in overhead_metrics([decode]) if value.name == NAME and not value.labels)
    if figure.value is None:
        return {"reason": "; ".join(figure.reasons)}
    medians = {"bare_median_s": float(decode["bare_s"].median()), "pairs": len(decode)}
    return {"value": figure.value, "low": figure.ci_low, "high": figure.ci_high, "n": figure.n, **medians}


if __name__ == "__main__":
    sys.exit(main())
