"""Runs the cells and writes the table."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

from benchmarks.coverage.cells import Cell, Reached, run

FIGURES = ("times", "prices", "sparsity", "routers", "variance", "verdicts")
TRIALS = 1_000
PAGE = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
BEGIN, END = "<!-- generated: coverage -->", "<!-- end: coverage -->"


def all_cells() -> list[Cell]:
    """Of all files, in the order of FIGURES."""
    return [cell for name in FIGURES for cell in import_module(f"benchmarks.coverage.{name}").cells()]


def measured(wanted: Sequence[int], trials: int) -> Iterator[Reached]:
    """In the order wanted; cells run on as many processes as there are cores."""
    cells = all_cells()
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        for number, (hits, silent) in zip(wanted, pool.map(_one, wanted, [trials] * len(wanted)), strict=True):
            yield Reached(cell=cells[number], trials=trials, hits=hits, silent=silent)


def _one(number: int, trials: int) -> tuple[int, int]:
    """Hits and silent trials of the cell with this number: a cell itself holds what a process cannot be sent."""
    reached = run(all_cells()[number], trials, seed=number)
    return reached.hits, reached.silent


def row(reached: Reached) -> str:
    """A line of the table."""
    cell, share, error = reached.cell, reached.share, reached.error
    said = "-" if share is None or error is None else f"{100 * share:.1f} ± {100 * error:.1f} %"
    silent = f"{100 * reached.silent / reached.trials:.0f} %" if reached.silent else ""
    outcome = reached.outcome if cell.is_claimed else f"not claimed ({reached.outcome})"
    cells = (cell.figure, cell.world, f"{cell.kind}, {100 * cell.nominal:g} %", said, silent, outcome, cell.note)
    return "| " + " | ".join(cells) + " |"


HEAD = """| figure | world | nominal | reached | no answer | target | why |
|:--|:--|--:|--:|--:|:--|:--|"""


def main() -> int:
    """Exit code 1 where a claimed cell misses its target without a word why."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--only", default="", help="cells whose figure or world holds this")
    parser.add_argument("--no-write", action="store_true", help=f"leave {PAGE.name} alone")
    given = parser.parse_args()
    cells = all_cells()
    wanted = [i for i, cell in enumerate(cells) if given.only in f"{cell.figure} {cell.world}"]
    rows, missed = [HEAD], []
    print(HEAD, flush=True)
    for reached in measured(wanted, given.trials):
        rows.append(row(reached))
        print(rows[-1], flush=True)
        if reached.outcome != "met" and reached.cell.is_claimed and not reached.cell.note:
            missed.append(f"{reached.cell.figure}, {reached.cell.world}: {reached.outcome}")
    if not given.no_write and not given.only:
        write("\n".join(rows))
    print("\n".join(["", *missed]) if missed else "\nevery claimed cell meets its target, or says why not")
    return 1 if missed else 0


def write(table: str) -> None:
    """Put the table between its marks in docs/limits.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
