"""Entry point of the ranks that follow: a fresh process each, which does what rank 0 sends and writes nothing.

Why one of them ended goes to the parent through a pipe, because rank 0 only sees that a connection broke.
No torch before the environment is set.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from moeprof.capture.devices.process import end_with_parent, failure_of, set_up_process
from moeprof.capture.parallel.rendezvous import is_broken_link
from moeprof.capture.protocol import WorkerPlan
from moeprof.core.errors import MoeprofError
from moeprof.core.signals import ENDING, let_in

if TYPE_CHECKING:
    from moeprof.capture.parallel.group import Group


def follower_main(plan: WorkerPlan, connection: Connection) -> None:
    """Serve until rank 0 is gone; ``plan.device`` is this rank's, its environment says which rank."""
    for number in ENDING:  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    let_in()
    end_with_parent(0)  # it writes nothing
    set_up_process(plan.threads)
    try:
        _serve(plan)
    except Exception as error:  # the process boundary: whatever a model's code raises becomes a failed record
        if is_broken_link(str(error)) and not isinstance(error, MoeprofError):
            return  # rank 0 is gone, and the parent knows why
        data = failure_of(error, plan.label, plan.device)
        with suppress(OSError):  # else the parent is gone too
            connection.send(data)
        raise SystemExit(data["exit_code"]) from None


def _serve(plan: WorkerPlan) -> None:
    import torch

    from moeprof.capture.memory.out_of_memory import as_out_of_memory
    from moeprof.capture.parallel.follower import handlers
    from moeprof.capture.parallel.group import joined

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    group = joined(torch.device(plan.device))
    instruments = replace(plan.alone.instruments, save_detailed=False)
    commands = handlers(replace(plan, solo=replace(plan.alone, instruments=instruments)), group)
    with as_out_of_memory(plan):
        while (command := _next(group)) is not None:
            name, arguments = command
            commands[name](*arguments)


def _next(group: Group) -> tuple[str, tuple[Any, ...]] | None:
    """The next command; None when rank 0 has ended, well or not: the parent knows why."""
    try:
        return group.receive()
    except RuntimeError:  # what torch raises when the connection is closed
        return None
