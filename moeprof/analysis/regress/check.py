"""What a check does, whoever asks: which gates are in force, against which baseline, and when enough was measured.

From folders and names to a judged check. A record and a saved file are both frozen first, so that they go one way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moeprof.analysis.compare.comparable import check_allow
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.cost.pricing import repriced
from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.regress.baseline import freeze
from moeprof.analysis.regress.gates import check_gates
from moeprof.analysis.regress.judge import judge_pairs, judge_stored, pairs_are_enough
from moeprof.analysis.regress.result import Regression
from moeprof.analysis.regress.trend import Trend, trend, wanted_figures
from moeprof.core.baseline.baseline import Baseline
from moeprof.core.baseline.file import load_baseline
from moeprof.core.baseline.store import find, history
from moeprof.core.errors import InputError
from moeprof.core.record.layout import Record, open_record
from moeprof.core.record.pairs import PairsRecord, open_pairs
from moeprof.core.workload.gates import Gate, GateSettings, load_gate_settings, parse_gates

GATES_FILE = Path("regress.yaml")
LAUNCHES = 6
MOST_LAUNCHES = 60  # of launch pairs until they are precise, where no time was set
Say = Callable[[str], None]


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
        check_gates(self.settings(None)[1] or ())

    def settings(self, run: Record | None) -> tuple[GateSettings, tuple[Gate | str, ...] | None]:
        """Settings and gates in force: the command line before the file before the run's workload; None: the defaults.

        Raises:
            InputError: a gate or a fact that nobody knows, or a bad file.
        """
        file = self.gates_file or (GATES_FILE if GATES_FILE.is_file() else None)
        stored, source = GateSettings(), "default"
        if file is not None:
            stored, source = load_gate_settings(file), str(file)
        elif run is not None and run.workload.gates is not None:
            stored, source = run.workload.gates, "workload"
        if self.fail_on:
            stored, source = replace(stored, fail_on=self.fail_on), "--fail-on"
        asked = stored.allow if self.allow is None else (*stored.allow, *self.allow.split(","))
        settings = replace(
            stored,
            allow=tuple(sorted(check_allow(asked))),
            allow_undecided=self.allow_undecided or stored.allow_undecided,
        )
        return settings, parse_gates(settings, source) if settings.fail_on else None

    def frozen(self, record: Record) -> Baseline:
        """A run as a baseline in memory."""
        return freeze(summarise(record, repriced(record, usd_per_device_hour=self.usd_per_device_hour)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A judged check, with the trend over the last baselines of its workload and device; None where there are none."""

    regression: Regression
    trend: Trend | None = None


def judge_run(run: Path, baseline: str, choices: Choices, say: Say) -> Judged:
    """A run against something stored; ``say`` is told what a reader of the verdict should know beside it.

    Raises:
        InputError: no such run or baseline, or facts differ that forbid a gate in use.
    """
    record = open_record(run)
    other = choices.frozen(record)
    settings, gates = choices.settings(record)
    reference = _reference(baseline, other, choices, say)
    allow, undecided = frozenset(settings.allow), settings.allow_undecided
    regression = judge_stored(reference, other, gates, allow=allow, allow_undecided=undecided)
    return Judged(regression=regression, trend=_trend(regression, other, choices, say))


def _reference(baseline: str, other: Baseline, choices: Choices, say: Say) -> Baseline:
    """A file, a run folder, or a name in the folder of baselines."""
    path = Path(baseline)
    if path.is_dir():
        return choices.frozen(open_record(path))
    if path.suffix == ".json" or path.is_file():
        return load_baseline(path)
    found = find(choices.baselines, baseline, other.workload, other.device, other.device_kind)
    if not found.same_device:
        say(f"no baseline {baseline!r} of this device; judged against {found.path}")
    return found.baseline


def _trend(regression: Regression, other: Baseline, choices: Choices, say: Say) -> Trend | None:
    stored: Sequence[Baseline] = ()
    try:
        stored = history(choices.baselines, other.workload, other.device)
    except InputError as error:  # another file of the folder must not hide the verdict
        say(f"no trend: {error}")
    return trend((*stored, other), wanted_figures(regression), last=choices.last) if stored else None


def judge_pairs_folder(folder: Path, choices: Choices) -> Judged:
    """A folder of ``regress --ab``.

    Raises:
        InputError: its measurement failed, or a gate that nobody measured was named.
        RecordError: it is damaged.
    """
    found = open_pairs(folder)
    reference, other = _sides(found, choices)
    status = str(found.info.status)
    if status == "failed":
        raise InputError(f"{folder}: its measurement failed, which is no verdict: mend what failed, measure again")
    settings, gates = choices.settings(found.new)
    allow, undecided = frozenset(settings.allow), settings.allow_undecided
    regression = judge_pairs(
        reference, other, found.pairs, found.info.mode, gates, allow=allow, allow_undecided=undecided,
        until_precise=bool(found.info.settings.get("until_precise")),
    )  # fmt: skip
    if status != "done":
        text = (
            f"The measurement of launch pairs is not whole: its status is {status}. Gates speak for what it measured."
        )
        cut = Doubt(code="run_not_done", flag="schedule", severity="error", model=None, text=text)
        regression = replace(regression, doubts=(cut, *regression.doubts))
    return Judged(regression=regression)


def _sides(found: PairsRecord, choices: Choices) -> tuple[Baseline, Baseline]:
    """The single runs, frozen; the base's models are called as the new side's are."""
    reference, other = (choices.frozen(side) for side in (found.base, found.new))
    models = []
    for new, old in found.info.base_models.items():
        model = reference.model(old)
        if model is None:
            raise InputError(f"the single run of base has no model {old}")
        models.append(replace(model, name=new))
    reference = replace(reference, name=f"base ({reference.workload})", models=tuple(models))
    return reference, replace(other, name=f"new ({other.workload})")


def precise_enough(folder: Path, choices: Choices, num_pairs: int) -> bool:
    """Whether the first so many pairs measure the step-time gates precisely, whatever they show.

    Args:
        folder: of ``regress --ab``.
        choices: gates.
        num_pairs: those after it are not looked at.
    """
    found = open_pairs(folder)
    _, gates = choices.settings(found.new)
    first = {name: [one for one in own if one.launch < num_pairs] for name, own in found.pairs.items()}
    return pairs_are_enough(*_sides(found, choices), first, found.info.mode, gates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping:
    """When enough launch pairs were measured: what was found is not looked at, only how precisely.

    Stopping as soon as pairs look precise favours those that look so by luck, so one more is measured after that and
    judged with the rest; see power.enough.

    Attributes:
        launches: launch pairs; the fewest with ``until_precise``.
        until_precise: add pairs until every interval is narrow enough, and one more.
        max_minutes: begin no pair after so long.
    """

    launches: int
    until_precise: bool
    max_minutes: float | None

    def wants_more(self, done: int, elapsed_s: float, is_precise: Callable[[int], bool]) -> bool:
        """Whether another launch pair is wanted; ``is_precise`` answers for the first so many pairs."""
        if done and self.max_minutes is not None and elapsed_s >= 60 * self.max_minutes:
            return False
        if done < self.launches:
            return True
        if not self.until_precise or (self.max_minutes is None and done >= MOST_LAUNCHES):
            return False
        return done == self.launches or not is_precise(done - 1)
