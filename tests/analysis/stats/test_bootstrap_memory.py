"""Blocks of steps that remember one another widen the interval of their mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moeprof.analysis.stats.bootstrap import memory_stretch

RISING = np.repeat([-1.0, 1.0], 10)[:, None]  # ten blocks below, ten above


def test_blocks_that_follow_one_another_stretch_by_their_correlation() -> None:
    # products of neighbours: 18 of 1 and one of -1, over 20, and 1 / 20 for the bias: 0.9, more than the most there is
    assert memory_stretch(RISING) == pytest.approx(math.sqrt(1.8 / 0.2))
    turns = np.tile([-1.0, -1.0, 1.0, 1.0], 5)[:, None]  # ten pairs alike, nine unlike: r = 1 / 20
    assert memory_stretch(turns) == pytest.approx(math.sqrt((1 + 0.1) / (1 - 0.1)))


def test_blocks_that_alternate_and_equal_blocks_stretch_nothing() -> None:
    assert memory_stretch(np.tile([-1.0, 1.0], 10)[:, None]) == 1.0
    assert memory_stretch(np.ones((20, 2))) == 1.0


def test_what_all_lanes_share_cancels_in_what_is_set_side_by_side() -> None:
    alternating = 0.01 * np.tile([-1.0, 1.0], 10)[:, None]
    assert memory_stretch(RISING + np.hstack([alternating, -alternating])) == 1.0
