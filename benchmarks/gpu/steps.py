"""Steps with a time limit each, a process group per step, a budget for all; a step that fails stops no other."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 12.0  # between asking a step to end and killing it
CLOSING_S = 30.0  # what a run needs beside its --max-minutes: checks before, closing and a summary after
LEAST_S = 15.0  # a step that gets less does not start
TAIL_CHARACTERS = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One process to run.

    Attributes:
        name: in results, logs and the table.
        arguments: after the Python interpreter.
        limit_s: it is ended after so long.
        makes: the record folder or JSON file that it leaves.
        module_limit: append ``--max-minutes`` a little below the limit, so that a run ends cleanly by itself.
    """

    name: str
    arguments: tuple[str, ...]
    limit_s: float
    makes: Path
    module_limit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """How a step went.

    Attributes:
        name: of the step.
        status: ``done``, ``failed``, ``timed out`` or ``not started``.
        seconds: wall time.
        reason: of anything but ``done``.
        tail: the end of what it printed.
    """

    name: str
    status: Literal["done", "failed", "timed out", "not started"]
    seconds: float
    reason: str = ""
    tail: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def run_steps(
    steps: Sequence[Step],
    *,
    budget_s: float,
    log: Path,
    after: Callable[[Step, StepResult], None],
    clock: Callable[[], float] = time.monotonic,
) -> list[StepResult]:
    """Run the steps in order.

    Args:
        steps: what to run.
        budget_s: for all of them; a step gets what is left, at most its own limit.
        log: everything they print, appended.
        after: called after each step, so that what was measured is packed before the next one starts.
        clock: seconds.

    Returns:
        One result per step.
    """
    deadline = clock() + budget_s
    results = []
    for step in steps:
        left = min(step.limit_s, deadline - clock())
        if left < LEAST_S and left < step.limit_s:
            result = StepResult(name=step.name, status="not started", seconds=0.0, reason="no time was left for it")
        else:
            print(f"== {step.name} (at most {left:.0f} s)", flush=True)
            result = run_step(step, left, log, clock)
        print(f"   {result.name}: {result.status}, {result.seconds:.0f} s {result.reason}".rstrip(), flush=True)
        results.append(result)
        after(step, result)
    return results


def run_step(step: Step, limit_s: float, log: Path, clock: Callable[[], float] = time.monotonic) -> StepResult:
    """One step in a process group of its own; asked to end at the limit, killed a little later."""
    arguments = [sys.executable, *step.arguments]
    if step.module_limit:
        arguments += ["--max-minutes", f"{max(limit_s - CLOSING_S, limit_s / 2) / 60:.3f}"]
    own_log = log.with_name(f"{log.stem}-{step.name}.part")
    start = clock()
    with own_log.open("wb") as stream:
        process = subprocess.Popen(
            arguments, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        try:
            code: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    text = without_folders(own_log.read_text(encoding="utf-8", errors="replace"))
    own_log.unlink()
    with log.open("a", encoding="utf-8") as stream_all:
        stream_all.write(f"== {step.name}\n{text}\n")
    seconds, tail = clock() - start, text[-TAIL_CHARACTERS:]
    if code == 0:
        return StepResult(name=step.name, status="done", seconds=seconds, tail=tail)
    last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
    if code is None:
        return StepResult(
            name=step.name, status="timed out", seconds=seconds, reason=f"ended after {limit_s:.0f} s", tail=tail
        )
    return StepResult(name=step.name, status="failed", seconds=seconds, reason=f"exit code {code}: {last}", tail=tail)


def without_folders(text: str) -> str:
    """Absolute paths cut to their last part: results are published, the machine's folders are nobody's business."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@-]+/)+", "", text)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask the group to stop (a run then keeps what it measured), then kill what is left of it, workers included."""
    if process.poll() is None:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE_S)
    _signal(process, signal.SIGKILL)
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the whole group is gone
        os.killpg(process.pid, number)
