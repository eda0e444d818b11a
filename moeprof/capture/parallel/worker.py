"""A model shared by several processes, as the parent sees it: rank 0 is the worker, the others follow it.

The parent watches all of them. A rank that ends takes the others along, because their next exchange would wait for it.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from moeprof.capture.parallel.follower import follower_main
from moeprof.capture.parallel.rendezvous import Rendezvous, device_of, is_broken_link, threads_of
from moeprof.capture.plan import LaunchPlan, Order, Report
from moeprof.capture.workers import WATCHDOG_S, Worker, WorkerFailedError

LAST_WORDS_S = 3.0  # between rank 0 seeing a broken connection and the rank that broke it saying why
END_S = 10.0


class Followers:
    """The processes of rank 1 and up."""

    def __init__(self, plan: LaunchPlan, meeting: Rendezvous) -> None:
        self._label = plan.label
        self._processes: dict[int, SpawnProcess] = {}
        self._pipes: dict[int, Connection] = {}
        self._messages: dict[int, dict[str, Any]] = {}
        context = multiprocessing.get_context("spawn")
        for rank in range(1, meeting.ranks):
            self._pipes[rank], theirs = context.Pipe(duplex=False)
            own = replace(plan, device=device_of(plan.device, rank), measure_peaks=False)
            process = context.Process(target=follower_main, args=(own, theirs), daemon=True)
            with meeting.as_rank(rank, plan.device):
                process.start()
            theirs.close()
            self._processes[rank] = process

    def failure(self) -> WorkerFailedError | None:
        """Why one of them failed, or None. One that ended well did so because rank 0 has ended."""
        ended = [rank for rank, process in self._processes.items() if process.exitcode]
        if not ended:
            return None
        for rank in ended:
            data = self._last_message(rank)
            if data is not None:
                return WorkerFailedError(f"{data['error']} (rank {rank})", data["exit_code"], data["traceback"])
        code = self._processes[ended[0]].exitcode
        hint = "; the system may have killed it for memory" if code == -9 else ""
        text = f"{self._label}: the process of rank {ended[0]} died (exit code {code}){hint}"
        return WorkerFailedError(text, reason="process_died")

    def last_words(self) -> WorkerFailedError | None:
        """:meth:`failure`, for as long as it may take one to say it."""
        until = time.monotonic() + LAST_WORDS_S
        while (found := self.failure()) is None and time.monotonic() < until:
            time.sleep(0.05)
        return found

    def end(self, patience_s: float) -> None:
        """They end by themselves when rank 0 has; wait that long, then see to it."""
        until = time.monotonic() + patience_s
        for process in self._processes.values():
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(END_S)
        for pipe in self._pipes.values():
            pipe.close()
        self._processes, self._pipes = {}, {}

    def _last_message(self, rank: int) -> dict[str, Any] | None:
        """What a rank said before it ended; None when it had no time to."""
        pipe = self._pipes[rank]
        try:
            while pipe.poll():
                self._messages[rank] = pipe.recv()
        except (EOFError, OSError):
            pass  # the end of what it said
        return self._messages.get(rank)


class ParallelWorker(Worker):
    """A worker with followers."""

    def __init__(self, plan: LaunchPlan, watchdog_s: float = WATCHDOG_S) -> None:
        assert plan.engine.parallel is not None
        ranks = plan.engine.parallel.ranks
        plan = replace(plan, threads=threads_of(plan.threads, plan.device, ranks))
        meeting = Rendezvous.fresh(ranks)
        with meeting.as_rank(0, plan.device):
            super().__init__(plan, watchdog_s)
        self._followers = Followers(plan, meeting)

    def do(self, order: Order, hear: Callable[[Report], None], stop_asked: Callable[[], bool]) -> dict[str, Any]:
        """As a worker does.

        Raises:
            WorkerFailedError: also when one of the other ranks ended; its own words where it left any.
        """

        def watched() -> bool:
            failure = None if order.command == "close" else self._followers.failure()
            if failure is not None:
                raise failure
            return stop_asked()

        try:
            return super().do(order, hear, watched)
        except WorkerFailedError as error:
            silent = error.reason == "process_died" or is_broken_link(str(error))
            failure = self._followers.last_words() if silent else None
            if failure is None:
                raise
            raise failure from None

    def kill(self) -> bool:
        """End all ranks now; after a close the others have ended by themselves."""
        ended_well = self._process.exitcode == 0
        ended = super().kill()
        self._followers.end(END_S if ended_well else 0.0)
        return ended


def start_worker(plan: LaunchPlan, watchdog_s: float = WATCHDOG_S) -> Worker:
    """A worker of the kind that the plan needs."""
    return Worker(plan, watchdog_s) if plan.engine.parallel is None else ParallelWorker(plan, watchdog_s)
