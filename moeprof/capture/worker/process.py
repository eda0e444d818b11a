"""Worker processes as the parent sees them: start, give orders, read reports, notice death and silence."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import SpawnProcess
from typing import Any

from moeprof.capture.protocol import OnReport, Order, Report, WorkerPlan
from moeprof.capture.worker.elsewhere import OtherProcess
from moeprof.capture.worker.main import worker_main
from moeprof.capture.worker.watch import (
    BETWEEN_S,
    STOP_GRACE_S,
    Overdue,
    Watchdog,
    ask_for_stacks,
    stacks_of_crash,
    where,
)
from moeprof.core.errors import EngineError
from moeprof.core.scratch import Scratch
from moeprof.core.signals import held_back

LISTEN_S = 0.1
SILENCE_S = BETWEEN_S  # of processes that tell nothing about their steps
KILL_S = 20.0  # a process that waits inside of the device's driver may not even be killed
WATCHDOG_S = 120.0


class WorkerFailedError(EngineError):
    """A worker failed; the message is its own.

    Attributes:
        exit_code: 2 means that its input was bad.
        details: the traceback or the stacks, for the record.
        reason: reason code (see devices/errors.py and watch.py; ``process_died``), or None for other errors.
    """

    def __init__(self, message: str, exit_code: int = 1, details: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.details = details
        self.reason = reason


class Worker:
    """One worker process. ``watchdog_s`` as in the workload."""

    def __init__(self, plan: WorkerPlan, watchdog_s: float = WATCHDOG_S) -> None:
        self.plan = plan
        self._watchdog = Watchdog(watchdog_s, compiles=plan.engine.compile != "off")
        self._scratch, self._is_loaded = Scratch(), False
        self._stacks = self._scratch.path / "stacks.txt"
        self._process: SpawnProcess | OtherProcess
        if plan.engine.interpreter is not None:
            self._process = OtherProcess(plan.engine.interpreter, plan, self._stacks, self._scratch.path)
            self._connection = self._process.connection
            return
        context = multiprocessing.get_context("spawn")  # fork would copy threads and locks of the parent
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker_main, args=(plan, theirs, self._stacks), daemon=True)
        with held_back():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id, for memory and GPU bookkeeping."""
        assert self._process.pid is not None
        return self._process.pid

    def do(self, order: Order, on_report: OnReport, stop_requested: Callable[[], bool]) -> dict[str, Any]:
        """Give an order and wait until it is done; reports on the way go to ``on_report``.

        When ``stop_requested`` turns true the worker gets an order to stop after its current step; the pass still ends.
        One that loads is ended at once: it hears nothing, and has nothing to keep.

        Raises:
            WorkerFailedError: it reported an error, died, was ended, or was silent for longer than the watchdog allows.
        """
        self._send(order)
        self._watchdog.begin(order)
        stop_sent = False
        while True:
            if self._connection.poll(LISTEN_S):
                report = self._receive()
                self._watchdog.on_report(report)
                if report.event == "done":
                    self._is_loaded = True
                    return report.data
                if report.event == "failed":
                    raise _failure(report.data)
                if report.event != "alive":
                    on_report(report)
            if stop_requested() and not stop_sent:
                if order.command == "prepare":
                    self.kill()
                    raise WorkerFailedError(f"{self.plan.label}: stopped while it loaded")
                stop_sent = True
                self._send(Order(command="stop"))
                self._watchdog.stop()
            overdue = self._watchdog.overdue()
            if overdue is not None:
                raise self._hung(overdue)

    def close(self, on_report: OnReport) -> None:
        """Let it finish and write launch.json. One that ended well by itself (stopped between passes) is fine."""
        try:
            if self._is_loaded and self._process.is_alive():
                self.do(Order(command="close"), on_report, lambda: False)
                self._process.join(STOP_GRACE_S)
        except WorkerFailedError:
            if self._process.exitcode != 0:
                raise
        finally:
            self.kill()

    def kill(self) -> bool:
        """End it now; what it flushed to disk stays. False where it does not end even so."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join(KILL_S)
        self._connection.close()
        self._scratch.close()
        return not self._process.is_alive()

    def _hung(self, overdue: Overdue) -> WorkerFailedError:
        """Ask where it stands, then end it."""
        stacks = ask_for_stacks(self.pid, self._stacks)
        place = None if stacks is None else where(stacks)
        ended, reason = self.kill(), overdue.reason
        text = f"{self.plan.label}: {overdue.text}"
        text += "" if place is None else f"; it stood in {place}"
        if not ended:
            text, reason = f"{text}; its process cannot be ended, so {self.plan.device} does not answer", "device_lost"
        return WorkerFailedError(text, 1, stacks, reason)

    def _send(self, order: Order) -> None:
        try:
            self._connection.send(order)
        except (BrokenPipeError, OSError) as error:
            raise self._death() from error

    def _receive(self) -> Report:
        try:
            report: Report = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error
        return report

    def _death(self) -> WorkerFailedError:
        self._process.join(STOP_GRACE_S)
        code = self._process.exitcode
        hint = "; the system may have killed it for memory" if code == -9 else ""
        stacks = stacks_of_crash(self._stacks)
        place = None if stacks is None else where(stacks)
        hint += "" if place is None else f"; it crashed in {place}"
        if place is None and isinstance(self._process, OtherProcess) and (words := self._process.last_words()):
            hint += f"; its last words: {words}"
        text = f"{self.plan.label}: its process died (exit code {code}){hint}"
        return WorkerFailedError(text, 1, stacks, "process_died")


def _failure(data: dict[str, Any]) -> WorkerFailedError:
    return WorkerFailedError(data["error"], data["exit_code"], data.get("traceback"), data.get("reason"))
