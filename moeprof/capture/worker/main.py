"""A worker: a fresh process that holds one model or several lanes and does what the parent orders, one order at a time.

Fresh, because memory, allocator state and code caches of one model must not flatter or burden the next. The parent owns
order, signals, watchdog and NVML; the worker owns torch. Idle workers block on the pipe and cost nothing.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from moeprof.capture.devices.process import end_with_parent, failure_of, set_up_process
from moeprof.capture.protocol import OnReport, Order, Report, WorkerPlan
from moeprof.capture.worker.watch import answer_stack_requests
from moeprof.core.signals import let_in

LISTEN_EVERY_S = 0.2
ALIVE_EVERY_S = 1.0


class OrderListener:
    """Hears ``stop`` (or the parent's death) while a pass runs, without a system call per step.

    Whoever asks it is alive, so it tells the parent that too, about once a second: an idle pass reports nothing else.
    """

    def __init__(self, connection: Connection, clock: Callable[[], float] = time.perf_counter) -> None:
        self._connection, self._clock = connection, clock
        self._next_s = self._alive_s = 0.0
        self._stopped = False
        self.at_work = False

    def on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """A SIGTERM or SIGHUP to the whole group: end after the current step as the parent asks to, or at once."""
        self._stopped = True
        if not self.at_work:
            raise SystemExit(0)

    def should_stop(self) -> bool:
        """True once the parent requested a stop or is gone."""
        now = self._clock()
        if not self._stopped and now >= self._next_s:
            self._next_s = now + LISTEN_EVERY_S
            self._stopped = self._must_stop(now)
        return self._stopped

    def _must_stop(self, now: float) -> bool:
        try:
            if now >= self._alive_s:
                self._alive_s = now + ALIVE_EVERY_S
                self._connection.send(Report(event="alive", data={}))
            return self._connection.poll(0) and self._connection.recv().command == "stop"
        except (EOFError, OSError):
            return True


def worker_main(plan: WorkerPlan, connection: Connection, stacks: Path) -> None:
    """Entry point of the process; ``stacks`` is where it writes where it stands, on request."""
    answer_stack_requests(stacks)
    listener = OrderListener(connection)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, listener.on_sigterm)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, listener.on_sigterm)
    let_in()
    end_with_parent()
    set_up_process(plan.threads)

    def send(report: Report) -> None:
        try:
            connection.send(report)
        except (BrokenPipeError, OSError):
            raise SystemExit(1) from None  # the parent is gone; the record on disk stays readable

    try:
        _serve(plan, connection, listener, send)
    except Exception as error:  # the process boundary: whatever a model's code raises becomes a failed record
        send(Report(event="failed", data=failure_of(error, plan.label, plan.device)))


def _serve(plan: WorkerPlan, connection: Connection, listener: OrderListener, send: OnReport) -> None:
    from moeprof.capture.memory.out_of_memory import as_out_of_memory
    from moeprof.capture.worker.lanes import LockstepOrders
    from moeprof.capture.worker.session import Session
    from moeprof.capture.worker.solo import SoloModel

    _choose_device(plan.device)
    with as_out_of_memory(plan), Session(plan, listener.should_stop, send) as session:
        held = SoloModel(session) if plan.kind == "solo" else LockstepOrders(session)
        while True:
            try:
                order: Order = connection.recv()
            except (EOFError, OSError):
                return
            if order.command in ("close", "stop"):
                held.finish()
                send(Report(event="done", data={}))
                return
            listener.at_work = order.command != "prepare"  # loading hears nothing, so it ends at once
            result = held.orders[order.command](order)
            listener.at_work = False
            send(Report(event="done", data=result))


def _choose_device(device: str) -> None:
    """What names no device (kernels of other libraries, events, pinned memory) takes the current one: make it ours."""
    if device.startswith("cuda:"):
        import torch

        torch.cuda.set_device(device)
