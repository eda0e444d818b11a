"""The sparsity ladder from planted step times: taxes that can be checked in the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.sparsity.ladder import (
    SAME_AT_ONE_TOKEN,
    TAXES,
    LadderResult,
    ladders,
    same_taxes,
    usd_per_1m_tokens,
)
from moeprof.core.pricing import Pricing
from moeprof.core.record.lanes import LanePass
from tests.helpers.lane_records import lane, write_lanes

LANES = [
    lane("moe-active", match="active", twin_of="moe"),
    lane("concentrated", "concentrated", model="moe"),
    lane("balanced", "balanced", model="moe"),
    lane("recorded", "recorded", model="moe"),
    lane("native", "native", model="moe"),
    lane("moe-total", match="total", twin_of="moe"),
    lane("distinct-8", "distinct", model="moe", distinct=8),
    lane("distinct-16", "distinct", model="moe", distinct=16),
]
# 1 active 22 | +2 dispatch = 24 | +24 coverage = 48 | -1 imbalance = 47 | total 122 | native 46.5
SECONDS = dict(
    zip([one["name"] for one in LANES], (0.022, 0.024, 0.048, 0.047, 0.0465, 0.122, 0.028, 0.036), strict=True)
)
DISTINCT = {"concentrated": 4 * 2, "balanced": 4 * 30, "recorded": 4 * 30, "distinct-8": 4 * 8, "distinct-16": 4 * 16}


def measured(folder: Path, *, seconds: dict[str, Any] | None = None, **settings: Any) -> LanePass:
    return write_lanes(folder, seconds or SECONDS, lanes=LANES, distinct=DISTINCT, **settings)


def noisy(seed: int, sd: float = 0.01, num: int = 120) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    both = 1 + 0.05 * rng.standard_normal(num)
    return {name: s * both * (1 + sd * rng.standard_normal(num)) for name, s in SECONDS.items()}


def decode(folder: Path, **settings: Any) -> LadderResult:
    (found,) = [one for one in ladders([measured(folder, **settings)], num_moe_layers=4) if one.phase == "decode"]
    return found


def test_every_tax_is_the_difference_of_its_rungs(tmp_path: Path) -> None:
    found = decode(tmp_path)
    values = [found.tax(name).seconds.value for name in TAXES]
    assert values == pytest.approx([0.002, 0.024, -0.001, 0.075, 0.100, 0.0005])
    assert all(tax.told for tax in found.taxes)
    assert found.tax("coverage_tax_s").share.value == pytest.approx(24 / 47)
    assert found.realised.value == pytest.approx(0.755)  # by the native rung: the override is not the MoE's
    changes = sum(
        found.tax(name).seconds.value or 0 for name in ("dispatch_tax_s", "coverage_tax_s", "imbalance_tax_s")
    )
    assert changes + (found.tax("sparsity_saved_s").seconds.value or 0) == pytest.approx(0.100)  # a waterfall adds up


def test_rungs_know_their_role_and_their_experts(tmp_path: Path) -> None:
    found = decode(tmp_path)
    roles = ["active", "concentrated", "balanced", "recorded", "native", "total", "distinct", "distinct"]
    assert [rung.role for rung in found.rungs] == roles
    assert [rung.distinct_per_layer for rung in found.rungs] == [None, 2, 30, 30, None, None, 8, 16]
    assert (found.concurrency, found.num_launches, found.num_steps, found.tokens_per_step) == (8, 1, 120, 8)


def test_one_more_expert_costs_the_slope_of_the_line(tmp_path: Path) -> None:
    line = decode(tmp_path).coverage  # 24, 28, 36 ms at 2, 8, 16: means 8.667 and 29.33, slope 85.33 / 98.67
    assert [point.distinct_per_layer for point in line.points] == [2, 8, 16]
    assert line.slope.value == pytest.approx(0.001 * 85.333 / 98.667, rel=1e-4)
    assert line.slope.excludes(0)


def test_rungs_that_touch_the_same_number_of_experts_make_no_line(tmp_path: Path) -> None:
    one = write_lanes(tmp_path, SECONDS, lanes=LANES, distinct=dict.fromkeys(DISTINCT, 8), tokens=1)
    slope = ladders([one], num_moe_layers=4)[0].coverage.slope
    assert (slope.value, slope.reason) == (None, "every rung touched 2 experts: so few tokens a step cannot touch more")


def test_taxes_are_found_in_noise_and_what_is_not_there_is_not(tmp_path: Path) -> None:
    same = {**SECONDS, "recorded": SECONDS["balanced"]}
    rng = np.random.default_rng(3)
    both = 1 + 0.05 * rng.standard_normal(120)
    seconds = {name: s * both * (1 + 0.02 * rng.standard_normal(120)) for name, s in same.items()}
    found = decode(tmp_path, seconds=seconds)
    assert found.tax("dispatch_tax_s").told
    assert found.tax("coverage_tax_s").told
    imbalance = found.tax("imbalance_tax_s")
    assert not imbalance.told
    assert imbalance.note == "the rungs balanced and recorded are not distinguishable"
    assert imbalance.seconds.low is not None and imbalance.seconds.high is not None
    assert imbalance.seconds.low < 0 < imbalance.seconds.high


def test_the_interval_of_a_tax_covers_what_was_planted() -> None:
    from moeprof.analysis.stats.bootstrap import draw_means, estimate_of

    rng, held = np.random.default_rng(2), 0
    for _ in range(300):
        both = 1 + 0.1 * rng.standard_normal(120)
        times = np.stack([s * both * (1 + 0.05 * rng.standard_normal(120)) for s in (0.047, 0.048)], axis=1)
        draws = draw_means(("recorded", "balanced"), times, np.arange(120) % 40)
        told = estimate_of([draws], lambda s: s["recorded"] - s["balanced"], signed=True)
        assert told.low is not None and told.high is not None
        held += told.low <= -0.001 <= told.high
    assert 0.90 <= held / 300 <= 0.99


def test_at_one_token_a_step_imbalance_is_nothing_by_definition(tmp_path: Path) -> None:
    tax = decode(tmp_path, tokens=1).tax("imbalance_tax_s")
    assert (tax.told, tax.note) == (False, SAME_AT_ONE_TOKEN)


def test_a_rung_that_is_missing_is_said(tmp_path: Path) -> None:
    two = [lane("moe-active", match="active"), lane("recorded", "recorded")]
    one = write_lanes(tmp_path, {"moe-active": 0.02, "recorded": 0.04}, lanes=two)
    found = ladders([one], num_moe_layers=4)[0]
    assert found.tax("dispatch_tax_s").note == "not measured: no lane is the rung concentrated"
    assert found.tax("dispatch_tax_s").seconds.value is None
    assert found.realised.reason == "not measured: no lane is the rung total"
    assert found.coverage.slope.reason is not None and "two are needed" in found.coverage.slope.reason


def test_each_load_and_phase_with_enough_steps_has_its_own_ladder(tmp_path: Path) -> None:
    phases = ["prefill"] * 3 + ["mixed"] * 4 + ["decode"] * 33
    passes = [measured(tmp_path, concurrency=c, phase=phases) for c in (8, 1)]
    found = [(one.concurrency, one.phase, one.num_steps) for one in ladders(passes, num_moe_layers=4)]
    assert found == [(c, p, n) for c in (1, 8) for p, n in (("decode", 99), ("mixed", 12), ("all", 120))]


def test_over_launches_the_taxes_have_the_interval_of_launches(tmp_path: Path) -> None:
    passes = []
    for launch, more in enumerate((-0.001, 0.0, 0.001)):
        seconds = {**SECONDS, "recorded": 0.047 + more}
        passes.append(measured(tmp_path, seconds=seconds, launch=launch))
    found = ladders(passes, num_moe_layers=4)[0]
    tax, half = found.tax("imbalance_tax_s"), 4.3027 * 0.001 / np.sqrt(3)
    assert (found.num_launches, tax.told) == (3, False)
    assert (tax.seconds.low, tax.seconds.high) == pytest.approx((-0.001 - half, -0.001 + half), rel=1e-3)


def test_a_lane_that_did_not_fit_in_one_launch_is_left_out(tmp_path: Path) -> None:
    less = {name: s for name, s in SECONDS.items() if name != "moe-total"}
    second = write_lanes(tmp_path, less, lanes=[one for one in LANES if one["name"] != "moe-total"], launch=1)
    found = ladders([measured(tmp_path), second], num_moe_layers=4)[0]
    assert found.rung("total") is None
    assert found.tax("sparsity_saved_s").note == "not measured: no lane is the rung total"
    assert found.tax("coverage_tax_s").seconds.value == pytest.approx(0.024)


def test_two_runs_of_the_same_ladder_agree_and_a_changed_one_does_not(tmp_path: Path) -> None:
    first = decode(tmp_path / "a", seconds=noisy(1))
    again = same_taxes(first, decode(tmp_path / "b", seconds=noisy(2)))
    assert [one.agree for one in again] == [True] * 7
    seconds = noisy(3)
    seconds["balanced"] = seconds["balanced"] * 1.2
    changed = {one.name: one.agree for one in same_taxes(first, decode(tmp_path / "c", seconds=seconds))}
    assert (changed["coverage_tax_s"], changed["imbalance_tax_s"], changed["dispatch_tax_s"]) == (False, False, True)


def test_a_machine_of_half_the_speed_has_other_seconds_and_the_same_shares(tmp_path: Path) -> None:
    first = decode(tmp_path / "a", seconds=noisy(1))
    slow = decode(tmp_path / "b", seconds={name: 2 * s for name, s in noisy(2).items()})
    assert [one.agree for one in same_taxes(first, slow)] == [True] * 7
    in_seconds = {one.name: one.agree for one in same_taxes(first, slow, in_seconds=True)}
    assert in_seconds["coverage_tax_s"] is False


def test_two_runs_of_which_one_lacks_a_rung_cannot_be_told(tmp_path: Path) -> None:
    less = {name: s for name, s in SECONDS.items() if name != "native"}
    one = write_lanes(tmp_path / "b", less, lanes=[one for one in LANES if one["name"] != "native"])
    agreement = {a.name: a for a in same_taxes(decode(tmp_path / "a"), ladders([one], num_moe_layers=4)[0])}
    assert agreement["override_cost_s"].agree is None
    assert agreement["override_cost_s"].difference.reason == "not measured: no lane is the rung native"


def test_seconds_of_a_step_become_dollars_of_a_million_tokens(tmp_path: Path) -> None:
    found = decode(tmp_path)  # 75 ms for 8 tokens at 3.6 USD per hour: 75e-6 USD per 8 tokens
    usd = usd_per_1m_tokens(found.tax("sparsity_saved_s").seconds, 8, Pricing(usd_per_device_hour=3.6))
    assert usd.value == pytest.approx(75e-6 / 8 * 1e6)
    assert usd.low == pytest.approx(usd.value)


def test_every_tax_has_a_card() -> None:
    names = [*TAXES, "seconds_per_distinct_expert", "sparsity_realised_ratio", "dense_equivalent_params",
             "lockstep_ratio", "lockstep_median_ratio"]  # fmt: skip
    assert {card_for(name).section for name in names} == {"comparison"}
