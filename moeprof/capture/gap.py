"""Where the time of a step goes: steps of known sizes, timed as the engine runs them, then itemised under a profiler.

Timed steps run exactly as in a pass: captured graphs, run-ahead, the routing tap on. Profiled steps run eagerly, with a
profiler range around every part of the model: on a device the kernels of each part, on a CPU its operations. Compiled
layers are profiled as they were written, because no range opens inside of what is compiled. What the timed step takes
beyond its kernels is launching (between the kernels) and the host (beyond the device's time).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from moeprof.capture.engine.base import Engine, Step
from moeprof.capture.engine.select import prepare_decode
from moeprof.capture.gap_sizes import Size, sizes_of
from moeprof.capture.gap_stages import find_stages, stage_ranges
from moeprof.capture.gap_trace import STEP, profiled_steps
from moeprof.capture.recorders.steps import step_row
from moeprof.capture.routing_tap import RoutingBlock
from moeprof.core.errors import EngineError
from moeprof.core.gap import Clock, Gap, GapPoint, ProfiledStep
from moeprof.core.trace import Schedule

BUDGET_S = {"cpu": 4.0, "cuda": 45.0}
WARM, TIMED, PROFILED = 2, 16, 8
FEWEST, ENOUGH_S = 4, 0.4  # at least so many steps of each kind, then no more after so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Tapped:
    """The routing tap, as the measurement needs it.

    Attributes:
        layers: names of the MoE layers.
        watching: hooks on inside, off outside.
        seen: counts of the forwards since the last call.
    """

    layers: tuple[str, ...]
    watching: Callable[[], AbstractContextManager[object]]
    seen: Callable[[], Sequence[RoutingBlock]]


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
        self.clock = kind
        self.points: dict[Size, GapPoint] = {}
        self.notes: list[str] = []

    def measure(self, engine: Engine, size: Size) -> None:
        """Time a size; itemise it on the way where the engine can be profiled."""
        try:
            with self._tapped.watching():
                prepare_decode(engine, size.num_decoding, size.longest_tokens)
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
        return _point(size, rows, self._tapped.seen()) if rows else None

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
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(file))
            try:  # names of kernels are mangled C++: bytes and control characters of any kind
                trace = json.loads(file.read_text(encoding="utf-8", errors="replace"), strict=False)
            except ValueError as error:
                return f"the profiler's trace cannot be read: {error}"
        return profiled_steps(trace["traceEvents"], self.clock)


def _point(size: Size, rows: Sequence[tuple[float, Step]], blocks: Sequence[RoutingBlock]) -> GapPoint:
    tables = [step_row(step, 0.0) for _, step in rows]
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
    )


def _distinct(blocks: Sequence[RoutingBlock]) -> tuple[float, ...] | None:
    """Experts with a token, per MoE layer, mean over forwards."""
    if not blocks:
        return None
    touched_SL = np.concatenate([(block.counts_SLGE.sum(axis=2) > 0).sum(axis=-1) for block in blocks])
    return tuple(float(x) for x in touched_SL.mean(axis=0))


def _as_written(model: Any) -> AbstractContextManager[Any]:
    """Inside, compiled modules of the model run as they were written."""
    compiled = any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())
    if not compiled:
        return nullcontext()
    return cast("AbstractContextManager[Any]", torch.compiler.set_stance("force_eager"))


def _why(size: Size, error: Exception) -> str:
    return str(error) if isinstance(error, EngineError) else f"{size.name}: out of memory"


def _forget(engine: Engine) -> None:
    engine.drain()
    engine.reset()
