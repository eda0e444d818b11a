"""Can `moeprof regress` be believed? Measures the same code against itself, and against itself slowed down (no test).

    python -m tests.regress_power measure reports/power/aa --kind aa --comparisons 40
    python -m tests.regress_power measure reports/power/three --kind slow-3 --comparisons 10
    python -m tests.regress_power judge reports/power/*

Each comparison is what `moeprof regress --ab` measures with default settings: six launch pairs of five seconds. The
lone runs beside them are left out, since what they count is equal whatever the machine does. Kinds: aa (no change),
slow-3 and slow-10 (every step 3 or 10 % slower), tail (every twentieth step takes three times as long).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeprof.capture.ab import pair_up
from moeprof.capture.ab_run import AbRun
from moeprof.capture.run import prepare
from moeprof.capture.signals import SignalWatch
from moeprof.capture.slowdown_plan import Slowdown
from moeprof.core.workload import load_workload

WORKLOAD = Path(__file__).resolve().parents[1] / "workloads" / "regress-power.yaml"
PAIRS = 6
KINDS: Mapping[str, Slowdown | None] = {
    "aa": None,
    "slow-3": Slowdown(ratio=0.03),
    "slow-10": Slowdown(ratio=0.10),
    "tail": Slowdown(ratio=2.0, every=20),
}


class Silent:
    """Nobody listens."""

    def hear(self, model: str, event: str, data: dict[str, Any]) -> None:
        """Nothing."""


def measure(folder: Path, kind: str, comparisons: int) -> None:
    """Measure so many comparisons, one folder each; those that are there already are left alone."""
    prepared = prepare(load_workload(WORKLOAD))
    for number in range(comparisons):
        target = folder / f"{kind}-{number:02d}"
        if target.exists():
            continue
        target.mkdir(parents=True)
        start = time.perf_counter()
        with SignalWatch() as signals:
            run = AbRun(pair_up(prepared, prepared, slowdown=KINDS[kind]), target, Silent(), signals)
            run.pairs(lambda done: done < PAIRS)
            run.finish("interrupted" if signals.number else "done")
            if signals.number:
                return
        print(f"{target.name}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("folder", type=Path)
    measuring.add_argument("--kind", choices=tuple(KINDS), required=True)
    measuring.add_argument("--comparisons", type=int, default=10)
    given = parser.parse_args()
    measure(given.folder, given.kind, given.comparisons)


if __name__ == "__main__":
    main()
