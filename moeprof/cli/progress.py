"""Progress of a run: a live line per model on a terminal, a plain line now and then elsewhere, nothing if quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moeprof.capture.run.context import ProgressListener
from moeprof.core import units
from moeprof.core.pricing import Pricing
from moeprof.core.text import one_line

PLAIN_EVERY_S = 5.0


class Silence:
    """Shows nothing."""

    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        """Nothing."""


class Lines:
    """Plain lines on stderr, for pipes and CI logs."""

    def __init__(self, usd_per_hour: float | None) -> None:
        self._usd_per_hour, self._start_s, self._next_s = usd_per_hour, time.monotonic(), 0.0

    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        """One line for what matters; progress at most every few seconds."""
        text = describe(event, data)
        if text is None:
            return
        now = time.monotonic()
        if event == "progress" and "pass" in data:
            if now < self._next_s:
                return
            self._next_s = now + PLAIN_EVERY_S
            spent = _spent(self._usd_per_hour, now - self._start_s)
            text += f", {spent} so far" if spent else ""
        print(f"{model}: {text}", file=sys.stderr, flush=True)


class Live:
    """A rich progress bar per pass."""

    def __init__(self, progress: Any, usd_per_hour: float | None) -> None:
        self._progress, self._usd_per_hour = progress, usd_per_hour
        self._start_s = time.monotonic()
        self._tasks: dict[str, Any] = {}

    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        """Move the model's bar."""
        if model not in self._tasks:
            self._tasks[model] = self._progress.add_task(model, total=None, what="", name=model)
        task = self._tasks[model]
        if event == "started":
            self._progress.reset(task, total=data["total"])
        spent = _spent(self._usd_per_hour, time.monotonic() - self._start_s)
        text = describe(event, data)
        if text is not None:
            self._progress.update(task, what=f"{text}  {spent}" if event == "progress" and "pass" in data else text)
        if event == "progress" and "done" in data:
            self._progress.update(task, completed=data["done"] + data["refused"])


def _spent(usd_per_hour: float | None, seconds: float) -> str:
    """Dollars of so long; nothing where no hour is billed."""
    return "" if usd_per_hour is None else units.usd(seconds * usd_per_hour / 3600)


def describe(event: str, data: dict[str, Any]) -> str | None:
    """What happened, in a few words; None for what nobody needs to read."""
    if event == "failed":
        return f"FAILED: {one_line(str(data['error']))}"
    if event == "progress" and "doing" in data:
        return str(data["doing"])
    if event == "progress":
        seconds = max(data["elapsed_s"], 1e-9)
        waiting = data["sent"] - data["done"]
        speed = units.rate(data["output_tokens"] / seconds, "tok")
        return f"{data['pass']}: {data['done']}/{data['total']} done, {waiting} in flight, {speed}"
    if event == "pass_done":
        refused = f", {data['refused']} refused" if data["refused"] else ""
        return f"{data['pass']}: {data['finished']} done{refused} in {units.seconds(data['duration_s'])}"
    return None


@contextmanager
def progress_listener(pricing: Pricing, *, quiet: bool) -> Iterator[ProgressListener]:
    """The right listener for this stderr."""
    usd_per_hour = pricing.usd_per_hour
    if quiet:
        yield Silence()
    elif not sys.stderr.isatty():
        yield Lines(usd_per_hour)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.fields[name]}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.fields[what]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield Live(progress, usd_per_hour)
