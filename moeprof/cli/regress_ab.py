"""``moeprof regress --ab``: measure two workloads, or one under two environments, in turn."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moeprof.cli.options import Overrides, apply
from moeprof.core.errors import InputError, InterruptedRunError
from moeprof.core.record.pairs import BASE, NEW

if TYPE_CHECKING:
    from moeprof.capture.run.ab import AbRun
    from moeprof.capture.run.prepare import Prepared
    from moeprof.capture.run.status import SignalWatch
    from moeprof.cli.regress_judge import Choices

LAUNCHES = 6
MOST_LAUNCHES = 60  # of --until-precise without --max-minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class AbOptions:
    """What the user chose about measuring.

    Attributes:
        base_python: the base side's own interpreter; two processes then.
        launches: launch pairs; the fewest with ``until_precise``; None: LAUNCHES.
        max_seconds: bound on one launch pair.
        until_precise: add pairs until every interval is narrow enough.
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

    @property
    def mode(self) -> Literal["pairs", "processes"]:
        """How many processes a launch pair has."""
        return "pairs" if self.base_python is None else "processes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side, checked: its file, and what it holds."""

    path: Path
    prepared: Prepared


def measured_pairs(base: Path, new: Path, options: AbOptions, choices: Choices, output_dir: Path | None) -> Path:
    """Measure; returns the folder (see core/record_pairs.py).

    Raises:
        InputError: a workload is bad, or both sides would not do the same steps.
        InterruptedRunError: stopped; what was measured is kept.
    """
    from moeprof.capture.run.ab import AbRun, pair_up
    from moeprof.capture.run.lockstep import in_one_process
    from moeprof.capture.run.prepare import new_run_folder
    from moeprof.capture.run.remote_lane import check_python
    from moeprof.capture.run.status import SignalWatch
    from moeprof.cli.progress import progress_listener

    if options.base_python is not None:
        check_python(options.base_python)
    sides = {BASE: _side(base, options), NEW: _side(new, options)}
    pairing = pair_up(sides[BASE].prepared, sides[NEW].prepared, max_seconds=options.max_seconds)
    workload = sides[NEW].prepared.workload
    folder = new_run_folder(replace(workload, name=f"{workload.name[:61]}-ab"), output_dir, Path("reports"))
    measure = in_one_process if options.base_python is None else _in_two_processes(options.base_python)
    pricing = sides[NEW].prepared.pricing
    with SignalWatch() as signals, progress_listener(pricing, quiet=options.quiet) as listener:
        settings = {"launches": options.launches or LAUNCHES, "until_precise": options.until_precise}
        run = AbRun(pairing, folder, listener, signals, mode=options.mode, measure=measure, settings=settings)
        status = "failed"
        try:
            for name, side in sides.items():
                _alone(run, name, side, options, folder, signals)
            run.pairs(_more(folder, options, choices))
            status = "interrupted" if signals.number else "done"
        finally:
            run.finish(status)
    print(f"record: {folder}", file=sys.stderr)
    if signals.number:
        raise InterruptedRunError(f"stopped; what was measured is kept: moeprof regress {folder}", signals.number)
    return folder


def _side(path: Path, options: AbOptions) -> Side:
    from moeprof.capture.run.prepare import prepare
    from moeprof.core.workload.workload import load_workload

    overrides = Overrides(
        device=options.device, threads=options.threads, usd_per_device_hour=options.usd_per_device_hour
    )
    return Side(path=path, prepared=prepare(apply(load_workload(path), overrides)))


def _alone(run: AbRun, name: str, side: Side, options: AbOptions, folder: Path, signals: SignalWatch) -> None:
    from moeprof.capture.run.ab import run_solo

    if run.stopped:
        return
    if name == BASE and options.base_python is not None:
        run_solo(options.base_python, side.path, folder / BASE, signals, options.of_run)
    else:
        text = side.path.read_text(encoding="utf-8", errors="replace")
        run.solo(name, workload_text=text)


def _in_two_processes(base_python: Path) -> Callable[..., dict[str, str]]:
    from moeprof.capture.run.two_processes import run_process_pair

    pythons = {BASE: base_python, NEW: Path(sys.executable)}

    def measure(plan: Any, hear: Any, should_stop: Any) -> dict[str, str]:
        return dict(run_process_pair(plan, pythons, hear, should_stop, None).get("measured", {}))

    return measure


def _more(folder: Path, options: AbOptions, choices: Choices) -> Callable[[int], bool]:
    """Whether another launch pair is wanted. What was found is not looked at, only how precisely."""
    wanted, started = options.launches or LAUNCHES, time.monotonic()

    def more(done: int) -> bool:
        late = options.max_minutes is not None and time.monotonic() - started >= 60 * options.max_minutes
        if late and done:
            return False
        if done < wanted:
            return True
        if not options.until_precise or (options.max_minutes is None and done >= MOST_LAUNCHES):
            return False
        from moeprof.cli.regress_judge import precise_enough

        return not precise_enough(folder, choices)

    return more
