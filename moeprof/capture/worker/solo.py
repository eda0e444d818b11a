"""One model in one process: load, check, warm up, run passes, measure what a launch measures once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from moeprof.capture.devices.peaks import measure_peaks
from moeprof.capture.instrumented import InstrumentedModel, Launched
from moeprof.capture.kernels.modules import cpu_kernel_facts
from moeprof.capture.measure import measurement
from moeprof.capture.measure.invariants import check_pass
from moeprof.capture.measure.warmup import calibrate, warm_up
from moeprof.capture.memory.measure import Watch
from moeprof.capture.memory.out_of_memory import doing
from moeprof.capture.parallel.facts import memory_of_ranks, picks_of_ranks
from moeprof.capture.protocol import Order
from moeprof.capture.recorders.progress import ProgressRecorder
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder, replay
from moeprof.capture.worker.session import Session
from moeprof.core.files import read_json
from moeprof.core.record.headers import part_of, to_json, write_header
from moeprof.core.record.passes import PassHeader
from moeprof.core.record.saturation import judge_requests
from moeprof.core.record.tables import read_table
from moeprof.core.trace import Schedule

CALIBRATION_S = 6.0
PEAKS_S = 1.5


class SoloModel:
    """Orders about one model that is measured alone: passes with all instruments, and what is measured once."""

    def __init__(self, session: Session) -> None:
        self._session, self._plan, self._part = session, session.plan, session.plan.alone
        self._memory: Watch | None = None
        self._prepared = False
        file = self._plan.folder / "launch.json"
        if (self._part.continues or self._part.process) and file.exists():
            session.launch |= read_json(file)  # what an earlier process of this launch learnt stays
        if self._part.process:
            session.launch |= {"resumed": True, "process": self._part.process}
        self.orders: dict[str, Callable[[Order], dict[str, Any]]] = {
            "prepare": self.prepare,
            "pass": self.run_pass,
            "measure": self.measure,
            "note": self.note,
        }

    def prepare(self, order: Order) -> dict[str, Any]:
        """Load, count, check, warm up, calibrate."""
        plan, session = self._plan, self._session
        peaks_wanted = self._part.measure_peaks and self._part.instruments.peaks
        opened = session.open(plan.lanes[0], before_weights=self._measure_peaks if peaks_wanted else lambda: None)
        self._memory = opened.memory
        session.launch |= opened.check_room()
        doing("KV cache")
        self._model = InstrumentedModel(opened, plan, session.should_stop)
        if self._memory is not None:
            self._memory.engine_ready(self._model.stepped.facts.kv_bytes)
        self._model.routing.replay_recorded(session.schedule, self._model.engine, self._model.listeners)
        session.write_facts(opened, plan.lanes[0], self._model.routing.layers)
        session.launch |= {
            "engine": asdict(self._model.engine.facts),
            **opened.launch,
            "threads": torch.get_num_threads(),
            "reloaded": self._part.continues,
            "self_check": self._model.self_check(session.warmup),
        }
        if opened.lacks:
            session.launch["lacks"] = opened.lacks
        self._prepared = True
        self._warm_up()
        self._write()
        return {"engine": self._session.launch["engine"], "self_check": self._session.launch["self_check"]}

    def run_pass(self, order: Order) -> dict[str, Any]:
        """One pass over the schedule with all instruments; writes the pass folder."""
        folder = self._plan.folder / order.name
        schedule = self._session.schedule if order.schedule_file is None else Schedule.load(order.schedule_file)
        schedule = schedule.as_offline() if order.offline else schedule
        self._model.use_batch_tokens(order.max_batch_tokens, self._session.warmup)
        folder.mkdir()
        recorders: list[Recorder] = [
            RequestRecorder(folder),
            StepRecorder(folder, windows=self._model.windows),
            *self._model.routing.recorders(folder),
        ]
        recorders.append(ProgressRecorder(self._session.send, order.name, self._memory))
        gc.collect()
        gc.freeze()  # a collection in the middle of a step would be billed to the model
        # Beside each round; a sweep's many short passes are not judged by it.
        info: dict[str, Any] = {} if "sweep" in order.extra else {"reference_kernel_s": self._session.reference()}
        info |= {"traffic": schedule.pattern, "started_unix_s": time.time(), "status": "started"}
        info |= {"process": self._part.process, **order.extra}
        write_header(folder / "pass.json", part_of(PassHeader, info))
        with self._model.routing.measuring(self._model.listeners):
            doing("capturing decode steps")
            info["captured_steps"] = self._model.capture_for(schedule)
            info["decode"] = getattr(self._model.engine.facts, "decode", None)
            doing(order.name)
            deadline_s, cut_by = _deadline(order)  # a pass has its seconds for itself: capturing takes none of them
            if self._memory is not None:
                self._memory.pass_started()
            watch = self._model.deployment.watch
            if watch is not None:
                watch.begin(folder, schedule)
            result = replay(
                self._model.engine, schedule, recorders, should_stop=self._session.should_stop, deadline_s=deadline_s
            )
        gc.unfreeze()
        info |= {} if watch is None else watch.end()
        self._model.engine.reset()
        info |= {
            "status": result.status,
            "origin_perf_s": result.origin_s,
            "duration_s": result.end_s - result.origin_s,
            "sent": result.sent,
            "refused": result.refused,
            "finished": result.finished,
            "memory": None if self._memory is None else self._memory.pass_ended(),
            "invariants": self._check_pass(folder, schedule, complete=result.status == "done"),
            **picks_of_ranks(folder, self._plan.engine.parallel),
        }
        if result.status == "cut":
            info["cut_by"] = cut_by
        if schedule.waits:
            info["not_sent"] = result.not_sent
        if "sweep" in order.extra:
            told = judge_requests(read_table(folder, "requests"), schedule.pattern, info["duration_s"])
            info["saturation"] = to_json(told)
        write_header(folder / "pass.json", part_of(PassHeader, info))
        return info

    def measure(self, order: Order) -> dict[str, Any]:
        """What is measured once a launch; ``order.name`` says what."""
        row, session = measurement(order.name), self._session
        session.say(row.title)
        launched = Launched(
            model=self._model, plan=self._plan, schedule=session.schedule, warmup=session.warmup,
            output_bytes=order.extra["output_bytes"], should_stop=session.should_stop,
        )  # fmt: skip
        session.launch[row.key] = row.measure(launched)
        self._write()
        return {}

    def note(self, order: Order) -> dict[str, Any]:
        """Write what the parent learnt about this launch into launch.json."""
        self._session.launch |= order.extra
        self._write()
        return {}

    def finish(self) -> None:
        """Take everything off the model. A run that was stopped early has nothing to finish."""
        if not self._prepared:
            return
        self._note_memory()
        self._model.close()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _check_pass(self, folder: Path, schedule: Schedule, *, complete: bool) -> dict[str, Any]:
        """What must add up; nothing does of outputs that end where a server ends them."""
        deployment = self._model.deployment
        if not deployment.tells_steps and not (deployment.fixes_length and schedule.outputs != "free"):
            return {}
        return check_pass(folder, complete=complete, tells_steps=deployment.tells_steps)

    def _measure_peaks(self) -> None:
        """Before the weights, so that its buffers find room; then forget its memory."""
        self._session.say("measuring the device")
        peaks = measure_peaks(self._session.device, torch.get_num_threads(), budget_s=PEAKS_S)
        self._session.launch["peaks"] = peaks.to_json()

    def _warm_up(self) -> None:
        plan, session = self._plan, self._session
        session.say("warming up")
        with self._model.routing.watching(self._model.listeners):
            self._model.capture_for(session.schedule)
            result = warm_up(
                self._model.engine,
                session.warmup,
                plan.folder,
                max_seconds=self._part.warmup.max_seconds,
                should_stop=session.should_stop,
            )
            session.launch["warmup"] = asdict(result)
            if self._model.deployment.tells_steps:
                session.say("calibrating")
                calibrate(
                    self._model.stepped,
                    session.warmup,
                    plan.folder,
                    max_seconds=CALIBRATION_S,
                    should_stop=session.should_stop,
                )
        if self._memory is not None:
            self._memory.warmed_up()
        session.launch["engine"] = asdict(self._model.engine.facts)  # a model that could not be captured says so now
        asked = getattr(plan.engine, "cpu_kernels", "off")
        if asked != "off":
            session.launch["cpu_kernels"] = {"asked": asked} | cpu_kernel_facts(self._model.deployment.module)

    def _note_memory(self) -> None:
        if self._memory is not None:
            self._session.launch |= memory_of_ranks(self._memory.summary(), self._plan.engine.parallel)

    def _write(self) -> None:
        self._note_memory()
        self._session.write()


def _deadline(order: Order) -> tuple[float | None, str]:
    """When to cut the pass, and which setting says so."""
    own = None if order.max_seconds is None else time.perf_counter() + order.max_seconds
    if own is None or (order.deadline_s is not None and order.deadline_s < own):
        return order.deadline_s, "max_minutes"
    return own, "sweep.max_seconds"
