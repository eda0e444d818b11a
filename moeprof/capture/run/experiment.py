"""The experiment: order of launches, rounds and models; the record's header; signals. The parent process, no torch.

Rounds are interleaved across models that fit in memory together (A B, B A, ...), each in its own fresh process; models
that do not fit alternate with reloads. A model that fails is marked and the others go on. Ctrl-C and SIGTERM end the
current pass after its current step and keep what was measured.

What the parent does while a worker carries out one order: samples the machine, passes progress on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from moeprof.capture.devices.meters import Meter
from moeprof.capture.protocol import Command, LaunchPlan, Order, Report
from moeprof.capture.recorders.telemetry import Telemetry
from moeprof.capture.run.context import Audience, Setup
from moeprof.capture.run.lockstep import LockstepRun
from moeprof.capture.run.ranks import opener_of, start_worker
from moeprof.capture.run.resume import sweep_pass_names
from moeprof.capture.run.status import Failures, Header, SignalWatch, has_ended
from moeprof.capture.run.sweep import SweepRun
from moeprof.capture.worker.process import Worker, WorkerFailedError
from moeprof.core.workload.models import ModelSpec


class PassWatch:
    """Watches one order.

    Args:
        worker: who carries it out.
        order: what.
        meters: power and clocks.
        tell: hears model, event and data of every report.
    """

    def __init__(
        self, worker: Worker, order: Order, meters: list[Meter], tell: Callable[[str, str, dict[str, Any]], None]
    ) -> None:
        self._worker, self._order, self._tell = worker, order, tell
        self._telemetry = Telemetry(meters, worker.pid) if order.command == "pass" else None

    def hear(self, report: Report) -> None:
        """Write samples once the pass has begun; pass progress on."""
        if self._telemetry is not None:
            if report.event == "started":
                self._telemetry.begin(self._worker.plan.launch_folder / report.data["pass"], report.data["origin_s"])
            else:
                self._telemetry.note(report.data)
        self._tell(self._worker.plan.model.name, report.event, report.data)

    def close(self) -> None:
        """End sampling."""
        if self._telemetry is not None:
            self._telemetry.close()


QUALITY_CANDIDATES = 256  # the worker takes the first of them that are whole text and fit


class Experiment:
    """Runs a set-up and fills the record."""

    def __init__(self, setup: Setup, header: Header, audience: Audience, signals: SignalWatch) -> None:
        self._setup, self._header, self._audience, self._signals = setup, header, audience, signals
        self._failures = Failures(header, setup.meters, audience.hear)
        self._lockstep = LockstepRun(setup, header, audience, signals)

    def run(self) -> str:
        """All launches; returns ``done``, ``failed`` or ``interrupted``."""
        status = "interrupted"  # stays so when something unforeseen ends the loop
        try:
            for launch in range(self._setup.workload.launches):
                self._launch(launch)
                if self._over:
                    break
            if self._failures.lost_with is not None:
                self._failures.leave_out(spec.name for spec in self._setup.workload.models if self._owes(spec.name))
            status = "interrupted" if self._signals.number else "failed" if self._failures.names else "done"
        finally:
            self._header.finish(status, failed=self._failures.names)
        return status

    @property
    def _stopped(self) -> bool:
        return bool(self._signals.number) or self._failures.lost_with is not None

    @property
    def _over(self) -> bool:
        deadline = self._setup.deadline_s
        return self._stopped or (deadline is not None and time.perf_counter() >= deadline)

    def _owes(self, name: str) -> bool:
        """Whether a model has rounds that did not end."""
        workload, folder = self._setup.workload, self._setup.folder / name
        names = self._pass_names(name, range(workload.rounds))
        launches = [folder / f"launch-{launch}" for launch in range(workload.launches)]
        return not all(has_ended(launch / passed) for launch in launches for passed in names)

    def _launch(self, launch: int) -> None:
        """One launch of each model; which model loads first alternates between launches."""
        models = [spec for spec in self._setup.workload.models if spec.name not in self._failures.names]
        models = models[::-1] if launch % 2 else models
        if self._setup.together:
            self._resident(models, launch)
        else:
            self._reloading(models, launch)
        if not self._stopped:
            self._lockstep.after_rounds(launch, self._failures.names)

    def _resident(self, models: list[ModelSpec], launch: int) -> None:
        """All models live at once; rounds go A B, then B A."""
        workers: dict[str, Worker] = {}
        try:
            for spec in models:
                if self._is_missing(spec.name, launch, range(self._setup.workload.rounds)):
                    workers[spec.name] = start_worker(self._plan(spec, launch), self._setup.workload.watchdog_s)
            for name in list(workers):
                self._try(workers, name, Order(command="prepare"))
            for number in range(self._setup.workload.rounds):
                for name in list(workers)[:: -1 if number % 2 else 1]:
                    self._round(workers, name, number)
            self._after_rounds(workers, launch)
        finally:
            self._close(workers)

    def _reloading(self, models: list[ModelSpec], launch: int) -> None:
        """One model at a time; each round loads it again."""
        for number in range(self._setup.workload.rounds):
            for spec in models[:: -1 if number % 2 else 1]:
                if spec.name in self._failures.names or self._over or not self._is_missing(spec.name, launch, [number]):
                    continue
                plan = self._plan(spec, launch)
                plan = replace(plan, continues=number > 0, measure_peaks=plan.measure_peaks and number == 0)
                workers = {spec.name: start_worker(plan, self._setup.workload.watchdog_s)}
                try:
                    self._try(workers, spec.name, Order(command="prepare"))
                    self._round(workers, spec.name, number)
                    if number == self._setup.workload.rounds - 1:
                        self._after_rounds(workers, launch)
                finally:
                    self._close(workers)

    def _round(self, workers: dict[str, Worker], name: str, number: int) -> None:
        """The workload's own traffic, then the capacity pass of an open-loop run."""
        self._pass(workers, name, f"round-{number}", offline=False)
        if self._has_capacity(name):
            self._pass(workers, name, f"capacity-{number}", offline=True)

    def _has_capacity(self, name: str) -> bool:
        return self._setup.schedules[name].measured.pattern == "open" and self._setup.workload.instruments.capacity

    def _pass(self, workers: dict[str, Worker], name: str, pass_name: str, *, offline: bool) -> None:
        self._carry_out(workers, name, Order(command="pass", name=pass_name, offline=offline))

    def _carry_out(self, workers: dict[str, Worker], name: str, order: Order) -> dict[str, Any] | None:
        """One pass of any kind; None when it was not run."""
        if name not in workers or self._over:
            return None
        resume = self._setup.resume
        earlier = None if resume is None else resume.finished(workers[name].plan.launch_folder / order.name)
        if earlier is not None:
            return earlier
        self._audience.hear(name, "pass", {"pass": order.name, "launch": workers[name].plan.launch_folder.name})
        return self._try(workers, name, replace(order, deadline_s=self._setup.deadline_s))

    def _is_missing(self, name: str, launch: int, rounds: Sequence[int]) -> bool:
        """Whether a process has anything to do in these rounds, or after the last of them."""
        setup, resume = self._setup, self._setup.resume
        if resume is None:
            return True
        names = self._pass_names(name, rounds)
        if setup.workload.rounds - 1 in rounds:
            names += sweep_pass_names(setup.workload.sweep)
            if not all(self._is_known(name, launch, key) for key in self._owed(launch)):
                return True
        return resume.is_missing(setup.folder / name / f"launch-{launch}", names)

    def _pass_names(self, name: str, rounds: Sequence[int]) -> list[str]:
        names = [f"round-{number}" for number in rounds]
        return names + [f"capacity-{number}" for number in rounds] * self._has_capacity(name)

    def _owed(self, launch: int) -> list[str]:
        """Keys of launch.json that are measured after the rounds."""
        instruments = self._setup.workload.instruments
        owed = ["gap"] * (instruments.gap and launch == 0)
        owed += ["quality"] * (instruments.quality and launch == 0)
        owed += ["forced_picks"] * (instruments.forced_picks and launch == 0)
        return owed + ["overhead_pairs"] * instruments.overhead

    def _is_known(self, name: str, launch: int, key: str) -> bool:
        """Whether an earlier process of the run has measured what launch.json calls ``key``."""
        resume = self._setup.resume
        return resume is not None and key in resume.launch(self._setup.folder / name / f"launch-{launch}")

    def _sweep(self, workers: dict[str, Worker]) -> None:
        """Every point of the workload's sweep, if it has one."""
        setup = self._setup
        if setup.workload.sweep is None or self._over:
            return
        SweepRun(
            sweep=setup.workload.sweep,
            points={name: setup.schedules[name].points for name in workers},
            private=setup.private,
            run_pass=lambda name, order: self._carry_out(workers, name, order),
            note=lambda name, extra: self._note(workers, name, extra),
        ).run([name for name in workers if not setup.workload.sweep.models or name in setup.workload.sweep.models])

    def _note(self, workers: dict[str, Worker], name: str, extra: dict[str, Any]) -> None:
        self._try(workers, name, Order(command="note", extra=extra))

    def _after_rounds(self, workers: dict[str, Worker], launch: int) -> None:
        """What belongs to the launch and not to a round: the sweep, quality, the instruments' own cost."""
        self._sweep(workers)
        owed = self._owed(launch)
        orders: tuple[tuple[str, Command], ...] = (
            ("gap", "gap"), ("quality", "quality"), ("forced_picks", "forced_picks"), ("overhead_pairs", "overhead"),
        )  # fmt: skip
        for key, command in orders:
            for name in list(workers):
                if key in owed and not self._over and not self._is_known(name, launch, key):
                    output_bytes = self._setup.schedules[name].output_bytes(QUALITY_CANDIDATES)
                    self._try(workers, name, Order(command=command, extra={"output_bytes": output_bytes}))

    def _try(self, workers: dict[str, Worker], name: str, order: Order) -> dict[str, Any] | None:
        """Give an order; a failing model is marked, its worker ended, and the others go on."""
        if name not in workers or self._stopped:
            return None
        worker = workers[name]
        watch = PassWatch(worker, order, self._setup.meters, self._audience.hear)
        try:
            result = worker.do(order, watch.hear, lambda: bool(self._signals.number))
            if order.command == "pass":
                self._audience.hear(name, "pass_done", {"pass": order.name} | result)
            return result
        except WorkerFailedError as error:
            workers.pop(name).kill()
            if self._signals.number:
                return None  # a signal to the whole group ends workers too: that is no failure of the model
            self._failures.add(name, error, worker.plan.launch_folder / order.name if order.name else None)
        finally:
            watch.close()
        return None

    def _close(self, workers: dict[str, Worker]) -> None:
        for name, worker in workers.items():
            if self._failures.lost_with is not None:
                worker.kill()  # it would wait for a device that does not answer
                continue
            try:
                worker.close(lambda report: None)
            except WorkerFailedError as error:
                self._failures.add(name, error)

    def _plan(self, spec: ModelSpec, launch: int) -> LaunchPlan:
        setup, scheduled = self._setup, self._setup.schedules[spec.name]
        workload = setup.workload
        self._audience.hear(spec.name, "launch", {"launch": launch})
        return LaunchPlan(
            model=spec,
            engine=workload.engine,
            instruments=workload.instruments,
            warmup=workload.warmup,
            device=setup.device,
            threads=workload.threads,
            model_folder=setup.folder / spec.name,
            launch_folder=setup.folder / spec.name / f"launch-{launch}",
            schedule_file=setup.private / scheduled.file_name,
            warmup_file=setup.private / f"warmup-{scheduled.file_name}",
            class_names=scheduled.measured.classes,
            tokenizer_hash=scheduled.tokenizer_hash,
            measure_peaks=launch == 0 and spec is workload.models[0] and not self._is_known(spec.name, launch, "peaks"),
            slowdown=None if setup.slowdown is None else setup.slowdown.of_model(spec.name),
            process=0 if setup.resume is None else setup.resume.process,
            opener=opener_of(workload.engine),
            twin_base=next((other for other in workload.models if other.name == spec.twin_of), None),
        )
