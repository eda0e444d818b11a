"""The experiment: order of launches, rounds and models; the run status; signals. The parent process, no torch.

Rounds are interleaved across models that fit in memory together (A B, B A, ...), each in its own fresh process; models
that do not fit alternate with reloads. A model that fails is marked and the others go on. Ctrl-C and SIGTERM end the
current pass after its current step and keep what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from moeprof.capture.devices.process import STORAGE_FULL
from moeprof.capture.measure import owed
from moeprof.capture.protocol import LanePlan, OnReport, Order, Report, SoloPart, WorkerPlan
from moeprof.capture.recorders.telemetry import Telemetry
from moeprof.capture.run.context import ProgressListener, Setup
from moeprof.capture.run.lockstep import LockstepRun
from moeprof.capture.run.ranks import opener_of, start_worker
from moeprof.capture.run.resume import sweep_pass_names
from moeprof.capture.run.status import Failures, RunStatus, has_ended
from moeprof.capture.run.sweep import SweepRun
from moeprof.capture.worker.process import Worker, WorkerFailedError
from moeprof.core.errors import StorageError
from moeprof.core.record.headers import read_header, to_json
from moeprof.core.record.passes import PassHeader
from moeprof.core.signals import SignalWatch
from moeprof.core.workload.models import ModelSpec

QUALITY_CANDIDATES = 256  # the worker takes the first of them that are whole text and fit


class Experiment:
    """Runs a set-up and fills the record."""

    def __init__(self, setup: Setup, run_status: RunStatus, listener: ProgressListener, signals: SignalWatch) -> None:
        self._setup, self._run_status, self._listener, self._signals = setup, run_status, listener, signals
        self._failures = Failures(run_status, setup.meters, listener.on_event)
        self._lockstep = LockstepRun(setup, run_status, listener, signals)

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
            self._run_status.finish(status, failed=self._failures.names)
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
        names = self._pass_names(name, range(workload.num_rounds))
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
            self._lockstep.measure(launch, self._failures.names)

    def _resident(self, models: list[ModelSpec], launch: int) -> None:
        """All models live at once; rounds go A B, then B A."""
        workers: dict[str, Worker] = {}
        try:
            for spec in models:
                if self._is_missing(spec.name, launch, range(self._setup.workload.num_rounds)):
                    workers[spec.name] = start_worker(self._plan(spec, launch), self._setup.workload.watchdog_s)
            for name in list(workers):
                self._try(workers, name, Order(command="prepare"))
            for number in range(self._setup.workload.num_rounds):
                for name in list(workers)[:: -1 if number % 2 else 1]:
                    self._round(workers, name, number)
            self._measure(workers, launch)
        finally:
            self._close(workers)

    def _reloading(self, models: list[ModelSpec], launch: int) -> None:
        """One model at a time; each round loads it again."""
        for number in range(self._setup.workload.num_rounds):
            for spec in models[:: -1 if number % 2 else 1]:
                if spec.name in self._failures.names or self._over or not self._is_missing(spec.name, launch, [number]):
                    continue
                plan = self._plan(spec, launch)
                peaks = plan.alone.measure_peaks and number == 0
                plan = replace(plan, solo=replace(plan.alone, continues=number > 0, measure_peaks=peaks))
                workers = {spec.name: start_worker(plan, self._setup.workload.watchdog_s)}
                try:
                    self._try(workers, spec.name, Order(command="prepare"))
                    self._round(workers, spec.name, number)
                    if number == self._setup.workload.num_rounds - 1:
                        self._measure(workers, launch)
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
        resume, folder = self._setup.resume, workers[name].plan.folder / order.name
        if resume is not None and resume.is_finished(folder):
            return to_json(read_header(folder / "pass.json", PassHeader))
        self._listener.on_event(name, "pass", {"pass": order.name, "launch": workers[name].plan.folder.name})
        return self._try(workers, name, replace(order, deadline_s=self._setup.deadline_s))

    def _is_missing(self, name: str, launch: int, rounds: Sequence[int]) -> bool:
        """Whether a process has anything to do in these rounds, or after the last of them."""
        setup, resume = self._setup, self._setup.resume
        if resume is None:
            return True
        names = self._pass_names(name, rounds)
        if setup.workload.num_rounds - 1 in rounds:
            names += sweep_pass_names(setup.workload.sweep)
            if not all(self._is_known(name, launch, row.key) for row in owed(setup.workload.instruments, launch)):
                return True
        return resume.is_missing(setup.folder / name / f"launch-{launch}", names)

    def _pass_names(self, name: str, rounds: Sequence[int]) -> list[str]:
        names = [f"round-{number}" for number in rounds]
        return names + [f"capacity-{number}" for number in rounds] * self._has_capacity(name)

    def _is_known(self, name: str, launch: int, key: str) -> bool:
        """Whether an earlier process of the run has measured what launch.json calls ``key``."""
        resume = self._setup.resume
        return resume is not None and resume.launch(self._setup.folder / name / f"launch-{launch}").knows(key)

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

    def _measure(self, workers: dict[str, Worker], launch: int) -> None:
        """What belongs to the launch and not to a round: the sweep, and what is measured once."""
        self._sweep(workers)
        for row in owed(self._setup.workload.instruments, launch):
            for name in list(workers):
                if not self._over and not self._is_known(name, launch, row.key):
                    output_bytes = self._setup.schedules[name].output_bytes(QUALITY_CANDIDATES)
                    self._try(
                        workers, name, Order(command="measure", name=row.name, extra={"output_bytes": output_bytes})
                    )

    def _try(self, workers: dict[str, Worker], name: str, order: Order) -> dict[str, Any] | None:
        """Give an order; a failing model is marked, its worker ended, and the others go on."""
        if name not in workers or self._stopped:
            return None
        worker = workers[name]
        try:
            with self._sampled(worker, order) as on_report:
                result = worker.do(order, on_report, lambda: bool(self._signals.number))
            if order.command == "pass":
                self._listener.on_event(name, "pass_done", {"pass": order.name} | result)
            return result
        except WorkerFailedError as error:
            workers.pop(name).kill()
            if error.reason == STORAGE_FULL:
                for other in workers.values():
                    other.kill()  # what it would write now has no place either
                raise StorageError(str(error)) from error
            if self._signals.number:
                return None  # a signal to the whole group ends workers too: that is no failure of the model
            self._failures.add(name, error, worker.plan.folder / order.name if order.name else None)
        return None

    @contextmanager
    def _sampled(self, worker: Worker, order: Order) -> Iterator[OnReport]:
        """Takes reports: the machine is sampled from where a pass begins, and the listener gets all of them."""
        telemetry = Telemetry(self._setup.meters, worker.pid) if order.command == "pass" else None

        def on_report(report: Report) -> None:
            if telemetry is not None and report.event == "started":
                telemetry.begin(worker.plan.folder / report.data["pass"], report.data["origin_s"])
            elif telemetry is not None:
                telemetry.note(report.data)
            self._listener.on_event(worker.plan.model.name, report.event, report.data)

        try:
            yield on_report
        finally:
            if telemetry is not None:
                telemetry.close()

    def _close(self, workers: dict[str, Worker]) -> None:
        for name, worker in workers.items():
            if self._failures.lost_with is not None or self._signals.at_once:
                worker.kill()  # it would wait for a device that does not answer, or somebody will not wait
                continue
            try:
                worker.close(lambda report: None)
            except WorkerFailedError as error:
                self._failures.add(name, error)

    def _plan(self, spec: ModelSpec, launch: int) -> WorkerPlan:
        setup, scheduled = self._setup, self._setup.schedules[spec.name]
        workload = setup.workload
        self._listener.on_event(spec.name, "launch", {"launch": launch})
        peaks_known = self._is_known(spec.name, launch, "peaks")
        twin_base = next((other for other in workload.models if other.name == spec.twin_of), None)
        slowdown = None if setup.slowdown is None else setup.slowdown.of_model(spec.name)
        return WorkerPlan(
            kind="solo",
            lanes=(LanePlan(name=spec.name, model=spec, base=twin_base, slowdown=slowdown),),
            engine=workload.engine,
            device=setup.device,
            threads=workload.threads,
            folder=setup.folder / spec.name / f"launch-{launch}",
            facts_folder=setup.folder,
            schedule_file=setup.private / scheduled.file_name,
            warmup_file=setup.private / f"warmup-{scheduled.file_name}",
            tokenizer_hash=scheduled.tokenizer_hash,
            opener=opener_of(workload.engine),
            solo=SoloPart(
                instruments=workload.instruments,
                warmup=workload.warmup,
                class_names=scheduled.measured.classes,
                measure_peaks=launch == 0 and spec is workload.models[0] and not peaks_known,
                process=0 if setup.resume is None else setup.resume.process,
            ),
        )
