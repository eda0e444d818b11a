"""Can `moeprof regress` be believed? Measures the same code against itself, and against itself slowed down (no test).

    python -m benchmarks.regress_power measure reports/power --kind aa --comparisons 40 --load 3
    python -m benchmarks.regress_power measure reports/power --kind slow-3 --comparisons 10
    python -m benchmarks.regress_power measure reports/power --kind slow-10 --comparisons 10 --mode processes
    python -m benchmarks.regress_power measure reports/power --kind slow-25 --comparisons 3 --mode stored
    python -m benchmarks.regress_power judge reports/power

A comparison is measured as `moeprof regress --ab` does with default settings: six launch pairs of five seconds, in one
process (``pairs``) or in two (``processes``); a ``stored`` one is a run of six launches against an earlier one. The
lone runs of --ab are measured once, since what they count is equal whatever the machine does. Kinds: aa (no change),
slow-N (every step N % slower), tail (every twentieth step takes three times as long: 10 % in all, none in the median).
What is there already is left alone, so a stopped measurement goes on where it was. ``--load 3`` makes the machine
busy: three processes that compute for 0.05 to 2 seconds and rest for as long, at random.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.regress.baseline import freeze
from moeprof.analysis.regress.judge import judge_pairs, judge_stored
from moeprof.analysis.regress.pairs import phase_pairs, turns_of
from moeprof.analysis.regress.result import Regression
from moeprof.capture.protocol import Slowdown
from moeprof.capture.run.ab import AbRun, pair_up, solo_workload
from moeprof.capture.run.lockstep import in_one_process
from moeprof.capture.run.prepare import Prepared, execute, prepare
from moeprof.capture.run.two_processes import run_process_pair
from moeprof.core.baseline.baseline import Baseline
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from moeprof.core.record.pairs import open_pairs
from moeprof.core.signals import SignalWatch
from moeprof.core.workload.workload import load_workload

WORKLOAD = Path(__file__).resolve().parents[1] / "workloads" / "regress-power.yaml"
PAIRS = 6
PRICING = Pricing(usd_per_device_hour=0.10)
KINDS: Mapping[str, Slowdown | None] = {
    "aa": None,
    "slow-3": Slowdown(ratio=0.03),
    "slow-10": Slowdown(ratio=0.10),
    "slow-25": Slowdown(ratio=0.25),
    "tail": Slowdown(ratio=2.0, every=20),
}
MODES = ("pairs", "processes", "stored")


class Silent:
    """Nobody listens."""

    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        """Nothing."""


# -- measuring ---------------------------------------------------------------------------------------------------------


def measure(folder: Path, mode: str, kind: str, comparisons: int) -> None:
    """Measure so many comparisons, one folder each."""
    prepared = replace(prepare(load_workload(WORKLOAD)), pricing=PRICING)
    one = pair_folder if mode in ("pairs", "processes") else run_folder
    for solo in () if mode == "stored" else ("lone-base", "lone-new"):
        run_folder(folder / solo, replace(prepared, workload=solo_workload(prepared.workload)), mode, None)
    if mode == "stored":
        run_folder(folder / "stored-base", prepared, mode, None)
    for number in range(comparisons):
        target, start = folder / f"{mode}-{kind}-{number:02d}", time.perf_counter()
        if one(target, prepared, mode, KINDS[kind]):
            print(f"{target.name}: {time.perf_counter() - start:.0f} s", flush=True)


def pair_folder(target: Path, prepared: Prepared, mode: str, slowdown: Slowdown | None) -> bool:
    """Launch pairs; False where they are there already."""
    if target.exists():
        return False
    target.mkdir(parents=True)
    with SignalWatch() as signals:
        run = AbRun(
            pair_up(prepared, prepared, slowdown=slowdown), target, Silent(), signals,
            mode="pairs" if mode == "pairs" else "processes",
            measure=in_one_process if mode == "pairs" else in_two_processes,
        )  # fmt: skip
        run.pairs(lambda done: done < PAIRS)
        run.finish("interrupted" if signals.number else "done")
        if signals.number:
            raise SystemExit(1)
    return True


def in_two_processes(plan: Any, on_report: Any, should_stop: Callable[[], bool]) -> Mapping[str, str]:
    """One launch pair, a process for each side."""
    return dict(run_process_pair(plan, {}, on_report, should_stop, None)["measured"])


def run_folder(target: Path, prepared: Prepared, mode: str, slowdown: Slowdown | None) -> bool:
    """An ordinary run; False where it is there already."""
    if target.exists():
        return False
    target.mkdir(parents=True)
    with SignalWatch() as signals:
        status = execute(prepared, target, Silent(), signals, workload_text="", slowdown=slowdown)
        if status != "done":
            raise SystemExit(1)
    return True


# -- a busy machine ----------------------------------------------------------------------------------------------------


@contextmanager
def load(num: int) -> Iterator[None]:
    """So many processes that compute and rest at random, until the end of the block."""
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=compute_and_rest, args=(seed,), daemon=True) for seed in range(num)]
    for other in others:
        other.start()
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def compute_and_rest(seed: int) -> None:
    """For ever: arithmetic on a few megabytes, then nothing."""
    random = np.random.default_rng(seed)
    values = random.random(500_000)
    while True:
        until = time.perf_counter() + random.uniform(0.05, 2.0)
        while time.perf_counter() < until:
            values = values * 0.5 + 0.25
        time.sleep(random.uniform(0.05, 2.0))


# -- judging -----------------------------------------------------------------------------------------------------------


def judge(folder: Path) -> None:
    """One line for each comparison, then how often each verdict was given."""
    tally: dict[str, Counter[str]] = defaultdict(Counter)
    wrong: Counter[str] = Counter()
    for target in sorted(path for path in folder.iterdir() if path.name.startswith(MODES)):
        if target.name == "stored-base" or not is_done(target):
            continue
        mode, rest = target.name.split("-", 1)
        found = judged(folder, target, mode)
        label = f"{mode} {rest.rpartition('-')[0]}"
        tally[label][found.verdict] += 1
        wrong[label] += sum(gate.verdict == "worse" for gate in found.gates)
        timed = [gate for gate in found.gates if gate.kind == "timed"]
        said = "; ".join(f"{gate.label} {gate.ratio.value:.4f} {gate.verdict}" for gate in timed)
        print(f"{target.name:22} {found.verdict:20} {len(found.gates)} gates; {said}{spread(target, mode)}")
    print()
    for label, verdicts in tally.items():
        counts = ", ".join(f"{num} {verdict}" for verdict, num in verdicts.most_common())
        print(f"{label:18} {verdicts.total():3} comparisons: {counts}; {wrong[label]} gates worse")


def is_done(target: Path) -> bool:
    """Whether it was measured to its end."""
    return open_pairs(target).info.status == "done" if (target / "ab.json").exists() else True


def judged(folder: Path, target: Path, mode: str) -> Regression:
    """The verdict with all default gates."""
    if mode == "stored":
        return judge_stored(frozen(folder / "stored-base"), frozen(target))
    found = open_pairs(target)
    sides = frozen(folder / "lone-base"), frozen(folder / "lone-new")
    return judge_pairs(*sides, found.pairs, "pairs" if mode == "pairs" else "processes")


def spread(target: Path, mode: str) -> str:
    """Standard deviation of the pairs' log ratios, of decode and prefill."""
    if mode == "stored":
        return ""
    (passes,) = open_pairs(target).pairs.values()
    logs = [phase_pairs(turns_of(passes), phase).logs for phase in ("decode", "prefill")]
    parts = [f"{100 * float(np.std(own, ddof=1)):.1f} %" for own in logs]
    return f"; spread {', '.join(parts)}"


def frozen(path: Path) -> Baseline:
    """A run as a baseline."""
    return freeze(summarise(open_record(path), PRICING))


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring, judging = commands.add_parser("measure"), commands.add_parser("judge")
    for command in (measuring, judging):
        command.add_argument("folder", type=Path)
    measuring.add_argument("--mode", choices=MODES, default="pairs")
    measuring.add_argument("--kind", choices=tuple(KINDS), required=True)
    measuring.add_argument("--comparisons", type=int, default=10)
    measuring.add_argument("--load", type=int, default=0)
    given = parser.parse_args()
    if given.command == "judge":
        judge(given.folder)
    else:
        with load(given.load):
            measure(given.folder, given.mode, given.kind, given.comparisons)


if __name__ == "__main__":
    main()
