"""One model in one process: load, check, warm up, run passes, measure the instruments' own cost, write launch.json."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from moeprof.capture import memory, saturation
from moeprof.capture.engine.base import Engine, ListenerSet
from moeprof.capture.engine.select import build_engine
from moeprof.capture.gap import measure_gap
from moeprof.capture.invariants import check_pass
from moeprof.capture.open_model import facts_of, open_model
from moeprof.capture.overhead import measure_overhead
from moeprof.capture.peaks import measure_peaks
from moeprof.capture.plan import LaunchPlan, Order, Report
from moeprof.capture.progress import ProgressRecorder
from moeprof.capture.quality import measure_quality, no_quality
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.reference_kernel import time_reference
from moeprof.capture.replay import Recorder, replay
from moeprof.capture.slowdown import slowed
from moeprof.capture.tapping import Tapping
from moeprof.capture.warmup import calibrate, warm_up
from moeprof.core.record import read_json, write_json
from moeprof.core.schedule_rows import first_requests
from moeprof.core.trace import Schedule
from moeprof.core.workload import EngineSettings

CALIBRATION_S = 6.0
OVERHEAD_S = 6.0
PEAKS_S = 1.5
OVERHEAD_REQUESTS = 16
WARM_AGAIN_REQUESTS = 4


class Session:
    """A loaded model with its engine and instruments."""

    def __init__(self, plan: LaunchPlan, should_stop: Callable[[], bool], send: Callable[[Report], None]) -> None:
        self._plan, self._should_stop, self._send = plan, should_stop, send
        self._device = torch.device(plan.device)
        self._launch: dict[str, Any] = {}
        self._prepared = False

    def __enter__(self) -> Session:
        plan = self._plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        plan.launch_folder.mkdir(parents=True, exist_ok=True)
        self._schedule = Schedule.load(plan.schedule_file)
        self._warmup = Schedule.load(plan.warmup_file)
        self._memory = memory.Watch(self._device)
        file = plan.launch_folder / "launch.json"
        if (plan.continues or plan.process) and file.exists():
            self._launch = read_json(file)  # what an earlier process of this launch learnt stays
        if plan.process:
            self._launch |= {"resumed": True, "process": plan.process}
        return self

    def __exit__(self, *exception: object) -> None:
        write_json(self._plan.launch_folder / "launch.json", self._launch)

    # -- orders ----------------------------------------------------------------------------------------------------

    def prepare(self, order: Order) -> dict[str, Any]:
        """Load, count, check, warm up, calibrate."""
        plan = self._plan
        self._say("loading")
        opened = open_model(
            plan.model,
            plan.twin_base,
            plan.engine,
            self._device,
            warmup=self._warmup,
            before_weights=self._measure_peaks if plan.measure_peaks and plan.instruments.peaks else None,
        )
        self._model = opened.model
        if opened.load_holds_more:
            self._memory.forget_peak()
        self._memory.loaded()
        self._tapping = Tapping(self._model, plan)
        self._listeners = ListenerSet()
        self._engine = self._build(plan.engine)
        self._batch_tokens = plan.engine.max_batch_tokens
        self._memory.engine_ready(self._engine.facts.kv_bytes)
        self._tapping.replay_recorded(self._schedule, self._engine, self._listeners)
        facts = facts_of(opened, plan.model, plan.tokenizer_hash)
        write_json(plan.model_folder / "model.json", facts.to_json())
        self._launch |= {
            "engine": asdict(self._engine.facts),
            "dtype_reason": opened.blueprint.dtype_reason,
            "load_s": opened.load_s,
            "threads": torch.get_num_threads(),
            "reloaded": plan.continues,
            "self_check": self._tapping.self_check(self._engine, self._listeners, self._warmup),
        }
        self._prepared = True
        self._warm_up()
        self._write()
        return {"engine": self._launch["engine"], "self_check": self._launch["self_check"]}

    def run_pass(self, order: Order) -> dict[str, Any]:
        """One pass over the schedule with all instruments; writes the pass folder."""
        folder = self._plan.launch_folder / order.name
        schedule = self._schedule if order.schedule_file is None else Schedule.load(order.schedule_file)
        schedule = schedule.as_offline() if order.offline else schedule
        self._use_batch_tokens(order.max_batch_tokens or self._plan.engine.max_batch_tokens)
        folder.mkdir()
        recorders: list[Recorder] = [RequestRecorder(folder), StepRecorder(folder), *self._tapping.recorders(folder)]
        recorders.append(ProgressRecorder(self._send, order.name, self._memory))
        gc.collect()
        gc.freeze()  # a collection in the middle of a step would be billed to the model
        # Beside each round; a sweep's many short passes are not judged by it.
        info: dict[str, Any] = {} if "sweep" in order.extra else {"reference_kernel_s": time_reference(self._device)}
        info |= {"traffic": schedule.pattern, "started_unix_s": time.time(), "status": "started"}
        info |= {"process": self._plan.process, **order.extra}
        write_json(folder / "pass.json", info)
        deadline_s, cut_by = _deadline(order)
        with self._tapping.measuring(self._listeners):
            result = replay(self._engine, schedule, recorders, should_stop=self._should_stop, deadline_s=deadline_s)
        gc.unfreeze()
        self._engine.reset()
        info |= {
            "status": result.status,
            "origin_perf_s": result.origin_s,
            "duration_s": result.end_s - result.origin_s,
            "sent": result.sent,
            "refused": result.refused,
            "finished": result.finished,
            "memory": self._memory.pass_ended(),
            "invariants": check_pass(folder, complete=result.status == "done"),
        }
        if result.status == "cut":
            info["cut_by"] = cut_by
        if "sweep" in order.extra:
            info["saturation"] = saturation.judge_pass(folder, schedule, info["duration_s"]).to_json()
        write_json(folder / "pass.json", info)
        return info

    def measure_overhead(self, order: Order) -> dict[str, Any]:
        """The instruments' own cost, in lock-step with a bare engine on the same weights."""
        plan = self._plan
        few = first_requests(self._schedule, OVERHEAD_REQUESTS, self._engine.facts.max_sequence_tokens).as_offline()
        # Both engines get a small cache: sequences of the sample, and no more, so that a second one always fits.
        kv_tokens = int(sum(len(i) + n + 32 for i, n in zip(few.input_ids, few.output_tokens.tolist(), strict=True)))
        settings = replace(plan.engine, kv_tokens=min(kv_tokens, self._engine.facts.kv_tokens))
        self._engine.close()
        bare = build_engine(self._model, settings, ListenerSet(self._tapping.always))
        self._engine = watched = build_engine(self._model, settings, self._listeners)
        self._say("overhead")
        with tempfile.TemporaryDirectory() as scratch:
            into = Path(scratch)
            recorders: list[Recorder] = [RequestRecorder(into), StepRecorder(into), *self._tapping.recorders(into)]
            pairs = measure_overhead(
                bare,
                watched,
                few,
                recorders,
                lambda: self._tapping.watching(self._listeners),
                plan.launch_folder,
                max_seconds=OVERHEAD_S,
                should_stop=self._should_stop,
            )
        bare.close()
        self._launch["overhead_pairs"] = pairs
        self._write()
        return {"pairs": pairs}

    def measure_quality(self, order: Order) -> dict[str, Any]:
        """Bits per byte of the forced outputs; ``order.extra`` has the bytes of their text."""
        reason = no_quality(self._plan.model, self._schedule)
        if reason is None:
            self._say("quality")
            max_tokens = self._engine.facts.max_sequence_tokens
            with self._without_engine():
                found = measure_quality(
                    self._model,
                    self._schedule,
                    order.extra["output_bytes"],
                    max_tokens=max_tokens,
                    should_stop=self._should_stop,
                )
        self._launch["quality"] = found if reason is None else {"reason": reason}
        self._write()
        return {}

    def record_forced_picks(self, order: Order) -> dict[str, Any]:
        """Where the model sends a fixed text: forced.npz beside launch.json."""
        reason = self._tapping.no_forced_picks
        if reason is None:
            self._say("picks of forced tokens")
            with self._without_engine():
                found = self._tapping.record_forced_picks(self._schedule, self._should_stop)
        self._launch["forced_picks"] = found if reason is None else {"reason": reason}
        self._write()
        return {}

    def measure_gap(self, order: Order) -> dict[str, Any]:
        """What a step consists of: its parts, launching, the host."""
        self._say("where a step goes")
        self._use_batch_tokens(self._plan.engine.max_batch_tokens)
        tapped, schedule = self._tapping.tapped(self._listeners), self._schedule
        found = measure_gap(self._model, self._engine, schedule, tapped, self._eager_engine, self._should_stop)
        self._launch["gap"] = found.to_json()
        self._write()
        return {}

    def note(self, order: Order) -> dict[str, Any]:
        """Write what the parent learnt about this launch into launch.json."""
        self._launch |= order.extra
        self._write()
        return {}

    def finish(self) -> None:
        """Remove hooks, write what the launch learnt. A run that was stopped early has nothing to finish."""
        if not self._prepared:
            return
        self._launch["memory"] = self._memory.summary()
        self._tapping.close()
        self._engine.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _build(self, settings: EngineSettings) -> Engine:
        return slowed(build_engine(self._model, settings, self._listeners), self._plan.slowdown)

    @contextmanager
    def _without_engine(self) -> Iterator[None]:
        """The bare model inside, a new engine with the workload's settings afterwards."""
        self._engine.close()
        yield
        self._engine = self._build(self._plan.engine)
        self._batch_tokens = self._plan.engine.max_batch_tokens

    @contextmanager
    def _eager_engine(self) -> Iterator[Engine]:
        """An engine of which Python launches every operation, as a profiler needs it."""
        settings = replace(self._plan.engine, decode_graphs="off", run_ahead="off", compile="off")
        with self._without_engine(), closing(self._build(settings)) as eager:
            yield eager

    def _use_batch_tokens(self, max_batch_tokens: int) -> None:
        """Build the engine again where a sweep asks for another step size; a few warm-up requests, then it counts."""
        if max_batch_tokens == self._batch_tokens:
            return
        self._engine.close()
        self._batch_tokens = max_batch_tokens
        self._engine = self._build(replace(self._plan.engine, max_batch_tokens=max_batch_tokens))
        few = first_requests(self._warmup, WARM_AGAIN_REQUESTS, self._engine.facts.max_sequence_tokens).as_offline()
        replay(self._engine, few, [], should_stop=self._should_stop)
        self._engine.reset()

    def _measure_peaks(self) -> None:
        """Before the weights, so that its buffers find room; then forget its memory."""
        self._say("measuring the device")
        peaks = measure_peaks(self._device, torch.get_num_threads(), budget_s=PEAKS_S)
        self._launch["peaks"] = peaks.to_json()
        self._memory.forget_peak()

    def _warm_up(self) -> None:
        plan = self._plan
        self._say("warming up")
        with self._tapping.watching(self._listeners):
            result = warm_up(
                self._engine,
                self._warmup,
                plan.launch_folder,
                max_seconds=plan.warmup.max_seconds,
                should_stop=self._should_stop,
            )
            self._launch["warmup"] = asdict(result)
            self._say("calibrating")
            calibrate(
                self._engine, self._warmup, plan.launch_folder, max_seconds=CALIBRATION_S, should_stop=self._should_stop
            )

    def _say(self, what: str) -> None:
        self._send(Report(event="progress", data={"doing": what}))

    def _write(self) -> None:
        self._launch["memory"] = self._memory.summary()
        write_json(self._plan.launch_folder / "launch.json", self._launch)


def _deadline(order: Order) -> tuple[float | None, str]:
    """When to cut the pass, and which setting says so."""
    own = None if order.max_seconds is None else time.perf_counter() + order.max_seconds
    if own is None or (order.deadline_s is not None and order.deadline_s < own):
        return order.deadline_s, "max_minutes"
    return own, "sweep.max_seconds"
