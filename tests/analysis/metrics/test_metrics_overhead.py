"""What watching cost, from pairs of steps with and without instruments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.overhead import NAMES, overhead_metrics
from moeprof.core.metric import MetricValue


def pairs(num: int, phase: str, bare_s: float, ratio: float, *, disturbed: int = 0) -> Any:
    """Pairs with a few percent of noise; in the first ``disturbed`` ones the processor was away for a second."""
    rng = np.random.default_rng(num)
    bare = bare_s * (1 + 0.02 * rng.random(num))
    watched = ratio * bare_s * (1 + 0.02 * rng.random(num))
    away = np.where(np.arange(num) < disturbed, 1.0, 0.0)
    columns = {"bare_s": bare, "instrumented_s": watched + away, "bare_cpu_s": bare, "instrumented_cpu_s": watched}
    return pd.DataFrame({"pair": np.arange(num), "phase": phase, "tokens": 8, **columns})


def one(values: list[MetricValue], name: str, phase: str | None = None) -> MetricValue:
    (found,) = [v for v in values if v.name == name and v.labels == ({} if phase is None else {"phase": phase})]
    return found


def test_the_overhead_is_told_for_all_steps_and_for_each_phase() -> None:
    table = pd.concat([pairs(300, "decode", 0.01, 1.10), pairs(200, "prefill", 0.1, 1.00)])
    values = overhead_metrics([table])
    assert one(values, NAMES[0], "decode").value == pytest.approx(1.10, abs=0.005)
    assert one(values, NAMES[0], "prefill").value == pytest.approx(1.00, abs=0.005)
    assert one(values, NAMES[0]).value == pytest.approx((3.3 + 20) / (3 + 20), abs=0.005)  # sums, not a mean of ratios
    median = one(values, NAMES[1])
    assert median.value == pytest.approx(1.10, abs=0.02)
    assert median.ci_low is not None and median.ci_high is not None
    assert median.ci_low <= 1.10 <= median.ci_high + 0.02
    assert not one(values, NAMES[0], "decode").valid
    assert one(values, NAMES[0], "prefill").valid
    assert [card_for(name).section for name in NAMES] == ["validity"] * 3


def test_pairs_set_aside_are_counted_by_phase() -> None:
    table = pd.concat([pairs(200, "decode", 0.01, 1.0, disturbed=20), pairs(50, "prefill", 0.1, 1.0)])
    values = overhead_metrics([table])
    assert one(values, NAMES[2]).value == 20 / 250
    assert one(values, NAMES[2], "decode").value == 0.1
    assert one(values, NAMES[2], "prefill").value == 0.0
    assert one(values, NAMES[0], "decode").reasons == ("20 of 200 pairs set aside",)
    assert one(values, NAMES[0], "prefill").reasons == ("50 undisturbed pairs of steps, 100 are needed",)


def test_without_pairs_nothing_is_claimed() -> None:
    assert {(v.value, v.reasons) for v in overhead_metrics([])} == {(None, ("the overhead pass did not run",))}
