"""What watching costs: the same model with instruments and without, stepped in turn.

Two engines share the weights and run the same requests offline with the same forced tokens, so step i has the same
batch on both sides. A's step i, then B's step i, order alternating: noise of the machine hits both alike. The timed
part of the instrumented side is the whole turn of the loop: forward with the tap's hooks, collecting counts, recorders.

An engine that cannot be built twice on one set of weights runs the requests once bare and once watched, again and
again, order alternating; step i of one is paired with step i of the other. What stays in a compiled graph while nothing
is watched (an operation that keeps nothing) is on both sides, so it is not in this figure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    if model.deployment.module is None:
        return measure_in_passes(launched)
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


def measure_in_passes(launched: Launched) -> int:
    """Table ``overhead`` of one engine: bare and watched passes in turn. Returns pairs of steps."""
    model, plan = launched.model, launched.plan
    engine = model.stepped
    few = first_requests(launched.schedule, OVERHEAD_REQUESTS, engine.facts.max_sequence_tokens).as_offline()
    stream, pairs, deadline = TableStream(plan.folder, "overhead"), 0, time.perf_counter() + OVERHEAD_S
    cycle = 0
    while time.perf_counter() < deadline and not launched.should_stop():
        turns: dict[bool, list[_Turn]] = {}
        for watched in (False, True) if cycle % 2 == 0 else (True, False):
            turns[watched] = _watched_pass(launched, engine, few) if watched else _pass(engine, few, [])
        for bare, other in zip(turns[False], turns[True], strict=False):
            if (bare.phase, bare.tokens) == (other.phase, other.tokens):
                stream.append(_row(pairs, bare, other))
                pairs += 1
        cycle += 1
    stream.close()
    return pairs


def _watched_pass(launched: Launched, engine: Engine, schedule: Schedule) -> list[_Turn]:
    routing, listeners = launched.model.routing, launched.model.listeners
    with Scratch() as scratch, routing.watching(listeners):
        into = scratch.path
        return _pass(engine, schedule, [RequestRecorder(into), StepRecorder(into), *routing.recorders(into)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    """One step and what was done about it."""

    phase: str
    tokens: int
    seconds: float
    cpu_s: float


def _pass(engine: Engine, schedule: Schedule, recorders: Sequence[Recorder]) -> list[_Turn]:
    """All requests at once, to the end of the last."""
    for recorder in recorders:
        recorder.on_start(schedule, time.perf_counter())
    for request in schedule.requests():
        engine.submit(request)
        for recorder in recorders:
            recorder.on_send(request, time.perf_counter(), 0.0, None)
    turns = []
    while True:
        start_s, cpu_s = time.perf_counter(), time.process_time()
        step = engine.step()
        if step is None:
            break
        for recorder in recorders:
            recorder.on_step(step, 0)
        seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        tokens = step.prefill_tokens + step.decode_tokens
        turns.append(_Turn(phase=step.phase, tokens=tokens, seconds=seconds, cpu_s=cpu_s))
    for recorder in recorders:
        recorder.on_end(time.perf_counter())
    engine.reset()
    return turns


def _row(pair: int, bare: _Turn, watched: _Turn) -> dict[str, Any]:
    return {
        "pair": pair, "phase": bare.phase, "tokens": bare.tokens,
        "bare_s": bare.seconds, "instrumented_s": watched.seconds,
        "bare_cpu_s": bare.cpu_s, "instrumented_cpu_s": watched.cpu_s,
    }  # fmt: skip


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
        tokens = step.prefill_tokens + step.decode_tokens
        turns = [
            _Turn(phase=step.phase, tokens=tokens, seconds=results[name][1], cpu_s=results[name][2])
            for name in ("bare", "instrumented")
        ]
        stream.append(_row(pairs, *turns))
        pairs += 1
    return pairs
