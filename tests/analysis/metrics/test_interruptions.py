"""Rounds that the machine disturbed are set aside and counted."""

from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.metrics.load.interruptions import lost_ratios, undisturbed_rounds
from moeprof.analysis.metrics.tables import PassTables
from tests.helpers.records import make_pass, make_steps


def a_round(number: int, interrupted: int = 0, wall_over_cpu: float = 3.0, usual: float = 1.0) -> PassTables:
    """A hundred steps of 10 ms; so many of them took ``wall_over_cpu`` times their processor time."""
    factor = np.where(np.arange(100) < interrupted, wall_over_cpu, usual)
    steps = make_steps(100, step_s=0.01 * factor, cpu_s=np.full(100, 0.01))
    return make_pass(name=f"round-{number}", steps=steps)


def names(rounds: tuple[PassTables, ...]) -> list[str]:
    return [tables.name for tables in rounds]


def test_a_round_that_lost_a_third_of_its_time_is_set_aside_and_named() -> None:
    """30 of 100 steps took 30 ms for 10 ms of work: 0.6 s of 1.6 s."""
    kept, aside = undisturbed_rounds([a_round(0), a_round(1, interrupted=30), a_round(2)])
    assert names(kept) == ["round-0", "round-2"]
    assert aside == (("round-1", pytest.approx(0.6 / 1.6)),)


def test_a_single_interrupted_step_is_no_reason() -> None:
    """20 ms of 1.02 s are 2 %."""
    rounds = [a_round(0), a_round(1, interrupted=1), a_round(2)]
    assert lost_ratios(rounds) == pytest.approx([0, 0.02 / 1.02, 0])
    assert undisturbed_rounds(rounds) == (tuple(rounds), ())


def test_where_half_of_the_rounds_were_hit_the_machine_was_busy_and_all_stay() -> None:
    rounds = [a_round(0, interrupted=30), a_round(1, interrupted=30), a_round(2), a_round(3)]
    assert undisturbed_rounds(rounds) == (tuple(rounds), ())


def test_where_the_host_waits_throughout_processor_time_says_nothing() -> None:
    """As on a GPU: every step takes twice its processor time."""
    rounds = [a_round(0, usual=2.0), a_round(1, interrupted=30, usual=2.0), a_round(2, usual=2.0)]
    assert undisturbed_rounds(rounds) == (tuple(rounds), ())
    assert undisturbed_rounds([]) == ((), ())
