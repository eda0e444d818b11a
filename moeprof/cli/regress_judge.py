"""From folders and names to a judged check: which gates are in force, which baseline, both sides frozen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from moeprof.core.errors import InputError
from moeprof.core.workload.gates import Gate, GateSettings

if TYPE_CHECKING:
    from moeprof.analysis.regress.result import Regression
    from moeprof.analysis.regress.trend import Trend
    from moeprof.core.baseline.baseline import Baseline, BaselineModel
    from moeprof.core.record.layout import Record
    from moeprof.core.record.pairs import PairsRecord

GATES_FILE = Path("regress.yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the user chose about judging.

    Attributes:
        fail_on: gates and groups of the command line.
        gates_file: file of gates, or None for regress.yaml where there is one.
        allow: facts that may differ, with commas.
        allow_undecided: cannot tell is no failure.
        baselines: folder of baselines.
        last: baselines of the trend.
        usd_per_device_hour: price of the runs, or None for their own; a saved baseline keeps its own.
    """

    fail_on: tuple[str, ...]
    gates_file: Path | None
    allow: str | None
    allow_undecided: bool
    baselines: Path
    last: int
    usd_per_device_hour: float | None

    def check(self) -> None:
        """Everything that can be wrong before anything is read or measured.

        Raises:
            InputError: a gate or a fact that nobody knows, or a bad file.
        """
        from moeprof.analysis.regress.gates import check_gates

        _, gates = self.settings(None)
        check_gates(gates or ())

    def settings(self, workload: GateSettings | None) -> tuple[GateSettings, tuple[Gate | str, ...] | None]:
        """Settings and gates in force: the command line before the file before the workload; None: the defaults.

        Raises:
            InputError: a gate or a fact that nobody knows, or a bad file.
        """
        from moeprof.analysis.compare.comparable import check_allow
        from moeprof.core.workload.gates import load_gate_settings, parse_gates

        file = self.gates_file or (GATES_FILE if GATES_FILE.is_file() else None)
        stored, source = GateSettings(), "default"
        if file is not None:
            stored, source = load_gate_settings(file), str(file)
        elif workload is not None:
            stored, source = workload, "workload"
        if self.fail_on:
            stored, source = replace(stored, fail_on=self.fail_on), "--fail-on"
        asked = stored.allow if self.allow is None else (*stored.allow, *self.allow.split(","))
        settings = replace(
            stored,
            allow=tuple(sorted(check_allow(asked))),
            allow_undecided=self.allow_undecided or stored.allow_undecided,
        )
        return settings, parse_gates(settings, source) if settings.fail_on else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A judged check, with what only the page needs.

    Attributes:
        regression: the check.
        trend: over the last baselines of this workload and device; None where there are none.
    """

    regression: Regression
    trend: Trend | None = None


def judge_run(run: Path, baseline: str, choices: Choices) -> Judged:
    """A run against something stored.

    Raises:
        InputError: no such run or baseline, or facts differ that forbid a gate in use.
    """
    from moeprof.analysis.regress.judge import judge_stored

    record = _open(run)
    other = frozen(record, choices.usd_per_device_hour)
    settings, gates = choices.settings(record.workload.gates)
    reference = find_reference(baseline, other, choices)
    regression = judge_stored(
        reference,
        other,
        gates,
        allow=frozenset(settings.allow),
        allow_undecided=settings.allow_undecided,
    )
    return Judged(regression=regression, trend=_trend(regression, other, choices))


def judge_pairs_folder(folder: Path, choices: Choices) -> Judged:
    """A folder of ``regress --ab``.

    Raises:
        InputError: its measurement failed, or a gate that nobody measured was asked for.
        RecordError: it is damaged.
    """
    from moeprof.analysis.regress.judge import judge_pairs

    sides = _sides(folder, choices)
    status = str(sides.found.info.status)
    if status == "failed":
        raise InputError(f"{folder}: its measurement failed, which is no verdict: mend what failed, measure again")
    settings, gates = choices.settings(sides.found.new.workload.gates)
    regression = judge_pairs(
        sides.reference,
        sides.other,
        sides.found.pairs,
        sides.mode,
        gates,
        allow=frozenset(settings.allow),
        allow_undecided=settings.allow_undecided,
    )
    return Judged(regression=regression if status == "done" else _cut(regression, status))


def _cut(regression: Regression, status: str) -> Regression:
    """The check with what is to be known of launch pairs that were cut."""
    from moeprof.analysis.doubt import Doubt

    text = f"The measurement of launch pairs is not whole: its status is {status}. Gates speak for what it measured."
    cut = Doubt(code="run_not_done", flag="schedule", severity="error", model=None, text=text)
    return replace(regression, doubts=(cut, *regression.doubts))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sides:
    """A folder of ``regress --ab`` with its lone runs frozen; the base's models are called as the new side's are."""

    found: PairsRecord
    reference: Baseline
    other: Baseline

    @property
    def mode(self) -> Literal["pairs", "processes"]:
        return "processes" if self.found.info.mode == "processes" else "pairs"


def _sides(folder: Path, choices: Choices) -> _Sides:
    from moeprof.core.record.pairs import open_pairs

    found = open_pairs(folder)
    reference, other = (frozen(side, choices.usd_per_device_hour) for side in (found.base, found.new))
    names = found.info.base_models
    models = tuple(_renamed(reference, old, new) for new, old in names.items())
    return _Sides(
        found=found,
        reference=replace(reference, name=f"base ({reference.workload})", models=models),
        other=replace(other, name=f"new ({other.workload})"),
    )


def frozen(record: Record, usd_per_device_hour: float | None = None) -> Baseline:
    """A run as a baseline in memory."""
    from moeprof.analysis.metrics.summary import summarise
    from moeprof.analysis.regress.baseline import freeze
    from moeprof.cli.repricing import repriced

    return freeze(summarise(record, repriced(record, usd_per_device_hour=usd_per_device_hour)))


def precise_enough(folder: Path, choices: Choices) -> bool:
    """Whether the step-time gates of a folder of ``regress --ab`` are measured precisely, whatever they show."""
    from moeprof.analysis.regress.judge import pairs_are_enough

    sides = _sides(folder, choices)
    _, gates = choices.settings(sides.found.new.workload.gates)
    return pairs_are_enough(sides.reference, sides.other, sides.found.pairs, sides.mode, gates)


def find_reference(baseline: str, other: Baseline, choices: Choices) -> Baseline:
    """What to judge against: a file, a run folder, or a name in the folder of baselines.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    from moeprof.core.baseline.file import load_baseline
    from moeprof.core.baseline.store import find

    path = Path(baseline)
    if path.is_dir():
        return frozen(_open(path), choices.usd_per_device_hour)
    if path.suffix == ".json" or path.is_file():
        return load_baseline(path)
    found = find(choices.baselines, baseline, other.workload, other.device, other.device_kind)
    if not found.same_device:
        print(f"moeprof: note: no baseline {baseline!r} of this device; judged against {found.path}", file=sys.stderr)
    return found.baseline


def _trend(regression: Regression, other: Baseline, choices: Choices) -> Trend | None:
    from moeprof.analysis.regress.trend import trend, wanted_figures
    from moeprof.core.baseline.store import history

    stored: Sequence[Baseline] = ()
    try:
        stored = history(choices.baselines, other.workload, other.device)
    except InputError as error:  # another file of the folder must not hide the verdict
        print(f"moeprof: note: no trend: {error}", file=sys.stderr)
    if not stored:
        return None
    return trend((*stored, other), wanted_figures(regression), last=choices.last)


def _renamed(reference: Baseline, old: str, new: str) -> BaselineModel:
    model = reference.model(old)
    if model is None:
        raise InputError(f"the lone run of base has no model {old}")
    return replace(model, name=new)


def _open(path: Path) -> Record:
    from moeprof.core.record.layout import open_record

    return open_record(path)
