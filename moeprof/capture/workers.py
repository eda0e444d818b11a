"""Worker processes as the parent sees them: start, give orders, hear reports, notice death and silence."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

from moeprof.capture.lockstep_plan import LockstepPlan
from moeprof.capture.plan import LaunchPlan, Order, Report
from moeprof.capture.worker import worker_main
from moeprof.core.errors import EngineError, MoeprofError

LISTEN_S = 0.1
SILENCE_S = 900.0  # a worker that says nothing for so long hangs: even one huge step is shorter
STOP_GRACE_S = 20.0


class WorkerFailedError(EngineError):
    """A worker failed; the message is its own. ``details`` holds the traceback, for the record."""

    def __init__(self, message: str, exit_code: int = 1, details: str | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.details = details


class WorkerProcess:
    """One worker process, of either kind."""

    def __init__(self, plan: LaunchPlan | LockstepPlan) -> None:
        self.plan = plan
        context = multiprocessing.get_context("spawn")  # fork would copy threads and locks of the parent
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker_main, args=(plan, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Process id, for memory and GPU bookkeeping."""
        assert self._process.pid is not None
        return self._process.pid

    def do(
        self,
        order: Order,
        hear: Callable[[Report], None],
        stop_asked: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> dict[str, Any]:
        """Give an order and wait until it is done; reports on the way go to ``hear``.

        When ``stop_asked`` turns true the worker is told to stop after its current step; it still ends the pass.

        Raises:
            WorkerFailedError: it reported an error, died, or fell silent.
        """
        self._send(order)
        heard, told_to_stop = clock(), False
        while True:
            if self._connection.poll(LISTEN_S):
                report = self._receive()
                heard = clock()
                if report.event == "done":
                    return report.data
                if report.event == "failed":
                    raise WorkerFailedError(
                        report.data["error"], report.data["exit_code"], report.data.get("traceback")
                    )
                hear(report)
            if stop_asked() and not told_to_stop:
                told_to_stop = True
                self._send(Order(command="stop"))
                heard = clock()
            if clock() - heard > (STOP_GRACE_S if told_to_stop else SILENCE_S):
                self.kill()
                raise WorkerFailedError(f"{self.plan.label}: no step ended for {clock() - heard:.0f} s")

    def close(self, hear: Callable[[Report], None]) -> None:
        """Let it finish and write launch.json. One that ended well by itself (told to stop between passes) is fine."""
        try:
            if self._process.is_alive():
                self.do(Order(command="close"), hear, lambda: False)
        except WorkerFailedError:
            if self._process.exitcode != 0:
                raise
        self._process.join(STOP_GRACE_S)
        self.kill()

    def kill(self) -> None:
        """End it now; what it flushed to disk stays."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._connection.close()

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

    def _death(self) -> MoeprofError:
        self._process.join(STOP_GRACE_S)
        code = self._process.exitcode
        hint = "; the system may have killed it for memory" if code == -9 else ""
        return WorkerFailedError(f"{self.plan.label}: its process died (exit code {code}){hint}")


class Worker(WorkerProcess):
    """A worker that holds one model."""

    plan: LaunchPlan


class LockstepWorker(WorkerProcess):
    """A worker that holds several lanes."""

    plan: LockstepPlan
