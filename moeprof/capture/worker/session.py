"""One model in one process: load, check, warm up, run passes, measure the instruments' own cost, write launch.json."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from moeprof.capture.devices.peaks import measure_peaks, time_reference
from moeprof.capture.engines import named
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.instrumented import Rig
from moeprof.capture.kernels.modules import cpu_kernel_facts
from moeprof.capture.measure import after_rounds, saturation
from moeprof.capture.measure.invariants import check_pass
from moeprof.capture.measure.warmup import calibrate, warm_up
from moeprof.capture.memory.measure import Watch
from moeprof.capture.memory.out_of_memory import doing
from moeprof.capture.models.moe_layers import layer_shapes
from moeprof.capture.parallel.facts import memory_of_ranks, picks_of_ranks
from moeprof.capture.protocol import LaunchPlan, Order, Report
from moeprof.capture.recorders.progress import ProgressRecorder
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder, replay
from moeprof.capture.routing.popularity import routing_words
from moeprof.core.jsonfile import read_json, write_json
from moeprof.core.trace import Schedule

CALIBRATION_S = 6.0
PEAKS_S = 1.5


class Session:
    """A loaded model with its engine and instruments."""

    def __init__(self, plan: LaunchPlan, should_stop: Callable[[], bool], send: Callable[[Report], None]) -> None:
        self._plan, self._should_stop, self._send = plan, should_stop, send
        self._device = torch.device(plan.device)
        self._launch: dict[str, Any] = {}
        self._prepared = False
        self._memory: Watch | None = None

    def __enter__(self) -> Session:
        plan = self._plan
        if plan.threads is not None:
            torch.set_num_threads(plan.threads)
        plan.launch_folder.mkdir(parents=True, exist_ok=True)
        self._schedule = Schedule.load(plan.schedule_file)
        self._warmup = Schedule.load(plan.warmup_file)
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
        deployment: Deployment = named(plan.opener)(
            plan.model,
            plan.engine,
            self._device,
            base=plan.twin_base,
            warmup=self._warmup,
            before_weights=self._measure_peaks if plan.measure_peaks and plan.instruments.peaks else lambda: None,
        )
        self._memory = deployment.memory
        self._launch |= deployment.check_room()
        doing("KV cache")
        self._rig = Rig(deployment, plan, self._should_stop)
        if self._memory is not None:
            self._memory.engine_ready(self._rig.stepped.facts.kv_bytes)
        self._rig.tapping.replay_recorded(self._schedule, self._rig.engine, self._rig.listeners)
        overridden = routing_words(plan.model.routing, layer_shapes(self._rig.tapping.layers))
        write_json(plan.model_folder / "model.json", deployment.describe(plan.tokenizer_hash, overridden).to_json())
        self._launch |= {
            "engine": asdict(self._rig.engine.facts),
            **deployment.launch,
            "threads": torch.get_num_threads(),
            "reloaded": plan.continues,
            "self_check": self._rig.self_check(self._warmup),
        }
        if deployment.lacks:
            self._launch["lacks"] = deployment.lacks
        self._prepared = True
        self._warm_up()
        self._write()
        return {"engine": self._launch["engine"], "self_check": self._launch["self_check"]}

    def run_pass(self, order: Order) -> dict[str, Any]:
        """One pass over the schedule with all instruments; writes the pass folder."""
        folder = self._plan.launch_folder / order.name
        schedule = self._schedule if order.schedule_file is None else Schedule.load(order.schedule_file)
        schedule = schedule.as_offline() if order.offline else schedule
        self._rig.use_batch_tokens(order.max_batch_tokens, self._warmup)
        folder.mkdir()
        recorders: list[Recorder] = [
            RequestRecorder(folder),
            StepRecorder(folder),
            *self._rig.tapping.recorders(folder),
        ]
        recorders.append(ProgressRecorder(self._send, order.name, self._memory))
        gc.collect()
        gc.freeze()  # a collection in the middle of a step would be billed to the model
        # Beside each round; a sweep's many short passes are not judged by it.
        info: dict[str, Any] = {} if "sweep" in order.extra else {"reference_kernel_s": time_reference(self._device)}
        info |= {"traffic": schedule.pattern, "started_unix_s": time.time(), "status": "started"}
        info |= {"process": self._plan.process, **order.extra}
        write_json(folder / "pass.json", info)
        with self._rig.tapping.measuring(self._rig.listeners):
            doing("capturing decode steps")
            info["captured_steps"] = self._rig.capture_for(schedule)
            info["decode"] = getattr(self._rig.engine.facts, "decode", None)
            doing(order.name)
            deadline_s, cut_by = _deadline(order)  # a pass has its seconds for itself: capturing takes none of them
            if self._memory is not None:
                self._memory.pass_started()
            result = replay(self._rig.engine, schedule, recorders, should_stop=self._should_stop, deadline_s=deadline_s)
        gc.unfreeze()
        self._rig.engine.reset()
        info |= {
            "status": result.status,
            "origin_perf_s": result.origin_s,
            "duration_s": result.end_s - result.origin_s,
            "sent": result.sent,
            "refused": result.refused,
            "finished": result.finished,
            "memory": None if self._memory is None else self._memory.pass_ended(),
            "invariants": check_pass(
                folder, complete=result.status == "done", tells_steps=self._rig.deployment.tells_steps
            ),
            **picks_of_ranks(folder, self._plan.engine.parallel),
        }
        if result.status == "cut":
            info["cut_by"] = cut_by
        if "sweep" in order.extra:
            info["saturation"] = saturation.judge_pass(folder, schedule, info["duration_s"]).to_json()
        write_json(folder / "pass.json", info)
        return info

    def measure_overhead(self, order: Order) -> dict[str, Any]:
        """The instruments' own cost."""
        self._say("overhead")
        reason = self._rig.deployment.why_not("module")
        pairs = 0
        if reason is None:
            pairs = after_rounds.overhead(self._rig, self._plan, self._schedule, self._should_stop)
        return {"pairs": self._learnt("overhead_pairs", pairs)}

    def measure_quality(self, order: Order) -> dict[str, Any]:
        """Bits per byte; ``order.extra`` has the bytes of the outputs' text."""
        self._say("quality")
        bytes_of = order.extra["output_bytes"]
        self._learn(
            "quality",
            lambda: after_rounds.quality(self._rig, self._plan, self._schedule, bytes_of, self._should_stop),
        )
        return {}

    def record_forced_picks(self, order: Order) -> dict[str, Any]:
        """Where the model sends a fixed text."""
        self._say("picks of forced tokens")
        self._learn("forced_picks", lambda: after_rounds.forced_picks(self._rig, self._schedule, self._should_stop))
        return {}

    def measure_gap(self, order: Order) -> dict[str, Any]:
        """Where a step goes."""
        self._say("where a step goes")
        self._learn(
            "gap",
            lambda: after_rounds.gap(self._rig, self._plan, self._schedule, self._warmup, self._should_stop),
        )
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
        self._note_memory()
        self._rig.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _learn(self, key: str, measure_it: Callable[[], dict[str, Any]]) -> None:
        """Measure on the module; where it is not here, launch.json says why there is nothing."""
        reason = self._rig.deployment.why_not("module")
        self._learnt(key, measure_it() if reason is None else {"reason": reason})

    def _learnt(self, key: str, value: Any) -> Any:
        """Put into launch.json."""
        self._launch[key] = value
        self._write()
        return value

    def _measure_peaks(self) -> None:
        """Before the weights, so that its buffers find room; then forget its memory."""
        self._say("measuring the device")
        peaks = measure_peaks(self._device, torch.get_num_threads(), budget_s=PEAKS_S)
        self._launch["peaks"] = peaks.to_json()

    def _warm_up(self) -> None:
        plan = self._plan
        self._say("warming up")
        with self._rig.tapping.watching(self._rig.listeners):
            self._rig.capture_for(self._schedule)
            result = warm_up(
                self._rig.engine,
                self._warmup,
                plan.launch_folder,
                max_seconds=plan.warmup.max_seconds,
                should_stop=self._should_stop,
            )
            self._launch["warmup"] = asdict(result)
            if self._rig.deployment.tells_steps:
                self._say("calibrating")
                calibrate(
                    self._rig.stepped,
                    self._warmup,
                    plan.launch_folder,
                    max_seconds=CALIBRATION_S,
                    should_stop=self._should_stop,
                )
        self._launch["engine"] = asdict(self._rig.engine.facts)  # a model that could not be captured says so now
        asked = getattr(plan.engine, "cpu_kernels", "off")
        if asked != "off":
            self._launch["cpu_kernels"] = {"asked": asked} | cpu_kernel_facts(self._rig.deployment.module)

    def _say(self, what: str) -> None:
        doing(what)
        self._send(Report(event="progress", data={"doing": what}))

    def _note_memory(self) -> None:
        if self._memory is not None:
            self._launch |= memory_of_ranks(self._memory.summary(), self._plan.engine.parallel)

    def _write(self) -> None:
        self._note_memory()
        write_json(self._plan.launch_folder / "launch.json", self._launch)


def _deadline(order: Order) -> tuple[float | None, str]:
    """When to cut the pass, and which setting says so."""
    own = None if order.max_seconds is None else time.perf_counter() + order.max_seconds
    if own is None or (order.deadline_s is not None and order.deadline_s < own):
        return order.deadline_s, "max_minutes"
    return own, "sweep.max_seconds"
