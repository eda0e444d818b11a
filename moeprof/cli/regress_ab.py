"""``moeprof regress --ab``: measure two workloads, or one under two environments, in turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from moeprof.core.errors import InputError, InterruptedRunError
from moeprof.core.record.pairs import BASE, NEW
from moeprof.core.workload.overrides import Overrides, apply

if TYPE_CHECKING:
    from moeprof.analysis.regress.check import Choices
    from moeprof.capture.run.prepare import Prepared


@dataclass(frozen=True, slots=True, kw_only=True)
class AbOptions:
    """What the user chose about measuring.

    Attributes:
        base_python: the base side's own interpreter; two processes then.
        launches: launch pairs; the fewest with ``until_precise``; None: the default.
        max_seconds: bound on one launch pair.
        until_precise: add pairs until every interval is narrow enough, and one more.
        max_minutes: begin no pair after so long.
        device, threads: of both sides.
        usd_per_device_hour: price.
        quiet: no progress.
    """

    base_python: Path | None
    launches: int | None
    max_seconds: float | None
    until_precise: bool
    max_minutes: float | None
    device: str | None
    threads: int | None
    usd_per_device_hour: float | None
    quiet: bool

    def __post_init__(self) -> None:
        for name in ("launches", "max_seconds", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"--{name.replace('_', '-')}: found {value:g}; more than 0 is allowed")

    @property
    def of_run(self) -> tuple[str, ...]:
        """Those that ``moeprof run`` has too, as it is told them."""
        names = ("device", "threads", "usd_per_device_hour")
        told = ((f"--{name.replace('_', '-')}", getattr(self, name)) for name in names)
        return tuple(text for option, value in told if value is not None for text in (option, str(value)))


def measured_pairs(base: Path, new: Path, options: AbOptions, choices: Choices, output_dir: Path | None) -> Path:
    """Measure; returns the folder (see core/record/pairs.py).

    Raises:
        InputError: a workload is bad, or both sides would not do the same steps.
        InterruptedRunError: stopped; what was measured is kept.
    """
    from moeprof.analysis.regress.check import LAUNCHES, Stopping, precise_enough
    from moeprof.capture.run.ab import AbRun, in_two_processes, pair_up, run_solo
    from moeprof.capture.run.lockstep import in_one_process
    from moeprof.capture.run.prepare import new_run_folder
    from moeprof.capture.run.remote_lane import check_python
    from moeprof.capture.run.status import writing
    from moeprof.cli.progress import progress_listener
    from moeprof.core.signals import SignalWatch
    from moeprof.core.yamlfile import text_of

    base_python, launches = options.base_python, options.launches or LAUNCHES
    if base_python is not None:
        check_python(base_python)
    prepared = [_prepared(path, options) for path in (base, new)]
    pairing = pair_up(*prepared, max_seconds=options.max_seconds)
    workload = pairing.new.workload
    folder = new_run_folder(replace(workload, name=f"{workload.name[:61]}-ab"), output_dir, Path("reports"))
    stopping = Stopping(launches=launches, until_precise=options.until_precise, max_minutes=options.max_minutes)
    with (
        SignalWatch() as signals,
        writing(folder, f"judge it with moeprof regress {folder}"),
        progress_listener(prepared[1].pricing, quiet=options.quiet) as listener,
    ):
        run = AbRun(
            pairing, folder, listener, signals,
            mode="pairs" if base_python is None else "processes",
            measure=in_one_process if base_python is None else in_two_processes(base_python),
            settings={"launches": launches, "until_precise": options.until_precise},
        )  # fmt: skip
        alone: list[Callable[[], None]] = [
            partial(run.solo, name, workload_text=text_of(path)) for name, path in ((BASE, base), (NEW, new))
        ]
        if base_python is not None:
            alone[0] = partial(run_solo, base_python, base, folder / BASE, signals, options.of_run)
        started = time.monotonic()
        run.whole(
            alone,
            lambda done: stopping.wants_more(
                done, time.monotonic() - started, lambda num: precise_enough(folder, choices, num)
            ),
        )
    print(f"record: {folder}", file=sys.stderr)
    if signals.number:
        raise InterruptedRunError(f"stopped; what was measured is kept: moeprof regress {folder}", signals.number)
    return folder


def _prepared(path: Path, options: AbOptions) -> Prepared:
    """One side, checked."""
    from moeprof.capture.engines import engine_kinds
    from moeprof.capture.run.prepare import prepare
    from moeprof.core.workload.workload import load_workload

    overrides = Overrides(
        device=options.device, threads=options.threads, usd_per_device_hour=options.usd_per_device_hour
    )
    return prepare(apply(load_workload(path, engine_kinds()), overrides))
