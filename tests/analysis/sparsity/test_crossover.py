"""Where the MoE stops being cheaper: planted cost ratios, and what may be claimed of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.metrics.sweep.points import log_ratio_estimate
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.sparsity.crossover import (
    Crossover,
    CrossoverPoint,
    crossings,
    crossover_batch,
    crossover_point,
    crossovers,
    find_crossover,
    pooled_spread,
)
from moeprof.analysis.sparsity.sweeps import sweep_results
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.workload.studies import SweepPoint
from tests.helpers.sweep_records import at, sweep_summary, timed_pass


def told(*ratios: tuple[float, float, float, float]) -> tuple[CrossoverPoint, ...]:
    """Points from (load, ratio, low, high)."""
    return tuple(crossover_point(load, Estimate(value=v, low=lo, high=hi, n=2)) for load, v, lo, hi in ratios)


def of_run(folder: Path, moe: dict[int, tuple[float, ...]], dense_s: float = 1.0, **options: object) -> Crossover:
    """The crossover of a run whose MoE takes these seconds at each concurrency; the dense model always one second."""
    swept = {
        "moe": [at(c, *seconds) for c, seconds in moe.items()],
        "dense": [at(c, *[dense_s] * len(seconds)) for c, seconds in moe.items()],
    }
    result = sweep_results(sweep_summary(folder, swept, **options))  # type: ignore[arg-type]
    assert result is not None
    return crossovers(result)[0]


def test_half_the_price_at_1_and_twice_at_64_crosses_at_8(tmp_path: Path) -> None:
    found = of_run(tmp_path, {1: (0.5, 0.5), 8: (1.0, 1.0), 64: (2.0, 2.0)})
    assert (found.kind, found.cheaper_below) == ("crossing", True)
    assert found.batch.value == pytest.approx(8)
    assert [p.ratio.value for p in found.points] == pytest.approx([0.5, 1, 2])
    assert found.text == "moe against dense: cheaper below concurrency 8 [8, 8], dearer above"


def test_a_crossing_between_two_loads_lies_on_a_line_of_logarithms(tmp_path: Path) -> None:
    found = of_run(tmp_path, {4: (0.5, 0.5), 16: (2.0, 2.0)})
    assert found.batch.value == pytest.approx(8)  # half way from 4 to 16 by factors


def test_an_moe_that_is_cheaper_above_says_so(tmp_path: Path) -> None:
    found = of_run(tmp_path, {4: (2.0, 2.0), 16: (0.5, 0.5)})
    assert found.cheaper_below is False
    assert found.batch.value == pytest.approx(8)
    assert "dearer below concurrency 8" in found.text


def test_no_crossing_inside_the_sweep_is_a_bound_in_words(tmp_path: Path) -> None:
    found = of_run(tmp_path, {1: (0.5, 0.5), 8: (0.6, 0.6), 64: (0.9, 0.9)})
    assert (found.kind, found.batch.value) == ("bound", None)
    assert found.text == "moe against dense: cheaper at every concurrency tried, 1 to 64"


def test_several_crossings_are_not_told(tmp_path: Path) -> None:
    found = of_run(tmp_path, {1: (0.5, 0.5), 8: (2.0, 2.0), 64: (0.5, 0.5)})
    assert (found.kind, found.batch.value) == ("several", None)
    assert "several crossings: between 1 and 8, 8 and 64" in found.text


def test_the_interval_holds_the_loads_whose_ratio_may_be_1() -> None:
    points = told((1, 0.5, 0.4, 0.6), (2, 0.9, 0.5, 1.5), (8, 1.1, 0.8, 1.6), (16, 4.0, 2.0, 8.0))
    kind, batch, below, _ = find_crossover(points, "concurrency")
    assert (kind, below) == ("crossing", True)
    assert batch.low is not None and batch.high is not None and batch.value is not None
    assert 1 < batch.low < 2 < batch.value < 8 < batch.high < 16


def test_differences_within_the_noise_are_not_a_crossing() -> None:
    kind, batch, _, text = find_crossover(told((1, 0.9, 0.5, 1.6), (8, 1.1, 0.6, 2.0)), "concurrency")
    assert (kind, batch.value) == ("cannot tell", None)
    assert text == "cannot tell: the difference lies within the noise at every concurrency tried, 1 to 8"


def test_a_side_that_is_not_known_is_not_claimed() -> None:
    kind, batch, _, text = find_crossover(told((1, 0.5, 0.4, 0.6), (8, 1.1, 0.6, 2.0)), "concurrency")
    assert (kind, batch.value) == ("cannot tell", None)
    assert text == "cheaper at concurrency 1; cannot tell at 8"


def test_one_round_claims_no_crossing(tmp_path: Path) -> None:
    found = of_run(tmp_path, {4: (0.5,), 16: (2.0,)})
    assert (found.kind, found.batch.value) == ("cannot tell", None)
    assert found.text == "moe against dense: cannot tell: one round; 3 or more rounds needed"


def test_models_with_other_requests_are_not_compared(tmp_path: Path) -> None:
    found = of_run(tmp_path, {4: (0.5,), 16: (2.0,)}, schedules={"moe": "a", "dense": "b"})
    assert found.kind == "cannot tell"
    assert "different requests" in found.text


def test_loads_that_only_one_model_ran_are_left_out(tmp_path: Path) -> None:
    swept = {"moe": [at(1, 0.5, 0.5, 0.5), at(8, 2.0, 2.0)], "dense": [at(1, 1.0, 1.0, 1.0)]}
    result = sweep_results(sweep_summary(tmp_path, swept))
    assert result is not None
    found = crossover_batch(result, "moe", "dense")
    assert found.text == "moe against dense: cheaper at every concurrency tried, 1"


def test_an_open_loop_compares_busy_dollars_and_says_so(tmp_path: Path) -> None:
    def rates(busy_s: float) -> list[tuple[SweepPoint, list[PassTables]]]:
        passes = [timed_pass(f"p{i}", 2.0, traffic="open", busy_s=busy_s) for i in range(2)]
        return [(SweepPoint(request_rate=4.0), passes)]

    result = sweep_results(sweep_summary(tmp_path, {"moe": rates(0.5), "dense": rates(1.0)}))
    assert result is not None
    found = crossovers(result)[0]
    assert [p.ratio.value for p in found.points] == pytest.approx([0.5])  # the windows are equal, the work is not
    assert found.note is not None and "busy seconds" in found.note


def test_few_rounds_borrow_the_spread_of_other_loads() -> None:
    spread = pooled_spread([[1.0, math.exp(0.2)], [1.0, math.exp(0.2)], [3.0]])
    assert spread is not None
    assert spread == pytest.approx((0.2 / math.sqrt(2), 2))
    assert pooled_spread([[1.0], [2.0]]) is None
    alone, together = log_ratio_estimate([1.0, 1.2]), log_ratio_estimate([1.0, 1.2], spread)
    assert alone.low is None and together.low is not None  # 1 degree of freedom is too few, 2 are enough


@given(st.floats(0.1, 10), st.floats(1.1, 100), st.floats(1.1, 10))
def test_a_planted_power_law_crosses_where_it_was_planted(place: float, reach: float, slope: float) -> None:
    loads = [place / reach, place * reach]
    found = crossings(loads, [(load / place) ** slope for load in loads])
    assert found == [pytest.approx(place)]


def test_claimed_crossings_hold_the_planted_place_and_equal_models_seldom_cross() -> None:
    generator, loads, place = np.random.default_rng(0), (1, 2, 4, 8, 16, 32, 64), 9.5

    def claimed(slope: float) -> list[Estimate]:
        groups = [np.exp(slope * math.log(c / place) + generator.normal(0, 0.05, 2)).tolist() for c in loads]
        spread = pooled_spread(groups)
        points = [crossover_point(c, log_ratio_estimate(g, spread)) for c, g in zip(loads, groups, strict=True)]
        kind, batch, _, _ = find_crossover(points, "concurrency")
        return [batch] if kind == "crossing" else []

    found = [batch for _ in range(200) for batch in claimed(0.3)]  # 23 % per doubling, 5 % noise, two rounds
    assert len(found) > 190
    assert sum(b.low <= place <= b.high for b in found if b.low and b.high) >= 0.95 * len(found)
    assert sum(len(claimed(0.0)) for _ in range(200)) <= 0.05 * 200
