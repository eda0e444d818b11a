"""``python -m moeprof.capture.worker.server``: one lane of a launch pair, which steps when its parent says so.

It is started under the environment that is to be measured. Messages are those of lockstep/protocol.py. Between two
orders it waits in a read and costs nothing; when the parent is gone it ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from moeprof.capture.devices.process import failure_of, set_up_process
from moeprof.capture.lockstep.protocol import decode, encode, greeting, plan_from_json
from moeprof.capture.protocol import Report, WorkerPlan
from moeprof.core.errors import EngineError
from moeprof.core.signals import ENDING

Send = Callable[[dict[str, Any]], None]


def main() -> int:
    """Entry point of the process."""
    orders, replies = _take_channel()
    for number in ENDING:  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)

    def send(message: dict[str, Any]) -> None:
        try:
            replies.write(encode(message))
            replies.flush()
        except OSError:
            raise SystemExit(1) from None  # the parent is gone

    send(greeting())
    set_up_process()
    return serve(orders, send)


def _take_channel() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for messages alone: what libraries print goes to stderr, and what they read is empty."""
    orders, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, replies


def serve(orders: Iterable[bytes], send: Send) -> int:
    """Do what each line of ``orders`` says until ``close`` or the end; returns the exit code.

    Torch is imported before the first order comes, so that two processes do it at the same time.
    """
    code = 0
    try:
        from moeprof.capture.worker import remote  # noqa: F401

        lines = iter(orders)
        first = next(lines, None)
        if first is not None and (message := decode(first)).get("do") != "close":
            _serve_plan(plan_from_json(_plan_of(message)), lines, send)
    except Exception as error:  # the process boundary: whatever a model's code raises becomes a message
        data = failure_of(error, "two processes", "its device")
        send({"event": "failed", "data": data})
        code = int(data["exit_code"])
    return code


def _plan_of(message: dict[str, Any]) -> dict[str, Any]:
    plan = message.get("plan")
    if message.get("do") != "prepare" or not isinstance(plan, dict):
        raise EngineError(f"two processes: the first order is {message.get('do')!r}; prepare with a plan comes first")
    return plan


def _serve_plan(plan: WorkerPlan, lines: Iterable[bytes], send: Send) -> None:
    from moeprof.capture.memory.out_of_memory import as_out_of_memory
    from moeprof.capture.worker.remote import StepOrders
    from moeprof.capture.worker.session import Session

    def report(found: Report) -> None:
        send({"event": found.event, "data": found.data})

    with as_out_of_memory(plan), Session(plan, lambda: False, report, writes=False) as session:
        steps = StepOrders(session)
        send({"event": "done", "data": steps.load()})
        for line in lines:
            message = decode(line)
            name = message.pop("do", None)
            if name == "close":
                return
            if name not in steps.orders:
                raise EngineError(f"two processes: unknown order {name!r}; known: {', '.join(steps.orders)}, close")
            send({"event": "done", "data": steps.orders[name](**message)})


if __name__ == "__main__":
    sys.exit(main())
