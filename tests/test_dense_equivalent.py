"""The realised share of sparsity's promise, and the dense size that an MoE equals: from lanes and from lone rounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.compare.lanes import LaneTimes, lane_times
from moeprof.analysis.compare.realised import (
    dense_sizes,
    equivalent_of_lanes,
    equivalent_of_rounds,
    realised_of_lanes,
    realised_of_rounds,
    sparsity_realised,
)
from moeprof.core.modelfacts import TwinFacts
from tests.lane_records import write_lanes
from tests.records import make_facts

SIZES = [("d1", 1_000_000), ("d4", 4_000_000), ("d16", 16_000_000)]


def lanes(folder: Path, moe: Any = 0.004, d4: Any = 0.002, **settings: Any) -> list[LaneTimes]:
    """Cost grows with the root of the size: 1, 2 and 4 ms for 1, 4 and 16 million."""
    return [lane_times(write_lanes(folder, {"d1": 0.001, "d4": d4, "d16": 0.004, "moe": moe}, **settings))]


def test_the_share_of_the_promise() -> None:
    assert sparsity_realised(total=10, moe=4, active=2) == 0.75
    assert sparsity_realised(total=10, moe=1, active=2) == 1.125  # more than promised is legal
    assert sparsity_realised(total=10, moe=4, active=10) is None


def test_the_share_from_lanes_has_an_interval(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    seconds = {n: s * (1 + 0.02 * rng.standard_normal(120)) for n, s in (("t", 0.010), ("m", 0.004), ("a", 0.002))}
    draws = [lane_times(write_lanes(tmp_path, seconds)).draws(None)]
    told = realised_of_lanes(draws, "t", "m", "a")
    assert told.value == pytest.approx(0.75, abs=0.01)
    assert told.low is not None and told.high is not None
    assert 0.73 < told.low < 0.75 < told.high < 0.77


def test_without_a_promise_no_share_of_it(tmp_path: Path) -> None:
    draws = [lane_times(write_lanes(tmp_path, {"t": 0.0102, "m": 0.0101, "a": 0.0100})).draws(None)]
    told = realised_of_lanes(draws, "t", "m", "a")
    assert told.value is None
    assert told.reason == "the twins are within 5% of each other, or the wrong way round: too small a promise"
    wide = realised_of_rounds([9.0, 10.0, 11.0], [5.0, 5.0, 5.0], [8.0, 9.0, 10.0])
    assert (wide.value, wide.reason) == (None, "the two twins cannot be told apart, so nothing was promised")


def test_the_share_from_lone_rounds(tmp_path: Path) -> None:
    told = realised_of_rounds([9.9, 10.0, 10.1], [3.9, 4.0, 4.1], [1.9, 2.0, 2.1])
    # error of 0.25 T / 8 - M / 8 + 0.75 A / 8 where each mean has error 0.1 / sqrt(3)
    error = 0.1 / np.sqrt(3) / 8 * np.sqrt(0.0625 + 1 + 0.5625)
    assert told.value == pytest.approx(0.75)
    assert told.low is not None and told.high is not None
    assert 2.3 * error < told.high - 0.75 < 3.2 * error  # Student's t of three to six degrees
    one = realised_of_rounds([10.0], [4.0], [2.0])
    assert (one.value, one.reason) == (None, "the promise has no interval (one round: no interval)")


def test_a_power_law_is_inverted_exactly(tmp_path: Path) -> None:
    told = equivalent_of_lanes(lanes(tmp_path, moe=0.003), SIZES, "moe", None)
    assert told.params.value == pytest.approx(9_000_000)  # 3 ms = sqrt(9)
    assert (told.params.low, told.params.high) == pytest.approx((9e6, 9e6), rel=0.02)
    assert told.bound is None
    rounds = [(total, [s, s]) for (_, total), s in zip(SIZES, (0.001, 0.002, 0.004), strict=True)]
    assert equivalent_of_rounds(rounds, [0.003, 0.003]).params.value == pytest.approx(9_000_000)


def test_noise_gives_an_interval_around_the_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    noisy = np.array([0.001, 0.002, 0.004, 0.003]) * (1 + 0.02 * rng.standard_normal((120, 4)))
    seconds = dict(zip(("d1", "d4", "d16", "moe"), noisy.T, strict=True))
    times = [lane_times(write_lanes(tmp_path, seconds))]
    told = equivalent_of_lanes(times, SIZES, "moe", None).params
    assert told.value is not None and told.low is not None and told.high is not None
    assert 8.5e6 < told.low < told.value < told.high < 9.5e6
    rounds = equivalent_of_rounds([(1, [0.9, 1.1, 1.0]), (4, [1.9, 2.1, 2.0]), (16, [3.9, 4.1, 4.0])], [2.9, 3.0, 3.1])
    assert rounds.params.low is not None and rounds.params.high is not None
    assert 6 < rounds.params.low < 9 < rounds.params.high < 13


@pytest.mark.parametrize(
    ("moe", "bound", "at", "word"), [(0.0005, "below", 1e6, "less"), (0.009, "above", 16e6, "more")]
)
def test_outside_of_the_ladder_there_is_a_bound(tmp_path: Path, moe: float, bound: str, at: float, word: str) -> None:
    told = equivalent_of_lanes(lanes(tmp_path, moe=moe), SIZES, "moe", None)
    assert (told.params.value, told.bound, told.bound_params) == (None, bound, at)
    assert told.reason is not None and told.reason.startswith(f"it costs {word} than the")


def test_an_interval_that_leaves_the_ladder_is_open_there(tmp_path: Path) -> None:
    rounds = [(1, [1.0, 1.001, 0.999]), (4, [2.0, 2.001, 1.999]), (16, [4.0, 4.001, 3.999])]
    told = equivalent_of_rounds(rounds, [1.01, 1.2, 0.9])
    assert told.params.value is not None and told.params.high is not None
    assert told.params.low is None
    assert told.reason == "the interval reaches below the smallest dense size (1 parameters)"


def test_a_ladder_that_is_not_monotone_cannot_tell(tmp_path: Path) -> None:
    told = equivalent_of_lanes(lanes(tmp_path, d4=0.0009), SIZES, "moe", None)
    assert told.params.value is None
    assert told.bound is None
    assert told.reason == "the ladder is not monotone: 4,000,000 parameters cost no more than 1,000,000"


def test_two_sizes_are_no_ladder(tmp_path: Path) -> None:
    told = equivalent_of_lanes(lanes(tmp_path), SIZES[:2], "moe", None)
    assert told.reason == "2 dense sizes, 3 are needed"
    assert (
        equivalent_of_lanes(lanes(tmp_path / "x", num_cycles=0), SIZES, "moe", None).reason == "no steps were measured"
    )


def test_several_launches_are_the_unit(tmp_path: Path) -> None:
    times = [one for launch, moe in enumerate((0.0029, 0.003, 0.0031)) for one in lanes(tmp_path, moe, launch=launch)]
    told = equivalent_of_lanes(times, SIZES, "moe", None).params
    assert told.n == 3
    # log cost varies by 0.033 / sqrt(3) * 4.30 = 0.083, log size by twice as much
    assert told.value == pytest.approx(9e6, rel=0.01)
    assert (told.low, told.high) == pytest.approx((9e6 * np.exp(-0.166), 9e6 * np.exp(0.166)), rel=0.03)


def test_only_twins_of_the_moe_stand_on_its_ladder() -> None:
    moe = make_facts(name="moe")

    def twin(name: str, total: int, of: str = "moe") -> Any:
        facts = TwinFacts(of=of, match="1x", width=1, active_width=1, total_width=4, target_params=total)
        return replace(moe, name=name, total_params=total, moe_layers=(), twin=facts)

    others = [replace(moe, name="llama", moe_layers=()), twin("of-another", 7, of="moe2")]
    facts = [moe, twin("big", 20), twin("small", 10), twin("small-again", 10), *others]
    assert dense_sizes(facts, "moe") == (("small", 10), ("big", 20))
