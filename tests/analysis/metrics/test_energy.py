"""Energy from planted telemetry: power that is known at every moment, a counter that shows its integral in steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.metrics.resources.energy import energy_metrics, pass_energy
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.stats.arrays import FloatArray
from tests.helpers.records import make_pass, make_steps, make_telemetry

PERIOD_S = 0.1


def plant(
    power_w: FloatArray, window_s: float, every_s: float, offset_s: float, **columns: Any
) -> tuple[PassTables, float]:
    """Power changes each second; the true energy of [0, window] stands beside the pass."""

    def true_j(end_s: FloatArray) -> FloatArray:
        seconds = np.arange(-2, len(power_w) - 1)
        summed = np.concatenate([[0.0], np.cumsum(power_w)])
        return np.asarray(np.interp(end_s, seconds, summed[: len(seconds)]), dtype=np.float64)

    times_s = np.arange(-2 + offset_s, window_s + 1, every_s)
    shown = true_j(np.floor(times_s / PERIOD_S) * PERIOD_S)  # the counter moves ten times a second
    sampled = power_w[np.clip(np.floor(times_s).astype(int) + 2, 0, len(power_w) - 1)]
    telemetry = make_telemetry(
        len(times_s), **{"t_s": times_s, "power_w": sampled, "energy_counter_j": 1e6 + shown, **columns}
    )
    tables = make_pass(steps=make_steps(10, step_s=window_s / 10), telemetry=telemetry, window_s=(0.0, window_s))
    return tables, float(true_j(np.array([window_s]))[0] - true_j(np.array([0.0]))[0])


@given(
    levels=st.lists(st.floats(60, 700), min_size=40, max_size=40),
    window_s=st.floats(2.0, 30.0),
    every_s=st.floats(0.1, 0.5),
    offset_s=st.floats(0.0, 0.1),
)
def test_a_figure_that_stands_is_the_truth_within_the_counters_step(
    levels: list[float], window_s: float, every_s: float, offset_s: float
) -> None:
    power_w = np.array(levels)
    tables, truth_j = plant(power_w, window_s, every_s, offset_s)
    found = pass_energy(tables)
    if found.joules is None:
        assert found.reason == "counter_disagrees"  # power that jumps by 600 W between samples
    else:
        assert abs(found.joules - truth_j) <= 2 * PERIOD_S * power_w.max() + 1e-6


@given(power_w=st.floats(60, 700), window_s=st.floats(2.0, 30.0), every_s=st.floats(0.1, 2.5))
def test_constant_power_is_always_measured(power_w: float, window_s: float, every_s: float) -> None:
    tables, truth_j = plant(np.full(40, power_w), window_s, every_s, 0.0)
    found = pass_energy(tables)
    if found.reason is None:
        assert found.joules == pytest.approx(truth_j, rel=0.11)
    else:
        assert found.reason in ("counter_disagrees", "window_not_bracketed")
        assert window_s < 25 * PERIOD_S or every_s > 0.3


@given(scale=st.floats(1.06, 3.0), down=st.booleans())
def test_a_counter_that_is_off_by_more_than_a_twentieth_never_stands(scale: float, down: bool) -> None:
    factor = 1 / scale if down else scale
    times_s = 0.2 * np.arange(101)
    telemetry = make_telemetry(101, power_w=300.0, energy_counter_j=factor * 300.0 * times_s)
    tables = make_pass(steps=make_steps(10, step_s=2.0), telemetry=telemetry, window_s=(0.0, 20.0))
    assert pass_energy(tables).reason == "counter_disagrees"


def planted(**columns: Any) -> PassTables:
    """Twenty seconds at 300 W."""
    telemetry = make_telemetry(101, **{"power_w": 300.0, "energy_counter_j": 300.0 * 0.2 * np.arange(101), **columns})
    return make_pass(steps=make_steps(10, step_s=2.0), telemetry=telemetry, window_s=(0.0, 20.0))


STRANGER = np.zeros(101)
STRANGER[50] = 1
GAP = np.full(101, 300.0)
GAP[20:40] = np.nan  # four seconds


@pytest.mark.parametrize(
    ("reason", "columns"),
    [
        ("no_power_samples", {"power_w": None}),
        ("power_gap", {"power_w": GAP}),
        ("shared_device", {"num_other_processes": STRANGER}),
        ("counter_stuck", {"power_w": None, "energy_counter_j": None, "cpu_energy_counter_j": 5.0}),
    ],
)
def test_a_check_that_fails_has_its_own_code(reason: str, columns: dict[str, Any]) -> None:
    assert pass_energy(planted(**columns)).reason == reason


def test_energy_of_a_device_that_nobody_else_uses_stands() -> None:
    assert pass_energy(planted(num_other_processes=0)).joules == pytest.approx(6000.0)


def test_idle_power_that_is_missing_says_why() -> None:
    values = {v.name: v for v in energy_metrics([planted()], None, "device_busy_at_start")}
    assert values["idle_power_w"].value is None
    assert values["idle_power_w"].reasons == ("device_busy_at_start",)
