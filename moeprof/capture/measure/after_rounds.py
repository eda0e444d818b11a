"""What a worker measures once per launch, after its rounds: the instruments' own cost, quality, forced picks, the gap.

Each returns what launch.json keeps of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeprof.capture.instrumented import Rig
from moeprof.capture.measure.breakdown import measure_gap
from moeprof.capture.measure.overhead import measure_overhead
from moeprof.capture.measure.quality import measure_quality, no_quality
from moeprof.capture.protocol import LaunchPlan
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder
from moeprof.core.trace import Schedule, first_requests

OVERHEAD_S = 6.0
OVERHEAD_REQUESTS = 16
Stop = Callable[[], bool]


def overhead(rig: Rig, plan: LaunchPlan, schedule: Schedule, should_stop: Stop) -> int:
    """Table ``overhead``: a bare engine and a watched one on the same weights, in turn. Returns pairs of steps."""
    few = first_requests(schedule, OVERHEAD_REQUESTS, rig.stepped.facts.max_sequence_tokens).as_offline()
    # Both engines get a small cache: sequences of the sample, and no more, so that a second one always fits.
    kv_tokens = int(sum(len(i) + n + 32 for i, n in zip(few.input_ids, few.output_tokens.tolist(), strict=True)))
    settings = replace(plan.own_engine, kv_tokens=min(kv_tokens, rig.stepped.facts.kv_tokens))
    bare = rig.mount_pair(settings)
    rig.capture_for(few, bare)
    with rig.tapping.watching(rig.listeners):
        rig.capture_for(few)
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch)
        recorders: list[Recorder] = [RequestRecorder(into), StepRecorder(into), *rig.tapping.recorders(into)]
        pairs = measure_overhead(
            bare,
            rig.stepped,
            few,
            recorders,
            lambda: rig.tapping.watching(rig.listeners),
            plan.launch_folder,
            max_seconds=OVERHEAD_S,
            should_stop=should_stop,
        )
    bare.close()
    return pairs


def quality(
    rig: Rig, plan: LaunchPlan, schedule: Schedule, output_bytes: list[int | None], should_stop: Stop
) -> dict[str, Any]:
    """Bits per byte of the forced outputs, or why there are none."""
    reason = no_quality(plan.model, schedule)
    if reason is not None:
        return {"reason": reason}
    max_tokens = rig.stepped.facts.max_sequence_tokens
    with rig.without_engine():
        return measure_quality(
            rig.deployment.module, schedule, output_bytes, max_tokens=max_tokens, should_stop=should_stop
        )


def forced_picks(rig: Rig, schedule: Schedule, should_stop: Stop) -> dict[str, Any]:
    """Where the model sends a fixed text: forced.npz beside launch.json, or why there is none."""
    reason = rig.tapping.no_forced_picks
    if reason is not None:
        return {"reason": reason}
    with rig.without_engine():
        return rig.tapping.record_forced_picks(schedule, should_stop)


def gap(rig: Rig, plan: LaunchPlan, schedule: Schedule, warmup: Schedule, should_stop: Stop) -> dict[str, Any]:
    """What a step consists of: its parts, launching, the host."""
    rig.use_batch_tokens(None, warmup)
    tapped = rig.tapping.tapped(rig.listeners)
    return measure_gap(rig.deployment.module, rig.stepped, schedule, tapped, rig.eager_engine, should_stop).to_json()
