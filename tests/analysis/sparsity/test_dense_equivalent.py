"""The realised share of the saving between two dense twins, and the dense size an MoE costs as much as."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from moeprof.analysis.compare.lanes import lane_times
from moeprof.analysis.sparsity.realised import (
    DenseEquivalent,
    equivalent_of_rounds,
    realised_of_lanes,
    realised_of_rounds,
    sparsity_realised,
)
from tests.helpers.lane_records import write_lanes

SIZES = (1_000_000, 4_000_000, 16_000_000)


def equivalent(moe: float, d4: float = 2.0, sizes: Sequence[int] = SIZES) -> DenseEquivalent:
    """Cost grows with the root of the size: 1, 2 and 4 dollars for 1, 4 and 16 million; three rounds without noise."""
    return equivalent_of_rounds([(n, [c] * 3) for n, c in zip(sizes, (1.0, d4, 4.0), strict=False)], [moe] * 3)


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


def test_without_a_saving_between_the_twins_no_share_of_it(tmp_path: Path) -> None:
    draws = [lane_times(write_lanes(tmp_path, {"t": 0.0102, "m": 0.0101, "a": 0.0100})).draws(None)]
    told = realised_of_lanes(draws, "t", "m", "a")
    assert told.value is None
    assert told.reason == "the twins are within 5% of each other, or the wrong way round: too small a saving"
    wide = realised_of_rounds([9.0, 10.0, 11.0], [5.0, 5.0, 5.0], [8.0, 9.0, 10.0])
    assert (wide.value, wide.reason) == (
        None,
        "the two dense twins are not distinguishable, so there is no saving between them",
    )


def test_the_share_from_lone_rounds() -> None:
    told = realised_of_rounds([9.9, 10.0, 10.1], [3.9, 4.0, 4.1], [1.9, 2.0, 2.1])
    # error of 0.25 T / 8 - M / 8 + 0.75 A / 8 where each mean has error 0.1 / sqrt(3)
    error = 0.1 / np.sqrt(3) / 8 * np.sqrt(0.0625 + 1 + 0.5625)
    assert told.value == pytest.approx(0.75)
    assert told.low is not None and told.high is not None
    assert 2.3 * error < told.high - 0.75 < 3.2 * error  # Student's t of three to six degrees
    one = realised_of_rounds([10.0], [4.0], [2.0])
    assert (one.value, one.reason) == (
        None,
        "the saving between the two dense twins has no interval (no interval: one round; 3 or more rounds needed)",
    )


def test_a_power_law_is_inverted_exactly() -> None:
    told = equivalent(moe=3.0)
    assert told.params.value == pytest.approx(9_000_000)  # 3 = sqrt(9)
    assert (told.params.low, told.params.high) == pytest.approx((9e6, 9e6), rel=0.02)
    assert told.bound is None


def test_noise_gives_an_interval_around_the_size() -> None:
    rounds = equivalent_of_rounds([(1, [0.9, 1.1, 1.0]), (4, [1.9, 2.1, 2.0]), (16, [3.9, 4.1, 4.0])], [2.9, 3.0, 3.1])
    assert rounds.params.low is not None and rounds.params.high is not None
    assert 6 < rounds.params.low < 9 < rounds.params.high < 13


@pytest.mark.parametrize(("moe", "bound", "at", "word"), [(0.5, "below", 1e6, "less"), (9.0, "above", 16e6, "more")])
def test_outside_of_the_ladder_there_is_a_bound(moe: float, bound: str, at: float, word: str) -> None:
    told = equivalent(moe)
    assert (told.params.value, told.bound, told.bound_params) == (None, bound, at)
    assert told.reason is not None and told.reason.startswith(f"it costs {word} than the")


def test_an_interval_that_leaves_the_ladder_is_open_there() -> None:
    rounds = [(1, [1.0, 1.001, 0.999]), (4, [2.0, 2.001, 1.999]), (16, [4.0, 4.001, 3.999])]
    told = equivalent_of_rounds(rounds, [1.01, 1.2, 0.9])
    assert told.params.value is not None and told.params.high is not None
    assert told.params.low is None
    assert told.reason == "the interval reaches below the smallest dense size (1 parameters)"


def test_a_ladder_that_is_not_monotone_cannot_tell() -> None:
    told = equivalent(moe=3.0, d4=0.9)
    assert told.params.value is None
    assert told.bound is None
    assert told.reason == "the ladder is not monotone: 4,000,000 parameters cost no more than 1,000,000"


def test_two_sizes_are_no_ladder() -> None:
    assert equivalent(moe=3.0, sizes=SIZES[:2]).reason == "2 dense sizes, 3 are needed"
