"""``python -m benchmarks.soak``: promise -> tried, failed; exit 1 where one was broken. Twenty minutes on two cores."""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable

from benchmarks.soak.bombs import bombs
from benchmarks.soak.fuzz import fuzz
from benchmarks.soak.hostile import hostile
from benchmarks.soak.kills import kills
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.starved import starved

KILLS, FILES = 60, 10_000
PARTS = ("kills", "fuzz", "bombs", "hostile", "starved")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of the whole; fewer try less of each")
    parser.add_argument("--seed", type=int, default=17, help="the same seed tries the same")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    ledger = soak(options.minutes, options.seed, options.only)
    print("\n".join(ledger.lines()))
    return 1 if ledger.failed else 0


def soak(minutes: float, seed: int, only: tuple[str, ...]) -> Ledger:
    """Two lines of work at once: runs that are ended or starved, and files that are read."""
    start, share = time.monotonic(), min(1.0, minutes / 20)

    def until(part: float) -> float:
        return start + part * 60 * minutes

    lines: list[list[tuple[str, Callable[[], Ledger]]]] = [
        [
            ("starved", lambda: starved(until(0.35))),
            ("kills", lambda: kills(max(4, round(KILLS * share)), seed, until(1))),
        ],
        [
            ("bombs", lambda: bombs(until(0.4))),
            ("hostile", hostile),
            ("fuzz", lambda: fuzz(max(200, round(FILES * share)), seed, until(1))),
        ],
    ]
    found: dict[str, Ledger] = {}
    broken: list[BaseException] = []

    def work(line: list[tuple[str, Callable[[], Ledger]]]) -> None:
        try:
            for name, part in line:
                if name in only:
                    print(f"{name}...", file=sys.stderr, flush=True)
                    found[name] = part()
                    said = f"{name}: {found[name].failed} failed, {time.monotonic() - start:.0f} s"
                    print(said, file=sys.stderr, flush=True)
        except BaseException as error:
            broken.append(error)
            raise

    threads = [threading.Thread(target=work, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Ledger()
    for name in PARTS:
        if name in found:
            whole.add(found[name])
    for error in broken:
        whole.note("the soak itself ends well", False, f"{type(error).__name__}: {error}")
    return whole


if __name__ == "__main__":
    sys.exit(main())
