"""Run folders with a sweep, for tests: passes of four requests, a tenth of a cent per second.

A request has 5 prompt and 20 output tokens, so a pass of one second costs 10 USD per million tokens: 0.001 USD for 100.
Its first step is the prefill, 19 decode steps follow; all tokens take the same 2 of 4 experts in each of two layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables, Traffic
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.headers import to_json
from moeprof.core.record.layout import open_record
from moeprof.core.workload.studies import SweepPoint
from tests.helpers.records import (
    make_facts,
    make_pass,
    make_requests,
    make_routing,
    make_steps,
    write_pass,
    write_record,
)

PRICING = Pricing(usd_per_device_hour=3.6)  # a tenth of a cent per second
MOE, DENSE = make_facts(), make_facts(num_experts=0, name="dense")
NUM_STEPS = 20


def timed_pass(
    name: str,
    seconds: float,
    *,
    traffic: Traffic = "closed",
    busy_s: float | None = None,
    num: int = 4,
    **requests: Any,
) -> PassTables:
    """A pass of ``seconds`` with 20 equal steps that fill it, or ``busy_s`` of it; ``num`` requests at once."""
    step_s = (seconds if busy_s is None else busy_s) / NUM_STEPS
    counts = np.zeros((NUM_STEPS, 2, 2, 4), dtype=np.int64)
    counts[0, 0, :, :2], counts[1:, 1, :, :2] = 5 * num, num
    first = np.arange(NUM_STEPS) == 0
    return make_pass(
        name=name,
        traffic=traffic,
        requests=make_requests(
            num, arrival_s=np.zeros(num), input_tokens=5, output_tokens=20, itl_s=seconds / NUM_STEPS, **requests
        ),
        steps=make_steps(
            NUM_STEPS,
            step_s=step_s,
            phase=np.where(first, "prefill", "decode"),
            prefill_tokens=np.where(first, 5 * num, 0),
            decode_tokens=np.where(first, 0, num),
            new_tokens=num,
        ),
        routing=make_routing(counts),
        window_s=(0.0, seconds),
    )


def sweep_summary(
    folder: Path,
    swept: Mapping[str, Sequence[tuple[SweepPoint, Sequence[PassTables]]]],
    *,
    facts: Mapping[str, ModelFacts] | None = None,
    slo: Mapping[str, float] | None = None,
    schedules: Mapping[str, str] | None = None,
    saturated: Mapping[tuple[str, int], str] | None = None,
    stopped: str | None = None,
    own: Mapping[str, Sequence[PassTables]] | None = None,
    own_load: Mapping[str, Any] | None = None,
) -> Summary:
    """A summary of a run with a sweep, and one round that no schedule is known of.

    Args:
        folder: where the run is written.
        swept: model -> its points with the passes of each; passes are renamed.
        facts: of the models; ``moe`` and ``dense`` have theirs.
        slo: of the workload.
        schedules: model -> hash of the requests that it was sent.
        saturated: (model, number of the point) -> reason.
        stopped: launch.json's word on why the sweep has fewer points.
        own: model -> rounds of the run's own traffic, named ``round-<n>``.
        own_load: what experiment.json says of their schedule: ``pattern``, ``concurrency``.
    """
    known = {"moe": MOE, "dense": DENSE, **(facts or {})}
    path = write_record(
        folder / "run",
        {name: (known[name], [(own or {}).get(name, [timed_pass("round-0", 1.0)])]) for name in swept},
        workload={"slo": dict(slo or {})},
        launch_info={"sweep_stopped": {"reason": stopped, "rows": []}} if stopped else None,
    )
    if own_load is not None:
        experiment = json.loads((path / "experiment.json").read_text())
        experiment["schedules"] = {name: {"sha256": "own", **own_load} for name in swept}
        (path / "experiment.json").write_text(json.dumps(experiment))
    for model, points in swept.items():
        for number, (point, passes) in enumerate(points):
            why = (saturated or {}).get((model, number))
            for round_number, tables in enumerate(passes):
                launch = path / model / "launch-0"
                write_pass(launch, tables)
                (launch / tables.name).rename(launch / f"sweep-{number}-{round_number}")
                file = launch / f"sweep-{number}-{round_number}" / "pass.json"
                info = json.loads(file.read_text())
                info |= {"sweep": to_json(point), "round": round_number}
                info |= {"schedule_sha256": (schedules or {}).get(model, f"point-{number}")}
                info |= {"saturation": {"saturated": why is not None, "reason": why or "no queue grows"}}
                file.write_text(json.dumps(info))
    return summarise(open_record(path), PRICING)


def at(concurrency: int, *seconds: float, **requests: Any) -> tuple[SweepPoint, list[PassTables]]:
    """A closed-loop point whose rounds take these seconds."""
    passes = [timed_pass(f"p{i}", s, **requests) for i, s in enumerate(seconds)]
    return SweepPoint(concurrency=concurrency), passes
