"""The coverage benchmark: what its table says of trials, and that each cell can run."""

from __future__ import annotations

import pytest

from benchmarks.coverage.__main__ import all_cells, row
from benchmarks.coverage.cells import Cell, Reached, holds, run


def cell(kind: str = "interval", **fields: object) -> Cell:
    return Cell(figure="f", world="w", kind=kind, trial=lambda rng: None, **fields)  # type: ignore[arg-type]


def test_trials_without_an_answer_are_counted_apart() -> None:
    answers = iter([True, None, False, True])
    reached = run(Cell(figure="f", world="w", kind="interval", trial=lambda rng: next(answers)), 4, seed=0)
    assert (reached.hits, reached.silent, reached.answered) == (2, 1, 3)
    assert reached.share == pytest.approx(2 / 3)
    assert Reached(cell=cell(), trials=4, hits=0, silent=4).outcome == "never answers"


@pytest.mark.parametrize(
    ("kind", "hits", "outcome"),
    [
        ("interval", 950, "met"), ("interval", 900, "too narrow"), ("interval", 999, "conservative"),
        ("p-value", 50, "met"), ("p-value", 100, "fires too often"), ("p-value", 10, "conservative"),
        ("verdict", 5, "met"), ("verdict", 30, "wrong too often"),
        ("power", 800, "met"), ("power", 500, "too weak"),
    ],
)  # fmt: skip
def test_a_target_is_missed_by_more_than_two_monte_carlo_errors(kind: str, hits: int, outcome: str) -> None:
    assert Reached(cell=cell(kind), trials=1_000, hits=hits, silent=0).outcome == outcome


def test_a_world_that_is_not_claimed_says_so_in_its_row() -> None:
    reached = Reached(cell=cell(is_claimed=False), trials=1_000, hits=800, silent=10)
    assert "80.8 ± 1.3 %" in row(reached) and "1 %" in row(reached) and "not claimed (too narrow)" in row(reached)


def test_every_cell_stands_once_and_answers() -> None:
    cells = all_cells()
    assert len({(one.figure, one.world) for one in cells}) == len(cells)
    for one in cells[::7]:
        assert run(one, 1, seed=1).trials == 1


def test_an_interval_holds_its_ends() -> None:
    assert holds((1.0, 2.0), 2.0) and not holds((1.0, 2.0), 2.1)
    assert holds(None, 1.0) is None and holds((None, 2.0), 1.0) is None
