"""Where the time of a step goes: steps of known sizes, timed as the engine runs them, then itemised under a profiler.

Timed steps run exactly as in a pass: captured graphs, run-ahead, the routing tap on. Profiled steps run eagerly, with a
profiler range around every part of the model: on a device the kernels of each part, on a CPU its operations. Compiled
layers are profiled as they were written, because no range opens inside of what is compiled. What the timed step takes
beyond its kernels is launching (between the kernels) and the host (beyond the device's time).

Steps of a known size: decode at some batch sizes, and one full prefill step, on text of the workload.

Contexts are as long as the workload's typical sequence halfway through its answer. Prompts and forced outputs are cut
from the schedule's own token ids, strung together, so routers see the text that they are measured on.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from moeprof.capture import compat
from moeprof.capture.engines.base import Engine, Step
from moeprof.capture.instrumented import Launched, Tapped
from moeprof.capture.measure.breakdown_trace import STEP, find_stages, profiled_steps, stage_ranges
from moeprof.capture.models.attention import windows_of
from moeprof.capture.recorders.steps import step_row
from moeprof.capture.routing.count import RoutingBlock
from moeprof.core.errors import EngineError
from moeprof.core.record.breakdown import Clock, Gap, GapPoint, ProfiledStep
from moeprof.core.record.headers import to_json
from moeprof.core.scratch import Scratch
from moeprof.core.trace import Request, Schedule

BATCHES = (1, 8, 32, 64)
SHORTEST_PROMPT = 4
SPARE_TOKENS = 16  # of each sequence's cache: page ends, steps that are launched ahead


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Size:
    """Requests that make steps of one size.

    Attributes:
        phase: ``decode`` or ``prefill``.
        requests: sent together.
    """

    phase: Literal["decode", "prefill"]
    requests: tuple[Request, ...]

    @property
    def name(self) -> str:
        """For people: ``decode of 8``."""
        return f"{self.phase} of {len(self.requests)}"

    @property
    def num_decoding(self) -> int:
        """Sequences of a decode step; 1 where none is wanted."""
        return len(self.requests) if self.phase == "decode" else 1

    @property
    def longest_tokens(self) -> int:
        """The longest sequence."""
        return max(len(request.input_ids) + request.output_tokens for request in self.requests)

    def start(self, engine: Engine) -> None:
        """Bring the engine to where every next step is of this size.

        Raises:
            EngineError: the sequences never decode all at once.
        """
        if self.phase == "prefill":
            return
        self._submit(engine)
        while (step := engine.step()) is not None:
            if step.phase == "decode" and len(step.sequences) == len(self.requests):
                return
            if any(sequence.finished for sequence in step.sequences):
                break
        raise EngineError(f"{self.name}: the engine does not hold so many sequences at once")

    def ready(self, engine: Engine) -> None:
        """Just before a step, outside of what is timed."""
        if self.phase == "prefill":
            while engine.step() is not None:
                pass  # what the last one left over: prompts that did not fit into one step
            engine.reset()  # or a prefix cache would hold these prompts already
            self._submit(engine)

    def fits(self, step: Step) -> bool:
        """Whether a step is of this size."""
        return step.phase == self.phase and (self.phase == "prefill" or len(step.sequences) == len(self.requests))

    def _submit(self, engine: Engine) -> None:
        for request in self.requests:
            engine.submit(request)


def sizes_of(engine: Engine, schedule: Schedule, num_steps: int) -> Iterator[Size | str]:
    """The sizes to measure, cheap ones first; a sentence where one does not fit the engine.

    Args:
        engine: its facts bound batches and lengths.
        schedule: the workload's requests.
        num_steps: decode steps that are wanted of each size.
    """
    if not len(schedule) or not any(len(ids) for ids in schedule.input_ids):
        yield "the schedule has no text to make steps of"
        return
    largest = schedule.concurrency or len(schedule)
    batches = sorted({batch for batch in BATCHES if batch <= largest} | ({largest} if largest < BATCHES[-1] else set()))
    for number, batch in enumerate(batches):
        yield _decode(engine, schedule, batch, num_steps)
        if number == min(1, len(batches) - 1):
            yield _prefill(engine, schedule)


def _decode(engine: Engine, schedule: Schedule, batch: int, num_steps: int) -> Size | str:
    facts = engine.facts
    typical = int(np.median(schedule.input_tokens) + np.median(schedule.output_tokens) / 2)
    prefill_steps = -(-batch * typical // facts.max_batch_tokens)
    outputs = num_steps + prefill_steps + SPARE_TOKENS
    room = min(facts.kv_tokens // batch - SPARE_TOKENS, facts.max_sequence_tokens) - outputs
    if facts.batching == "static":  # all prompts of a batch go through in one forward
        room = min(room, facts.max_batch_tokens // batch)
    prompt = min(typical, room)
    if batch > facts.max_batch_tokens or prompt < SHORTEST_PROMPT:
        return f"decode of {batch}: does not fit the KV cache or the step size"
    return Size(phase="decode", requests=tuple(_request(schedule, number, prompt, outputs) for number in range(batch)))


def _prefill(engine: Engine, schedule: Schedule) -> Size | str:
    """One step of as many prompt tokens as a step may hold, in prompts of the workload's median length."""
    facts = engine.facts
    tokens = min(facts.max_batch_tokens, facts.kv_tokens - SPARE_TOKENS * 2)
    prompt = min(max(1, int(np.median(schedule.input_tokens))), facts.max_sequence_tokens - 1, tokens)
    if prompt < 1:
        return "prefill: a prompt does not fit the engine"
    count = max(1, min(tokens // prompt, facts.kv_tokens // (prompt + SPARE_TOKENS)))
    return Size(phase="prefill", requests=tuple(_request(schedule, number, prompt, 1) for number in range(count)))


def _request(schedule: Schedule, number: int, prompt: int, outputs: int) -> Request:
    """Token ids from request ``number`` of the schedule on, one request's text after the other."""
    ids = list(islice(_stream(schedule, number % len(schedule)), prompt + outputs))
    return Request(
        index=number,
        request_id=f"gap-{number}",
        arrival_s=0.0,
        input_ids=ids[:prompt],
        output_tokens=outputs,
        output_ids=ids[prompt:],
        request_class=schedule.request_class[number % len(schedule)],
    )


def _stream(schedule: Schedule, first: int) -> Iterator[int]:
    for row in cycle((*range(first, len(schedule)), *range(first))):
        yield from schedule.input_ids[row].tolist()
        if schedule.output_ids is not None:
            yield from schedule.output_ids[row].tolist()


BUDGET_S = {"cpu": 4.0, "cuda": 45.0}
WARM, TIMED, PROFILED = 2, 16, 8
FEWEST, ENOUGH_S = 4, 0.4  # at least so many steps of each kind, then no more after so long


def measure(launched: Launched) -> dict[str, Any]:
    """What a step consists of: its parts, launching, the host."""
    model = launched.model
    model.use_batch_tokens(None, launched.warmup)
    tapped, module = model.routing.tapped(model.listeners), model.deployment.module
    found = measure_gap(module, model.stepped, launched.schedule, tapped, model.eager_engine, launched.should_stop)
    return to_json(found)


def measure_gap(
    model: Any,
    engine: Engine,
    schedule: Schedule,
    tapped: Tapped,
    eager: Callable[[], AbstractContextManager[Engine]],
    should_stop: Callable[[], bool] = lambda: False,
    *,
    max_seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Gap:
    """Time and itemise steps of several sizes; sizes that would take too long are left out with a note.

    Args:
        model: the engine's model; hooks are on it only while it is profiled.
        engine: as configured; it is reset.
        schedule: the workload's requests.
        tapped: the routing tap.
        eager: gives an engine in which Python launches every operation; asked only where ``engine`` is none.
        should_stop: ends the measurement after the step under way.
        max_seconds: about how long to take; None is by device.
        clock: seconds.
    """
    started = clock()
    cuda = torch.device(engine.facts.device).type == "cuda"
    budget_s = max_seconds if max_seconds is not None else BUDGET_S["cuda" if cuda else "cpu"]
    found = _Found(model, tapped, "kernels" if cuda else "operations", should_stop, clock)
    cost_s = dict.fromkeys(("decode", "prefill"), 0.0)
    for size in sizes_of(engine, schedule, WARM + TIMED + PROFILED):
        if isinstance(size, str):
            found.notes.append(size)
            continue
        before, grows = clock(), math.sqrt(len(size.requests))  # a step costs less than its batch
        if before + cost_s[size.phase] * grows > started + budget_s or should_stop():
            found.notes.append(f"{size.name}: left out, no time for it in {budget_s:g} s")
            continue
        found.measure(engine, size)
        cost_s[size.phase] = (clock() - before) / grows
    if not _is_eager(engine) and not should_stop():
        with eager() as other:
            for size in list(found.points):
                if not should_stop():
                    found.itemise(other, size)
    return Gap(
        clock=found.clock,
        layers=tapped.layers,
        points=tuple(found.points.values()),
        spent_s=clock() - started,
        notes=tuple(found.notes),
    )


def _is_eager(engine: Engine) -> bool:
    facts = engine.facts
    return facts.decode == "eager" and facts.compiled is None and not facts.run_ahead


class _Found:
    """What was measured so far."""

    def __init__(
        self, model: Any, tapped: Tapped, kind: Clock, should_stop: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._model, self._tapped, self._should_stop, self._clock = model, tapped, should_stop, clock
        self._stages = find_stages(model)
        self._windows = windows_of(model)
        self.clock = kind
        self.points: dict[Size, GapPoint] = {}
        self.notes: list[str] = []

    def measure(self, engine: Engine, size: Size) -> None:
        """Time a size; itemise it on the way where the engine can be profiled."""
        try:
            with self._tapped.watching():
                engine.prepare(size.num_decoding, size.longest_tokens)
                size.start(engine)
                point = self._timed(engine, size)
            if point is None:
                self.notes.append(f"{size.name}: no step was of that size")
                return
            self.points[size] = self._itemised(engine, size, point) if _is_eager(engine) else point
        except (EngineError, torch.OutOfMemoryError) as error:
            self.notes.append(_why(size, error))
        finally:
            _forget(engine)

    def itemise(self, engine: Engine, size: Size) -> None:
        """Itemise a size that was timed on another engine."""
        try:
            size.start(engine)
            self.points[size] = self._itemised(engine, size, self.points[size])
        except (EngineError, torch.OutOfMemoryError) as error:
            self.points[size] = replace(self.points[size], reason=_why(size, error))
        finally:
            _forget(engine)

    def _timed(self, engine: Engine, size: Size) -> GapPoint | None:
        for _ in range(WARM):
            size.ready(engine)
            engine.step()
        self._tapped.seen()
        rows: list[tuple[float, Step]] = []
        until = self._clock() + ENOUGH_S
        for number in range(TIMED):
            if self._should_stop() or (number >= FEWEST and self._clock() >= until):
                break
            size.ready(engine)
            start_s = self._clock()
            step = engine.step()
            if step is not None and size.fits(step):
                rows.append((self._clock() - start_s, step))
        return _point(size, rows, self._tapped.seen(), self._windows) if rows else None

    def _itemised(self, engine: Engine, size: Size, point: GapPoint) -> GapPoint:
        try:
            with stage_ranges(self._model, self._stages), _as_written(self._model):
                steps = self._profiled(engine, size)
        except RuntimeError as error:
            steps = f"profiling failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        return replace(point, reason=steps) if isinstance(steps, str) else replace(point, profiled_P=tuple(steps))

    def _profiled(self, engine: Engine, size: Size) -> list[ProfiledStep] | str:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library talks on stderr
        on_device = self.clock == "kernels"
        until = self._clock() + ENOUGH_S
        with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_device]) as profiler:
            for number in range(PROFILED):
                if number >= FEWEST and self._clock() >= until:
                    break
                size.ready(engine)
                with record_function(STEP):
                    engine.step()
            if on_device:
                torch.cuda.synchronize()
        with Scratch() as scratch:
            file = scratch.path / "trace.json"
            profiler.export_chrome_trace(str(file))
            try:  # names of kernels are mangled C++: bytes and control characters of any kind
                trace = json.loads(file.read_text(encoding="utf-8", errors="replace"), strict=False)
            except ValueError as error:
                return f"the profiler's trace cannot be read: {error}"
        return profiled_steps(trace["traceEvents"], self.clock)


def _point(
    size: Size, rows: Sequence[tuple[float, Step]], blocks: Sequence[RoutingBlock], windows: Sequence[int]
) -> GapPoint:
    tables = [step_row(step, 0.0, windows) for _, step in rows]

    def mean(column: str) -> tuple[float, ...]:
        return tuple(np.mean([row[column] for row in tables], axis=0).tolist()) if windows else ()

    device = [step.device_s for _, step in rows if step.device_s is not None]
    first = tables[0]
    return GapPoint(
        phase=size.phase,
        sequences=first["num_requests"],
        tokens=first["prefill_tokens"] + first["decode_tokens"],
        new_tokens=first["new_tokens"],
        context_tokens=float(np.mean([row["context_tokens"] for row in tables])),
        attention_pairs=float(np.mean([row["attention_pairs"] for row in tables])),
        distinct_L=_distinct(blocks),
        wall_S=tuple(wall_s for wall_s, _ in rows),
        device_S=tuple(device) if len(device) == len(rows) else None,
        window_context_W=mean("window_context_tokens"),
        window_pairs_W=mean("window_attention_pairs"),
    )


def _distinct(blocks: Sequence[RoutingBlock]) -> tuple[float, ...] | None:
    """Experts with a token, per MoE layer, mean over forwards."""
    if not blocks:
        return None
    touched_SL = np.concatenate([(block.counts_SLGE.sum(axis=2) > 0).sum(axis=-1) for block in blocks])
    return tuple(float(x) for x in touched_SL.mean(axis=0))


def _as_written(model: Any) -> AbstractContextManager[Any]:
    """Inside, compiled modules of the model run as they were written."""
    compiled = any(compat.is_compiled(module) for module in model.modules())
    if not compiled:
        return nullcontext()
    return cast("AbstractContextManager[Any]", torch.compiler.set_stance("force_eager"))


def _why(size: Size, error: Exception) -> str:
    return str(error) if isinstance(error, EngineError) else f"{size.name}: out of memory"


def _forget(engine: Engine) -> None:
    engine.drain()
    engine.reset()
