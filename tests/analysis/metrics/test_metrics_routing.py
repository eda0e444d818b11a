from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.routing import measures as load
from moeprof.analysis.metrics.routing import nulls
from moeprof.analysis.metrics.routing.metrics import NAMES, load_interval, routing_metrics
from moeprof.analysis.metrics.routing.picks import consecutive_overlap
from moeprof.analysis.metrics.routing.shift import (
    drift,
    drift_by_phase,
    js_divergence,
    load_shares,
    specialisation,
    total_variation,
)
from moeprof.analysis.metrics.routing.units import REQUESTS, Units, exchangeable_units
from moeprof.analysis.stats.intervals import block_mean_interval
from moeprof.core.metric import MetricValue
from tests.helpers.planted_traffic import planted_traffic, popularity
from tests.helpers.records import draw_step_counts, make_facts, make_pass, make_requests, make_routing, make_steps
from tests.helpers.shared_data import shared

COUNTS = "routing/olmoe_mixtral_expert_counts.csv"


def one(values: list[MetricValue], name: str, **labels: str) -> MetricValue:
    """The only value of that name and exactly these labels beside traffic and window."""
    kept = ("phase", "layer", "request_class")
    found = [v for v in values if v.name == name and {k: v.labels[k] for k in kept if k in v.labels} == labels]
    assert len(found) == 1, (name, labels, len(found))
    return found[0]


def published(model: str, domain: str, layer: int) -> Any:
    table = pd.read_csv(shared(COUNTS))
    rows = table[(table["model"] == model) & (table["kind"] == "expert_counts")]
    rows = rows[(rows["domain"] == domain) & (rows["layer"] == layer)].sort_values("expert")
    return rows["count"].to_numpy()


def test_measures_of_counts_that_can_be_checked_in_the_head() -> None:
    uneven, even, one_expert = np.array([6, 2, 0, 0]), np.array([2, 2, 2, 2]), np.array([8, 0, 0, 0])
    assert load.max_over_mean(uneven) == 3.0
    assert load.load_cv(uneven) == pytest.approx(math.sqrt(6) / 2)  # deviations 4, 0, -2, -2: variance 24/4
    assert load.jain(uneven) == pytest.approx(0.4)
    assert load.gini(uneven) == pytest.approx(0.625)
    assert load.dead_experts(uneven) == 2.0
    assert load.top_decile_load_ratio(uneven) == 0.75
    assert [load.entropy_ratio(x).item() for x in (even, one_expert)] == [pytest.approx(1), pytest.approx(0)]
    assert [load.effective_experts(x).item() for x in (even, one_expert)] == [pytest.approx(4), pytest.approx(1)]
    assert np.isnan(load.max_over_mean(np.zeros(4)))


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any))
def test_measures_stay_in_their_bounds(counts: list[int]) -> None:
    array = np.array(counts)
    assert 1 - 1e-9 <= load.max_over_mean(array) <= len(counts) + 1e-9
    assert 1 / len(counts) - 1e-9 <= load.jain(array) <= 1 + 1e-9
    assert -1e-9 <= load.gini(array) <= 1
    assert 1 - 1e-9 <= load.effective_experts(array) <= len(counts) + 1e-9


def test_published_counts_give_the_published_load() -> None:
    for (model, domain, layer), expected in {
        ("olmoe", "c4", 7): 2.658,
        ("mistral", "c4", 7): 1.076,
        ("olmoe", "arxiv", 0): 7.813,
    }.items():
        assert load.max_over_mean(published(model, domain, layer)) == pytest.approx(expected, abs=5e-4)


def test_every_row_of_the_published_summary_is_reproduced() -> None:
    table = pd.read_csv(shared(COUNTS))
    summary = pd.read_csv(shared("routing/olmoe_mixtral_expert_counts_summary.csv"))
    keys = ["model", "kind", "domain", "layer"]
    counts = {key: rows.sort_values("expert")["count"].to_numpy() for key, rows in table.groupby(keys)}
    for row in summary.itertuples():
        own = counts[(row.model, row.kind, row.domain, row.layer)]
        assert own.sum() == row.total_assignments
        assert load.max_over_mean(own) == pytest.approx(row.max_over_mean, abs=6e-4)
        assert load.load_cv(own) == pytest.approx(row.cv, abs=6e-4)
        assert load.entropy_ratio(own) == pytest.approx(row.norm_entropy, abs=6e-5)
        assert int(own.argmax()) == row.argmax_expert


@pytest.mark.parametrize(
    ("num_experts", "top_k", "expected"),
    [(8, 2, (7.20, 7.92, 8.0)), (128, 8, (51.6, 82.4, 125.9)), (256, 8, (57.4, 102.0, 222.4))],
)
def test_uniform_distinct_experts_are_those_of_the_contract(
    num_experts: int, top_k: int, expected: tuple[float, ...]
) -> None:
    found = nulls.uniform_distinct(num_experts, top_k, np.array([8, 16, 64]))
    assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(
    ("domain", "layer", "expected"), [("c4", 7, 40.2), ("github", 7, 29.6), ("wikipedia", 15, 27.1)]
)
def test_real_popularity_touches_fewer_experts_than_the_uniform_formula(
    domain: str, layer: int, expected: float
) -> None:
    found = nulls.marginal_distinct(published("olmoe", domain, layer), 208_896, np.array([8]))
    assert found[0] == pytest.approx(expected, abs=0.05)
    assert nulls.uniform_distinct(64, 8, 8) == pytest.approx(42.0, abs=0.05)


def test_the_marginal_null_of_a_short_window_counts_without_replacement() -> None:
    # 2 tokens, each on its own expert: a batch of 2 touches both for sure; the plug-in would say 1.5
    assert nulls.marginal_distinct(np.array([1, 1]), 2, np.array([1, 2, 3]))[:2] == pytest.approx([1.0, 2.0])
    assert np.isnan(nulls.marginal_distinct(np.array([1, 1]), 2, np.array([3]))[0])


def test_nulls_for_consecutive_tokens_of_mixtral() -> None:
    assert nulls.consecutive_top1_null(8) == 0.125
    assert nulls.consecutive_overlap_null(8, 2) == pytest.approx(0.464, abs=5e-4)


def test_monte_carlo_counts_have_the_mean_and_spread_of_the_closed_form() -> None:
    for tokens in (16, 2_000):  # exact draws, and the normal law
        counts = nulls.uniform_counts(16, 2, tokens)
        assert counts.mean() == pytest.approx(tokens * 2 / 16, rel=0.02)
        cv = nulls.uniform_expectation(load.load_cv, 16, 2, tokens)
        assert cv == pytest.approx(nulls.uniform_cv(16, 2, tokens), rel=0.1)


def test_the_hot_set_takes_the_busiest_experts_of_all_layers_first() -> None:
    counts = np.array([[50, 30, 0, 0], [10, 5, 4, 1]])
    assert load.hot_set_experts(counts, 0.80).tolist() == [2, 0]
    assert load.hot_set_experts(counts, 0.90).tolist() == [2, 1]
    assert load.hot_set_experts(counts, 1.0).tolist() == [2, 4]
    assert load.hot_set_experts(np.zeros((2, 4)), 0.9).tolist() == [0, 0]


def test_the_capacity_factor_is_the_smallest_that_drops_at_most_one_percent() -> None:
    # 50 steps of 4 tokens, top-1 of 2 experts: mean 2 per expert. Always 3 and 1: ceil(c * 2) must be 3.
    counts = np.tile(np.array([[[3, 1]]]), (50, 1, 1))
    factor = load.capacity_factor(counts, np.full(50, 4), 1)
    assert factor == 1.5
    # one step in 100 with 4 and 0 costs one drop in 400 at capacity 3: still allowed
    mixed = np.concatenate([np.tile(np.array([[[3, 1]]]), (99, 1, 1)), np.array([[[4, 0]]])])
    assert load.capacity_factor(mixed, np.full(100, 4), 1) == factor
    assert load.capacity_factor(np.zeros((3, 1, 2), dtype=int), np.full(3, 4), 1) is None


def test_js_and_total_variation_of_known_pairs() -> None:
    left, right, both = np.array([4, 0]), np.array([0, 4]), np.array([2, 2])
    assert js_divergence(left, right) == pytest.approx(1.0)
    assert js_divergence(both, 10 * both) == pytest.approx(0.0)
    assert total_variation(left, both) == pytest.approx(0.5)


def test_js_of_64_tokens_over_128_experts_is_about_a_tenth_by_chance() -> None:
    counts = np.stack([nulls.uniform_counts(128, 8, 64, 2, seed) for seed in range(50)])
    assert np.mean(js_divergence(counts[:, 0], counts[:, 1])) == pytest.approx(0.1, abs=0.03)


def _windows(seed: int, num: int = 12, tilt: float = 0.0) -> Any:
    """Windows of 2,000 picks over 16 experts in 2 layers; ``tilt`` moves popularity from the first window on."""
    rng = np.random.default_rng(seed)
    shares = np.stack([np.ones(16) + tilt * w / num * (np.arange(16) < 4) for w in range(num)])
    shares /= shares.sum(axis=1, keepdims=True)
    return np.stack([np.stack([rng.multinomial(2_000, q) for _ in range(2)]) for q in shares])


def _units(counts: Any, classes: Any = None) -> Units:
    zeros = np.zeros(len(counts), dtype=np.int64)
    class_G = zeros if classes is None else np.asarray(classes)
    why = None if len(counts) >= 12 else "few"
    return Units(counts_GLE=counts, class_G=class_G, block_G=zeros, what=REQUESTS, why_not=why)


def test_a_moving_router_drifts_and_a_steady_one_does_not() -> None:
    moving = drift("decode", _units(_windows(0, tilt=1.0)))
    assert moving.p_value is not None and moving.p_value < 0.05
    assert moving.halves_js is not None and moving.halves_js > 3 * moving.null_js["multinomial"]
    alarms = [drift("decode", _units(_windows(seed))).p_value or 0 for seed in range(40)]
    assert sum(p <= 0.05 for p in alarms) <= 4


def test_classes_with_their_own_experts_are_specialised_and_equal_ones_are_not() -> None:
    code, prose = _windows(0), _windows(1)
    classes = np.repeat([0, 1], 12)
    favoured = code.copy()
    favoured[..., :4] *= 3
    found = specialisation("decode", ("code", "prose"), _units(np.concatenate([favoured, prose]), classes))
    assert found is not None and found.p_between is not None and found.p_between < 0.05
    assert found.between_CC[0, 1] == pytest.approx(0.25, abs=0.03)  # 12/24 against 4/16 of the picks
    alarms = 0
    for seed in range(30):
        both = np.concatenate([_windows(seed), _windows(seed + 100)])
        same = specialisation("decode", ("a", "b"), _units(both, classes))
        alarms += same is not None and (same.p_between or 0) <= 0.05
    assert alarms <= 4
    assert specialisation("decode", ("a", "b"), _units(code)) is None


def test_fewer_than_twelve_requests_claim_no_drift_and_no_specialisation() -> None:
    moved = drift("decode", _units(_windows(0, tilt=1.0)[:11]))
    assert moved.halves_js is not None and moved.p_value is None  # one request's tokens are alike: no evidence
    found = specialisation("decode", ("a", "b"), _units(_windows(0)[:11], [0] * 5 + [1] * 6))
    assert found is not None and found.p_between is None


def _judged(tables: Any, classes: tuple[str, ...] = ("a", "b")) -> tuple[float | None, float | None]:
    """P-values of drift and of specialisation in decode."""
    routing = tables.routing
    moved = drift("decode", exchangeable_units(tables, routing, "decode"))
    found = specialisation("decode", classes, exchangeable_units(tables, routing, "decode", by_class=True))
    return moved.p_value, None if found is None else found.p_between


def test_stationary_requests_that_last_many_steps_raise_few_alarms() -> None:
    """64 requests of 64 tokens, 8 in flight, each with its own taste, labels at random: 5 % of runs may alarm.

    P(more than 8 of 60 at 5 %) = 0.3 %. Shuffled stretches of time gave 85 to 100 %.
    """
    found = [_judged(planted_traffic(seed, class_names=("a", "b"))) for seed in range(60)]
    for p_values in zip(*found, strict=True):
        assert all(p is not None for p in p_values)
        assert sum(p <= 0.05 for p in p_values if p is not None) <= 8


def test_planted_drift_and_planted_classes_are_found() -> None:
    assert all((_judged(planted_traffic(seed, moved=0.8))[0] or 1) < 0.05 for seed in range(5))
    late = np.repeat([0, 1], 32)  # the second class comes later, when other experts are liked
    moved = _judged(planted_traffic(1, moved=0.8, class_names=("a", "b"), classes=late))
    assert moved[1] is not None and moved[1] < 0.05


def test_a_record_without_counts_per_request_judges_by_blocks_longer_than_a_request() -> None:
    # 64 requests of about 64 steps, 8 in flight: some 520 steps, seven blocks
    old = planted_traffic(0, class_names=("a", "b"), by_request=False)
    assert _judged(old) == (None, None)
    values = routing_metrics([old], FACTS)
    for name in ("router_drift_js_p", "domain_total_variation_p"):
        (reason,) = one(values, name, phase="decode").reasons
        assert reason == (
            "cannot tell: the record has no counts per request, and 6 blocks of time longer than a request, "
            "12 are needed"
        )
    assert one(values, "router_load_cv", phase="decode").ci_low is None
    # of 4 steps each, 8 in flight: some 120 steps after which 12 blocks stand
    short = planted_traffic(0, num_requests=240, output_tokens=4, by_request=False)
    assert _judged(short)[0] is not None
    assert one(routing_metrics([short], FACTS), "router_load_cv", phase="decode").ci_low is not None


def test_intervals_of_load_cover_the_router_that_the_requests_were_drawn_from() -> None:
    """Requests that differ much: the CV of one run lies above the router's, its interval holds it all the same."""
    truth = {name: float(load.MEASURES[name](1e9 * popularity(16, 0.5))) for name in ("router_load_cv", "router_gini")}
    truth["router_entropy_ratio"] = float(load.entropy_ratio(1e9 * popularity(16, 0.5)))
    inside, above, runs = dict.fromkeys(truth, 0), 0, 40
    for seed in range(runs):
        tables = planted_traffic(seed, slope=0.5, alike=3.0, num_requests=48, output_tokens=24)
        units = exchangeable_units(tables, tables.routing, "decode")
        whole = units.counts_GLE.sum(axis=0)
        for name, true in truth.items():
            value = float(load.MEASURES[name](whole).mean())
            left = load.MEASURES[name](whole - units.counts_GLE).mean(axis=-1)
            low, high = load_interval(name, value, left, units) or (math.nan, math.nan)
            inside[name] += low <= true <= high
            assert low <= value <= high
            above += name == "router_load_cv" and value > true
    assert above >= 0.8 * runs  # few requests look less even than their router
    assert all(num >= 34 for num in inside.values()), inside  # P(fewer than 34 of 40 at 95 %) = 0.3 %


def _mixed(num_pure: int, *, keep: bool = True) -> Any:
    """60 steps with 4 decode tokens each: ``num_pure`` hold nothing else, the others 32 prompt tokens too."""
    prefill = np.where(np.arange(60) < num_pure, 0, 32)
    tokens = np.stack([prefill, np.full(60, 4)], axis=1)
    counts = draw_step_counts(tokens, num_layers=2, num_experts=16, top_k=2, seed=0)
    steps = make_steps(
        60, phase=np.where(prefill > 0, "mixed", "decode"), prefill_tokens=prefill, decode_tokens=np.full(60, 4)
    )
    routing = make_routing(counts, keep_step_counts=keep)
    return make_pass(requests=make_requests(2), steps=steps, routing=routing), counts


def test_a_phase_says_which_share_of_its_tokens_its_steps_speak_for() -> None:
    tables, counts = _mixed(30)
    values = routing_metrics([tables], FACTS)
    assert one(values, "pure_step_tokens_ratio", phase="decode").value == 0.5
    touched = one(values, "distinct_experts_per_step", phase="decode")
    assert touched.n == 30
    assert touched.reasons[0] == "speaks for 50 % of the decode tokens: 30 of 60 steps hold nothing else"
    # below a fifth the decode tokens of mixed steps count too, and they alone
    tables, counts = _mixed(6)
    values = routing_metrics([tables], FACTS)
    assert one(values, "pure_step_tokens_ratio", phase="decode").value == pytest.approx(0.1)
    assert one(values, "step_figures_tokens_ratio", phase="decode").value == 1
    touched = one(values, "distinct_experts_per_step", phase="decode")
    assert (touched.n, touched.value) == (60, pytest.approx((counts[:, 1] > 0).sum(axis=2).mean()))
    assert touched.reasons[0].startswith("decode tokens of mixed steps too, 60 of 60 steps; pure decode steps hold 10")
    tables, _ = _mixed(6, keep=False)
    values = routing_metrics([tables], FACTS)
    assert one(values, "step_figures_tokens_ratio", phase="decode").value == pytest.approx(0.1)
    assert one(values, "distinct_experts_per_step", phase="decode").n == 6


def test_nothing_gets_better_because_experts_died() -> None:
    """Half of the experts get no token any more: what falls or rises then with a direction must call it worse."""
    even = draw_step_counts(np.tile([0, 8], (60, 1)), num_layers=2, num_experts=16, top_k=2, seed=0)
    dying = np.zeros_like(even)
    dying[..., :8] = draw_step_counts(np.tile([0, 8], (60, 1)), num_layers=2, num_experts=8, top_k=2, seed=0)
    both = []
    for counts in (even, dying):
        steps = make_steps(60, decode_tokens=np.full(60, 8))
        tables = make_pass(requests=make_requests(2), steps=steps, routing=make_routing(counts))
        both.append([v for v in routing_metrics([tables], FACTS) if "layer" not in v.labels and v.value is not None])
    moved = 0
    for before, after in zip(*both, strict=True):
        assert (before.name, before.labels) == (after.name, after.labels)
        better = card_for(before.name).better
        change = float(after.value or 0) - float(before.value or 0)
        if better != "neither" and abs(change) > 1e-9:
            moved += 1
            assert (change < 0) == (better == "higher"), before.name
    assert moved >= 8


def test_consecutive_figures_stay_inside_sequences_and_beside_their_nulls() -> None:
    picks = np.array([[[0, 1]], [[0, 2]], [[3, 2]], [[3, 1]]])
    whole = consecutive_overlap(picks, np.array([0]), 8)
    assert whole is not None
    assert (whole.same_top1_pairs.tolist(), whole.overlap_pairs.tolist()) == ([1, 0, 1], [1, 1, 1])
    split = consecutive_overlap(picks, np.array([0, 2]), 8)
    assert split is not None and split.same_top1_pairs.tolist() == [1, 1]
    assert consecutive_overlap(picks, np.array([0, 1, 2, 3]), 8) is None
    drawn = np.argsort(np.random.default_rng(0).random((5_000, 1, 8)), axis=2)[..., :2]
    random = consecutive_overlap(drawn, np.array([0]), 8)
    assert random is not None
    assert random.permuted_overlap[0] == pytest.approx(random.uniform_overlap, abs=0.02)
    assert random.overlap_pairs.mean() == pytest.approx(0.464, abs=0.02)


def _routed_pass(seed: int = 0, *, num: int = 120, skew: float = 0.0, experts: int = 16) -> Any:
    """120 steps: every tenth a prefill of 32 tokens, else a decode of 8; 2 layers, top-2; two classes in turn."""
    prefill = np.where(np.arange(num) % 10 == 0, 32, 0)
    tokens = np.stack([prefill, np.where(prefill > 0, 0, 8)], axis=1)
    counts = draw_step_counts(tokens, num_layers=2, num_experts=experts, top_k=2, seed=seed, skew=skew)
    classes = np.arange(num) // 10 % 2
    routing = make_routing(counts, class_names=("code", "prose"), class_of_step=classes)
    phase = np.where(prefill > 0, "prefill", "decode")
    steps = make_steps(num, phase=phase, prefill_tokens=prefill, decode_tokens=tokens[:, 1])
    return make_pass(requests=make_requests(2, ttft_s=0.02), steps=steps, routing=routing), counts


FACTS = make_facts(num_layers=2, num_experts=16, top_k=2)


def test_metrics_of_a_pass_agree_with_the_counts_they_come_from() -> None:
    tables, counts = _routed_pass(skew=0.5)
    values = routing_metrics([tables], FACTS)
    decode = counts[:, 1].astype(int)
    total = decode.sum(axis=0)
    expected = np.mean([total[layer].max() / total[layer].mean() for layer in range(2)])
    assert one(values, "router_load_max_over_mean", phase="decode").value == pytest.approx(expected)
    worst = max(total[layer].max() / total[layer].mean() for layer in range(2))
    assert one(values, "router_load_max_over_mean_worst", phase="decode").value == pytest.approx(worst)
    pure = decode[counts[:, 1].sum(axis=(1, 2)) > 0]
    distinct = (pure > 0).sum(axis=2).mean()
    assert one(values, "distinct_experts_per_step", phase="decode").value == pytest.approx(distinct)
    assert one(values, "experts_touched_ratio", phase="decode").value == pytest.approx(distinct / 16)
    assert one(values, "expert_reuse_ratio", phase="decode").value == pytest.approx(16 / distinct)
    assert one(values, "step_load_max_over_mean", phase="decode").value == pytest.approx(pure.max(axis=2).mean())
    layer = one(values, "distinct_experts_per_step", phase="decode", layer="model.layers.1.mlp")
    assert layer.value == pytest.approx((pure[:, 1] > 0).sum(axis=1).mean())


def test_a_uniform_router_lies_at_its_nulls_and_a_skewed_one_does_not() -> None:
    even = routing_metrics([_routed_pass(1)[0]], FACTS)
    distinct = one(even, "distinct_experts_per_step", phase="decode")
    assert distinct.null["uniform"] == pytest.approx(16 * (1 - (7 / 8) ** 8))
    assert distinct.ci_low is not None and distinct.ci_low < distinct.null["uniform"] < (distinct.ci_high or 0)
    assert distinct.null["marginal"] == pytest.approx(distinct.null["uniform"], abs=0.15)
    load_ratio = one(even, "step_load_max_over_mean", phase="decode")
    assert load_ratio.value == pytest.approx(load_ratio.null["uniform"], abs=0.15)
    skewed = routing_metrics([_routed_pass(1, skew=1.0)[0]], FACTS)
    distinct = one(skewed, "distinct_experts_per_step", phase="decode")
    assert distinct.value is not None and distinct.value < distinct.null["uniform"] - 1.5
    assert distinct.value == pytest.approx(distinct.null["marginal"], abs=0.3)  # its tokens are independent


def test_extremes_of_a_router_have_no_interval_but_a_null_and_shares_stay_below_one() -> None:
    values = routing_metrics([_routed_pass(1)[0]], FACTS)
    extremes = [v for v in values if v.name.startswith("router_load_max_over_mean") or v.name == "dead_experts"]
    extremes += [v for v in values if v.name == "top_decile_load_ratio"]
    assert len(extremes) == 3 + 3 * 3 + 2 * 2 * 2 + 2 * 2 * 2  # phases; two layers and two classes in two phases
    for value in extremes:
        assert (value.ci_low, value.ci_high) == (None, None)
        assert value.reasons == (
            "no interval: no resampling covers an extreme of counts; compare with the uniform expectation",
        )
        assert "uniform" in value.null
    entropy = one(values, "router_entropy_ratio", phase="decode")
    assert entropy.ci_low is not None and entropy.ci_high is not None
    assert 0 < entropy.ci_low < entropy.ci_high <= 1
    touched = one(values, "experts_touched_ratio", phase="prefill")
    assert touched.ci_high is not None and touched.ci_high <= 1


def test_the_worst_of_many_even_layers_lies_at_its_null() -> None:
    for layers in (1, 12):
        worst = [load.max_over_mean(nulls.uniform_counts(16, 2, 500, layers, seed)).max() for seed in range(1, 41)]
        expected = nulls.uniform_worst(load.max_over_mean, 16, [2] * layers, 500)
        assert np.mean(worst) == pytest.approx(expected, abs=0.03)
    alone = nulls.uniform_expectation(load.max_over_mean, 16, 2, 500)
    assert nulls.uniform_worst(load.max_over_mean, 16, [2], 500) == pytest.approx(alone)


def test_the_mean_of_the_largest_loads_of_steps_is_covered_by_its_interval() -> None:
    steps = np.stack([load.max_over_mean(nulls.uniform_counts(16, 2, 8, 12_000, 7))]).reshape(100, 120)
    found = [block_mean_interval(series) or (0.0, 0.0) for series in steps]
    assert sum(low <= steps.mean() <= high for low, high in found) >= 88


def test_figures_are_split_by_class_and_judged_for_specialisation() -> None:
    values = routing_metrics([_routed_pass(2)[0]], FACTS)
    assert one(values, "router_load_cv", phase="decode", request_class="code").value is not None
    assert one(values, "domain_specialisation", phase="decode", request_class="prose").null.keys() >= {"multinomial"}
    p_value = one(values, "domain_total_variation_p", phase="decode").value
    assert p_value is not None and p_value > 0.05  # both classes are drawn alike


def test_a_short_pass_of_one_window_still_has_intervals_from_its_steps() -> None:
    """Requests last six steps: 120 steps make 17 blocks of seven; without counts per step there is one window."""
    tables, counts = _routed_pass()
    requests = make_requests(2, ttft_s=0.02)
    one_window = make_routing(counts, steps_per_window=1_000)
    values = routing_metrics([make_pass(requests=requests, steps=tables.steps, routing=one_window)], FACTS)
    found = one(values, "router_load_cv", phase="decode")
    assert (found.n, found.ci_low is None) == (17, False)
    assert one(values, "router_drift_js", phase="decode").null.keys() == {"multinomial", "permutation"}
    bare = make_routing(counts, steps_per_window=1_000, keep_step_counts=False)
    values = routing_metrics([make_pass(requests=requests, steps=tables.steps, routing=bare)], FACTS)
    assert one(values, "router_load_cv", phase="decode").reasons == (
        "no interval: the record has no counts per request, and 1 blocks of time longer than a request, 12 are needed",
    )


def test_a_dense_model_and_a_run_without_a_tap_say_why_there_is_nothing() -> None:
    dense = routing_metrics([make_pass()], make_facts(num_experts=0))
    assert {v.reasons for v in dense} == {("a dense model has no router",)}
    untapped = routing_metrics([make_pass()], FACTS)
    assert {v.name for v in untapped} == set(NAMES)
    assert {v.reasons for v in untapped} == {("no routing was recorded",)}


def test_what_needs_every_pick_is_null_with_the_flag_to_give() -> None:
    values = routing_metrics([_routed_pass()[0]], FACTS)
    assert "--save-detailed" in one(values, "coactivation", phase="all").reasons[0]


def test_the_heat_map_holds_shares_that_add_up_by_phase_and_class() -> None:
    maps = load_shares([_routed_pass()[0]])
    assert {(m.phase, m.request_class) for m in maps} == {
        (phase, name) for phase in ("all", "prefill", "decode") for name in ("all", "code", "prose")
    }
    by_key = {(m.phase, m.request_class): m for m in maps}
    assert by_key["decode", "all"].shares_LE.sum(axis=1) == pytest.approx([1, 1])
    parts = by_key["decode", "code"].counts_LE + by_key["decode", "prose"].counts_LE
    assert np.array_equal(parts, by_key["decode", "all"].counts_LE)


def test_no_value_is_nan_and_the_same_record_gives_the_same_values() -> None:
    tables = _routed_pass()[0]
    values = routing_metrics([tables], FACTS)
    assert values == routing_metrics([tables], FACTS)
    numbers = [x for v in values for x in (v.value, v.ci_low, v.ci_high, *v.null.values()) if x is not None]
    assert all(math.isfinite(x) for x in numbers)
    assert all(v.reasons for v in values if v.value is None or (v.ci_low is None and not v.exact))


def test_a_large_model_is_analysed_in_seconds() -> None:
    rng = np.random.default_rng(0)
    num, layers, experts = 4_000, 48, 128
    counts = rng.poisson(100, size=(40, 2, 4, layers, experts))
    tokens = rng.integers(1, 64, size=num)
    routing = make_routing(
        np.zeros((1, 2, layers, experts)),
        top_k=8,
        keep_step_counts=False,
        class_names=tuple("abcd"),
        counts_WPCLE=counts,
        real_tokens_WPC=counts[:, :, :, 0].sum(axis=-1) // 8,
        window_start_s=np.arange(40.0),
        window_first_step=100 * np.arange(40),
        distinct_SL=rng.integers(8, 100, size=(num, layers)).astype(np.int16),
        max_load_SL=rng.integers(1, 8, size=(num, layers)).astype(np.int32),
    )
    tables = make_pass(requests=make_requests(2), steps=make_steps(num, decode_tokens=tokens), routing=routing)
    began = time.process_time()
    routing_metrics([tables], make_facts(num_layers=layers, num_experts=experts, top_k=8))
    assert time.process_time() - began < 15
    assert len(drift_by_phase(tables, routing)) == 3
