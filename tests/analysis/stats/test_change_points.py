"""Changes of level: rare in flat series, found where they are, and never without two values on either side."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.stats.change_points import arc_weights, change_points, counted_changes

NOISE, NUM = 0.03, 20


def series(seed: int, *, step: float = 0.0, at: int = NUM, until: int | None = None) -> list[float]:
    """Values about 1 with 3 % noise; a step from ``at`` on, taken back at ``until``."""
    logs = NOISE * np.random.default_rng(seed).standard_normal(NUM)
    logs[at:until] += np.log1p(step)
    return [float(value) for value in np.exp(logs)]


def test_a_flat_series_shows_a_change_in_fewer_than_one_of_twenty() -> None:
    false = sum(bool(change_points(series(seed))) for seed in range(300))
    assert false / 300 < 0.05


def test_a_step_of_ten_percent_is_found_within_one_in_nine_of_ten() -> None:
    found = [change_points(series(seed, step=0.1, at=10)) for seed in range(200)]
    right = [points for points in found if len(points) == 1 and abs(points[0].index - 10) <= 1]
    assert len(right) / 200 > 0.9
    ratios = [points[0].ratio for points in right]
    assert np.mean([ratio for ratio in ratios if ratio]) == pytest.approx(1.1, abs=0.01)


def test_a_step_that_is_taken_back_has_two_edges() -> None:
    found = [[p.index for p in change_points(series(s, step=0.2, at=8, until=13))] for s in range(60)]
    right = [edges for edges in found if len(edges) == 2 and abs(edges[0] - 8) <= 1 and abs(edges[1] - 13) <= 1]
    assert len(right) / 60 > 0.9


def test_heavy_tails_make_hardly_more_false_changes() -> None:
    draws = np.random.default_rng(3).standard_t(3, size=(200, 12))
    assert sum(bool(change_points(list(np.exp(NOISE * row)))) for row in draws) / 200 < 0.05


def test_two_humps_make_false_changes_in_the_share_that_the_docstring_states() -> None:
    """Half of the values low, half high: 12 % of series of 6, which chance often sorts, and 3 % of series of 20."""
    generator = np.random.default_rng(4)

    def false(num: int) -> float:
        rows = np.where(generator.random((400, num)) < 0.5, -1, 1) + 0.1 * generator.standard_normal((400, num))
        return sum(bool(change_points(list(np.exp(NOISE * row)))) for row in rows) / 400

    assert false(6) == pytest.approx(0.122, abs=0.045) and false(20) == pytest.approx(0.034, abs=0.025)


def test_the_newest_value_alone_is_never_a_change() -> None:
    assert change_points([1.0, 1.01, 0.99, 1.0, 1.01, 0.99, 1.0, 1.01, 3.0]) == ()


def test_a_large_step_at_the_last_two_values_is_found() -> None:
    found = [[p.index for p in change_points(series(seed, step=0.2, at=18))] for seed in range(100)]
    assert sum(edges == [18] for edges in found) / 100 > 0.9


def test_few_values_can_show_a_large_step() -> None:
    (point,) = change_points([1.0, 1.01, 0.99, 2.0, 2.01, 1.99])
    assert (point.index, round(point.before, 2), round(point.after, 2)) == (3, 1.0, 2.0)
    assert change_points([1.0, 1.0, 2.0, 2.0]) == (), "four values are too few"


def test_a_step_below_the_floor_is_not_called_one() -> None:
    values = [1.0, 1.001, 0.999, 1.0, 1.001, 1.02, 1.021, 1.019, 1.02, 1.021]
    assert [p.index for p in change_points(values)] == [5]
    assert change_points(values, floor_ratio=0.03) == ()


def test_equal_values_show_nothing_and_exact_steps_show() -> None:
    assert change_points([5.0] * 12) == ()
    (point,) = change_points([5.0] * 6 + [6.0] * 6)
    assert point.index == 6 and point.p_value < 1e-9
    assert point.ratio == pytest.approx(1.2)


def test_values_that_are_not_positive_are_taken_as_they_are() -> None:
    (point,) = change_points([0.0, 0.1, -0.1, 0.0, 0.1, 5.0, 5.1, 4.9, 5.0, 5.1])
    assert point.index == 5 and point.ratio == pytest.approx(251) and point.before == pytest.approx(0.02)


def test_counted_figures_change_wherever_they_differ() -> None:
    found = counted_changes([4.0, 4.0, 5.0, 4.0])
    assert [(p.index, p.before, p.after) for p in found] == [(2, 4.0, 5.0), (3, 5.0, 4.0)]
    assert counted_changes([0.0, 1.0])[0].ratio is None


def test_the_weight_of_a_stretch_is_students_t() -> None:
    from scipy.stats import ttest_ind

    values = [1.0, 2.0, 1.5, 4.0, 5.0, 4.5, 6.0]
    first = arc_weights(np.array([values]))[0]
    assert first[1] == pytest.approx(abs(ttest_ind(values[:3], values[3:]).statistic))


@given(st.lists(st.floats(min_value=1e-3, max_value=1e3), min_size=0, max_size=12))
def test_changes_are_in_order_with_room_on_both_sides(values: list[float]) -> None:
    edges = [0, *(point.index for point in change_points(values)), len(values)]
    assert len(edges) == 2 or all(b - a >= 2 for a, b in pairwise(edges))
    assert change_points(values) == change_points(values)
