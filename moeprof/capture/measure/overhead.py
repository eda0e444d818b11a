"""What watching costs: the same model with instruments and without, stepped in turn.

Two engines share the weights and run the same requests offline with the same forced tokens, so step i has the same
batch on both sides. A's step i, then B's step i, order alternating: noise of the machine hits both alike. The timed
part of the instrumented side is the whole turn of the loop: forward with the tap's hooks, collecting counts, recorders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from moeprof.capture.engines.base import Engine, Step
from moeprof.capture.instrumented import Launched
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.recorders.stream import TableStream
from moeprof.capture.replay import Recorder
from moeprof.core.scratch import Scratch
from moeprof.core.trace import Schedule, first_requests

OVERHEAD_S = 6.0
OVERHEAD_REQUESTS = 16


def measure(launched: Launched) -> int:
    """Table ``overhead``: a bare engine and a watched one on the same weights, in turn. Returns pairs of steps."""
    model, plan = launched.model, launched.plan
    limit = model.stepped.facts.max_sequence_tokens
    few = first_requests(launched.schedule, OVERHEAD_REQUESTS, limit).as_offline()
    # Both engines get a small cache: sequences of the sample, and no more, so that a second one always fits.
    kv_tokens = int(sum(len(i) + n + 32 for i, n in zip(few.input_ids, few.output_tokens.tolist(), strict=True)))
    bare = model.mount_pair(replace(plan.own_engine, kv_tokens=min(kv_tokens, model.stepped.facts.kv_tokens)))

    def watching() -> AbstractContextManager[object]:
        return model.routing.watching(model.listeners)

    model.capture_for(few, bare)
    with watching():
        model.capture_for(few)
    with Scratch() as scratch:
        into = scratch.path
        recorders: list[Recorder] = [RequestRecorder(into), StepRecorder(into), *model.routing.recorders(into)]
        pairs = measure_overhead(
            bare, model.stepped, few, recorders, watching, plan.folder,
            max_seconds=OVERHEAD_S, should_stop=launched.should_stop,
        )  # fmt: skip
    bare.close()
    return pairs


def measure_overhead(
    bare: Engine,
    instrumented: Engine,
    schedule: Schedule,
    recorders: Sequence[Recorder],
    watching: Callable[[], AbstractContextManager[object]],
    folder: Path,
    *,
    max_seconds: float,
    should_stop: Callable[[], bool],
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> int:
    """Write table ``overhead`` (one row per pair of steps); returns the number of pairs.

    ``watching`` switches the hooks on for the instrumented side's turn; switching itself is outside the timed part.
    """
    stream = TableStream(folder, "overhead")
    deadline, pairs = clock() + max_seconds, 0
    origin = clock()
    for recorder in recorders:
        recorder.on_start(schedule, origin)
    while clock() < deadline and not should_stop():
        for request in schedule.requests():
            bare.submit(request)
            instrumented.submit(request)
            for recorder in recorders:
                recorder.on_send(request, clock(), 0.0, None)
        pairs = _one_pass(bare, instrumented, recorders, watching, stream, pairs, deadline, clock, cpu_clock)
        bare.reset()
        instrumented.reset()
    for recorder in recorders:
        recorder.on_end(clock())
    stream.close()
    return pairs


def _one_pass(
    bare: Engine,
    instrumented: Engine,
    recorders: Sequence[Recorder],
    watching: Callable[[], AbstractContextManager[object]],
    stream: TableStream,
    pairs: int,
    deadline: float,
    clock: Callable[[], float],
    cpu_clock: Callable[[], float],
) -> int:
    def plain() -> Step | None:
        return bare.step()

    def watched() -> Step | None:
        step = instrumented.step()
        if step is not None:
            for recorder in recorders:
                recorder.on_step(step, 0)
        return step

    def timed(turn: Callable[[], Step | None]) -> tuple[Step | None, float, float]:
        cpu, start = cpu_clock(), clock()
        step = turn()
        return step, clock() - start, cpu_clock() - cpu

    while clock() < deadline:
        results = {}
        for name in ("bare", "instrumented") if pairs % 2 == 0 else ("instrumented", "bare"):
            if name == "bare":
                results[name] = timed(plain)
            else:
                with watching():
                    results[name] = timed(watched)
        step = results["bare"][0]
        if step is None or results["instrumented"][0] is None:
            break
        stream.append(
            {
                "pair": pairs,
                "phase": step.phase,
                "tokens": step.prefill_tokens + step.decode_tokens,
                "bare_s": results["bare"][1],
                "instrumented_s": results["instrumented"][1],
                "bare_cpu_s": results["bare"][2],
                "instrumented_cpu_s": results["instrumented"][2],
            }
        )
        pairs += 1
    return pairs
