"""Routing before and after: collapse, change and noise told apart on planted picks, with figures for the head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.regress.routing.change import RoutingChange, gate_figure
from moeprof.analysis.regress.routing.health import routing_change
from moeprof.analysis.report.document import Document, Paragraph
from moeprof.analysis.report.sections.routing_change import routing_section
from moeprof.core.baseline.baseline import BaselineModel
from moeprof.render.html.page import render_html
from moeprof.render.markdown import render_markdown
from tests.helpers.documents import facts_in
from tests.helpers.planted_picks import Ids, balanced_picks, draw_picks, forced, with_loads, with_picks

EXPERTS, TOP_K, TOKENS = 8, 2, 400  # 800 picks a layer, 100 for each expert where they are balanced
TWO_CLASSES = ("code", "prose")


def model(*layers: Ids, experts: int = EXPERTS, **of_forced: Any) -> BaselineModel:
    return with_picks(forced(layers, **of_forced), [experts] * len(layers), [layer.shape[1] for layer in layers])


def changed(reference: BaselineModel, other: BaselineModel, *, exact: bool = False) -> RoutingChange:
    found = routing_change(reference, other, exact=exact)
    assert found is not None
    return found


def without(picks: Ids, expert: int) -> Ids:
    """Every pick of an expert goes to the next free one after it."""
    picks = picks.copy()
    for row in picks:
        for place in np.flatnonzero(row == expert):
            row[place] = next(e % EXPERTS for e in range(expert + 1, expert + 9) if e % EXPERTS not in row)
    return picks


def value(change: RoutingChange, name: str) -> float:
    metric = change.metric(name)
    assert metric is not None and metric.value is not None
    return float(metric.value)


PLAIN = balanced_picks(TOKENS, EXPERTS, TOP_K)


# -- the same ----------------------------------------------------------------------------------------------------------


def test_the_same_picks_are_unchanged_in_whatever_order_a_token_names_them() -> None:
    found = changed(model(PLAIN, PLAIN), model(PLAIN[:, ::-1], PLAIN))
    assert (found.verdict, found.tokens, found.same_tokens) == ("unchanged", 400, True)
    assert value(found, "routing_agreement_ratio") == value(found, "routing_agreement_ratio_worst") == 1
    assert value(found, "router_drift_js_worst") == value(found, "dead_experts_gained") == 0
    assert found.sentences == ("Every pick is the same in all 2 MoE layers.",)
    assert [layer.max_over_mean for layer in found.layers] == [(1, 1), (1, 1)]


def test_ids_that_stand_for_no_expert_agree_with_each_other_and_are_not_counted() -> None:
    # Every second token has one real pick; the other slot is -1 on one side and an identity expert (id 8) on the other.
    first, second = PLAIN.copy(), PLAIN.copy()
    first[::2, 1], second[::2, 1] = -1, 8
    found = changed(model(first), model(second))
    assert found.verdict == "unchanged"
    assert value(found, "routing_agreement_ratio") == 1


def test_ids_may_be_stored_in_as_few_bits_as_they_need() -> None:
    wide = balanced_picks(TOKENS, 128, 2)
    small = replace(forced([wide]), picks_TLK=wide[:, None].astype(np.int8))
    found = changed(model(wide, experts=128), with_picks(small, [128], [TOP_K]))
    assert found.verdict == "unchanged"


def test_every_figure_has_a_card() -> None:
    found = changed(model(PLAIN), model(without(PLAIN, 5)))
    assert {card_for(metric.name).section for metric in found.metrics} == {"routing", "comparison"}


# -- dead --------------------------------------------------------------------------------------------------------------


def test_an_expert_that_lost_all_its_tokens_is_a_collapse_named_with_layer_share_and_chance() -> None:
    found = changed(model(PLAIN, PLAIN, PLAIN), model(PLAIN, PLAIN, without(PLAIN, 5)))
    assert found.verdict == "collapsed"
    layer = found.layers[2]
    assert (layer.newly_dead, layer.dead, layer.collapse) == ((5,), (0, 1), ("dead",))
    assert layer.chance_dead == pytest.approx(2.0**-100)  # 100 picks, each as likely on either side
    # One expert of eight, so one pick of eight; the other 100 of 800 went elsewhere.
    assert layer.moved[0] == (5, 0.125, 0.0)
    assert layer.moved_ratio == pytest.approx(0.125)
    assert layer.agreement_ratio == pytest.approx(7 / 8)
    assert found.sentences[0] == "Layer 2: expert 5 got 12.5 % of the picks and gets none now (chance 8e-31)."
    assert found.sentences[1].startswith("95.8 % of the picks are the same (95 %: ")
    assert found.sentences[1].endswith(", fewest in layer 2 (87.5 %).")
    assert value(found, "routing_agreement_ratio_worst") == pytest.approx(7 / 8)
    assert value(found, "dead_experts_gained") == value(found, "nearly_dead_experts_gained") == 1


@pytest.mark.parametrize(("picks", "is_dead"), [(9, False), (10, True)])
def test_few_lost_tokens_are_chance_until_they_are_too_many_for_eight_experts(picks: int, is_dead: bool) -> None:
    # Bonferroni: 0.01 / 8 experts = 1 / 800, and 2^-9 = 1 / 512, 2^-10 = 1 / 1024.
    before = [99, 101, 100, 100, 100, 100, 200 - picks, picks]
    after = [99, 101, 100, 100, 100, 100, 200, 0]
    found = changed(with_loads({"decode": [before]}, TOP_K), with_loads({"decode": [after]}, TOP_K))
    assert found.layers[0].newly_dead == ((7,) if is_dead else ())
    assert (found.verdict == "collapsed") is is_dead
    assert found.layers[0].dead == (0, 1)


def test_where_any_difference_is_one_a_single_lost_token_is_a_dead_expert_but_no_collapse() -> None:
    before = np.where(PLAIN == 7, 6, PLAIN)
    before[before[:, 0] == 6] = [6, 5]
    one = before.copy()
    one[0] = [7, 0]
    found = changed(model(one), model(before), exact=True)
    assert found.layers[0].newly_dead == (7,)
    assert found.layers[0].chance_dead is None
    assert found.verdict != "collapsed"
    assert changed(model(one), model(before)).layers[0].newly_dead == ()


def test_an_expert_below_a_tenth_of_the_mean_load_is_nearly_dead() -> None:
    # The mean is 100: 11 tokens is not nearly dead, 9 is; a fall from 100 to 9 is no luck, one from 11 to 9 may be.
    before = with_loads({"prefill": [[100, 11, 189, 100, 100, 100, 100, 100]]}, TOP_K)
    after = with_loads({"prefill": [[9, 9, 282, 100, 100, 100, 100, 100]]}, TOP_K)
    found = changed(before, after)
    assert found.layers[0].nearly_dead == (0, 2)
    assert found.layers[0].newly_nearly_dead == (0,)
    assert "1 expert falls below a tenth of the mean load, in layer 0." in found.sentences
    assert value(changed(before, after, exact=True), "nearly_dead_experts_gained") == 2


# -- noise and collapse ------------------------------------------------------------------------------------------------


def flipped(picks: Ids, every: int) -> Ids:
    """One pick of every so-manieth token goes to some other expert (tokens t and t + 4 of PLAIN have the same)."""
    rng, picks = np.random.default_rng(3), picks.copy()
    for row in picks[::every]:
        row[1] = rng.choice(np.setdiff1d(np.arange(EXPERTS), row))
    return picks


def test_a_few_tokens_that_flipped_both_ways_are_noise() -> None:
    found = changed(model(PLAIN, PLAIN), model(flipped(PLAIN, 99), flipped(PLAIN, 133)))
    assert found.verdict == "noise"
    # 5 and 4 of 800 picks.
    assert value(found, "routing_agreement_ratio") == pytest.approx(1 - 4.5 / 800)
    assert found.sentences[1] == "The differences are as small as rounding or the sample explains."


def test_many_flips_are_a_change_even_where_the_loads_are_as_they_were() -> None:
    found = changed(model(PLAIN), model(flipped(PLAIN, 5)))
    assert found.verdict == "changed"
    assert value(found, "routing_agreement_ratio") == pytest.approx(1 - 1 / 10)


def test_a_layer_whose_tokens_crowd_into_few_experts_has_collapsed() -> None:
    # Every ninth token stays where it was, 45 of 400: six experts keep 11 or 12 of their 100 picks, so none is dead.
    crowded = np.tile([0, 1], (TOKENS, 1))
    crowded[::9] = PLAIN[::9]
    found = changed(model(PLAIN, PLAIN), model(crowded, PLAIN))
    layer = found.layers[0]
    assert (found.verdict, layer.collapse) == ("collapsed", ("entropy", "busiest"))
    assert layer.newly_dead == ()
    # Of at most E/k = 4 times the mean.
    assert layer.max_over_mean[1] > 3
    assert found.sentences[0].startswith("Layer 0: load entropy falls from 1 to ")


def test_layers_may_differ_in_experts_and_in_picks_per_token() -> None:
    wide, narrow = balanced_picks(TOKENS, 16, 4), balanced_picks(TOKENS, 4, 1)
    first = with_picks(forced([wide, narrow]), [16, 4], [4, 1])
    moved = narrow.copy()
    moved[moved == 3] = 0
    found = changed(first, with_picks(forced([wide, moved]), [16, 4], [4, 1]))
    assert [len(layer.load[0]) for layer in found.layers] == [16, 4]
    assert [layer.agreement_ratio for layer in found.layers] == [1, 0.75]
    assert found.layers[1].max_over_mean == pytest.approx((1, 2))
    assert found.layers[1].newly_dead == (3,)


def test_resampling_noise_is_called_a_collapse_in_fewer_than_one_of_a_hundred() -> None:
    """Both sides draw every token anew from the same popularity, with rare experts among them."""
    rng, verdicts = np.random.default_rng(5), []
    popularity = np.exp(1.2 * rng.normal(size=32))
    for _ in range(150):
        sides = [model(*(draw_picks(200, popularity, 4, rng) for _ in range(2)), experts=32) for _ in range(2)]
        verdicts.append(changed(*sides).verdict)
    assert verdicts.count("collapsed") <= 1
    assert verdicts.count("unchanged") == 0


def test_loads_of_other_tokens_drawn_from_the_same_popularity_are_noise() -> None:
    rng, verdicts = np.random.default_rng(6), []
    popularity = np.exp(1.2 * rng.normal(size=32))
    popularity /= popularity.sum()
    for _ in range(200):
        sides = [with_loads({"decode": rng.multinomial(1200, popularity, size=4).tolist()}, 4) for _ in range(2)]
        verdicts.append(changed(*sides).verdict)
    assert verdicts.count("collapsed") <= 1
    assert verdicts.count("noise") >= 180  # one in twenty passes the bar of all layers together


# -- what is compared --------------------------------------------------------------------------------------------------


def test_a_side_with_fewer_tokens_of_the_text_is_met_at_the_tokens_that_both_have() -> None:
    whole = forced([PLAIN])
    kept = np.flatnonzero(whole.position_T < 10)  # 10 of the 20 tokens of each of 20 requests
    part = replace(
        whole,
        **{name: getattr(whole, name)[kept] for name in ("picks_TLK", "request_T", "position_T", "class_T")},
        **{name: getattr(whole, name)[kept] for name in ("is_output_T", "margin_TL")},
    )
    found = changed(with_picks(whole, [EXPERTS], [TOP_K]), with_picks(part, [EXPERTS], [TOP_K]))
    assert (found.verdict, found.tokens) == ("unchanged", 200)


def test_picks_of_other_text_are_not_set_against_each_other() -> None:
    loads = with_loads({"decode": [[100] * 8]}, TOP_K)
    first = replace(loads, picks=forced([PLAIN]))
    second = replace(loads, picks=forced([PLAIN], tokens_sha256="other"))
    found = changed(first, second)
    agreement = found.metric("routing_agreement_ratio")
    assert agreement is not None and agreement.value is None
    assert agreement.reasons == ("the forced tokens of the two sides differ",)
    assert (found.verdict, found.same_tokens) == ("unchanged", False)
    assert found.sentences == ("Every expert has as many tokens as before in all 1 MoE layers.",)


def test_models_without_routed_layers_have_no_change() -> None:
    dense = with_picks(None, [], [])
    assert routing_change(dense, dense, exact=True) is None
    assert routing_change(with_loads({"decode": [[1, 1]]}, 1), dense, exact=True) is None


def test_few_requests_are_cut_into_stretches_and_give_no_interval() -> None:
    found = changed(model(PLAIN, requests=2), model(without(PLAIN, 5), requests=2))
    assert found.layers[0].is_beyond_null
    agreement = found.metric("routing_agreement_ratio")
    assert agreement is not None and agreement.ci_low is None
    assert agreement.reasons == ("no interval: 2 requests, 10 are needed",)


def test_equal_classes_lost_their_specialisation() -> None:
    # Code takes experts 0 to 3 and prose 4 to 7: they differ in the whole load. Then both take all.
    apart = PLAIN % 4 + 4 * (np.arange(TOKENS) * 20 // TOKENS % 2)[:, None]
    of: dict[str, Any] = {"classes": TWO_CLASSES, "class_of_request": [0, 1] * 10}
    found = changed(model(apart, **of), model(PLAIN, **of))
    assert found.layers[0].specialisation == pytest.approx((1, 0))
    assert value(found, "domain_total_variation_fall") == 1
    assert any(
        s.endswith("they differ in 0 % of the load, 100 % before.") and "more alike in 1 of 1" in s
        for s in found.sentences
    )
    lone = changed(model(PLAIN), model(flipped(PLAIN, 5))).metric("domain_total_variation_fall")
    assert lone is not None and lone.reasons == ("fewer than two request classes",)


def test_margins_are_quantiles_before_and_after() -> None:
    found = changed(model(PLAIN, margin=0.1), model(flipped(PLAIN, 5), margin=0.025))
    assert found.layers[0].margin_p50 == pytest.approx((0.1, 0.025))
    assert value(found, "router_margin_p05_fall") == pytest.approx(0.075)
    assert "Routing decisions are closer: the median margin goes from 0.1 to 0.025." in found.sentences
    assert changed(model(PLAIN, margin=np.nan), model(PLAIN)).layers[0].margin_p50 is None


# -- gates -------------------------------------------------------------------------------------------------------------


def test_gates_find_their_figures() -> None:
    found = changed(model(PLAIN, PLAIN), model(PLAIN, without(PLAIN, 5)))
    dead, agreement = gate_figure(found, "dead_experts"), gate_figure(found, "routing_agreement_ratio")
    assert dead is not None and (dead.reference, dead.other, dead.worse_by, dead.n) == (0, 1, 1, "400 tokens")
    assert agreement is not None and agreement.worse_by == pytest.approx(1 / 16)
    assert agreement.interval is not None and agreement.interval[0] <= agreement.other <= agreement.interval[1]
    busiest = gate_figure(found, "router_load_max_over_mean")
    # Expert 5's tokens (4, 5) become (4, 6): expert 6 has 200 of 800 where the mean is 100; the other layer has 100.
    assert busiest is not None and (busiest.reference, busiest.other, busiest.worse_by) == (1, 1.5, 0.5)
    gained, drift = gate_figure(found, "dead_experts_gained"), gate_figure(found, "router_drift_js_worst")
    assert gained is not None and (gained.reference, gained.worse_by) == (0, 1)
    assert drift is not None and drift.worse_by == drift.other == found.layers[1].drift_js
    entropy = gate_figure(found, "router_entropy_ratio")
    assert entropy is not None and 0 < entropy.worse_by == pytest.approx(entropy.reference - entropy.other)


def test_the_busiest_expert_is_told_by_phase_with_an_interval_of_its_rise() -> None:
    # In each request of 20 tokens 4 are the prompt's: of every expert one pick in prefill, four in decode.
    crowded = PLAIN.copy()
    crowded[np.arange(TOKENS) % 20 > 3] = [0, 1]
    found = changed(model(PLAIN, PLAIN), model(crowded, PLAIN))
    prefill, decode = (gate_figure(found, "router_load_max_over_mean", phase) for phase in ("prefill", "decode"))
    assert prefill is not None and (prefill.reference, prefill.other, prefill.n) == (1, 1, "80 tokens")
    # All requests are alike, so resampling them changes nothing: 4 times the mean in one layer of two.
    assert decode is not None and (decode.reference, decode.other, decode.worse_by) == (1, 2.5, 1.5)
    assert decode.interval == (2.5, 2.5)
    assert gate_figure(found, "dead_experts", "decode") is None


def test_where_any_difference_is_one_phases_are_left_to_the_runs_own_figures() -> None:
    found = changed(model(PLAIN), model(flipped(PLAIN, 5)), exact=True)
    assert gate_figure(found, "router_load_max_over_mean", "decode") is None
    whole = gate_figure(found, "router_load_max_over_mean")
    assert whole is not None and whole.interval is None


def test_the_interval_of_the_rise_holds_zero_where_nothing_changed() -> None:
    """Both sides draw every token anew from the same popularity: nearly all intervals hold 0 (99 of 100 here)."""
    rng, held = np.random.default_rng(8), 0
    popularity = np.exp(0.7 * rng.normal(size=16))
    for _ in range(100):
        sides = [model(*(draw_picks(300, popularity, 2, rng) for _ in range(4)), experts=16) for _ in range(2)]
        figure = gate_figure(changed(*sides), "router_load_max_over_mean", "decode")
        assert figure is not None and figure.interval is not None
        held += figure.interval[0] <= figure.reference <= figure.interval[1]
    assert held >= 95


def test_gates_without_a_figure_say_nothing() -> None:
    found = changed(with_loads({"decode": [[1, 2]]}, 1), with_loads({"decode": [[2, 1]]}, 1))
    assert gate_figure(found, "routing_agreement_ratio") is None
    assert gate_figure(found, "router_margin_p05") is None
    assert gate_figure(found, "step_mean_s") is None


# -- on a page ---------------------------------------------------------------------------------------------------------


def blocks_of(change: RoutingChange) -> dict[str, Any]:
    section = routing_section([change])
    assert section is not None and section.name == "routing"
    assert isinstance(section.blocks[0], Paragraph)
    return {"said": section.blocks[0].text, **{b.title: b for b in section.blocks[1:] if not isinstance(b, Paragraph)}}


def test_a_page_shows_which_layers_and_experts_moved() -> None:
    found = blocks_of(changed(model(PLAIN, PLAIN), model(PLAIN, without(PLAIN, 5))))
    assert found["said"].startswith("Collapsed: ") and found["said"].endswith("same tokens on both sides.")
    layers = facts_in(found["Layers, the most moved first"])
    assert "12.5 % of the load moved (beyond chance)" in layers["layer 1"]
    assert "dead experts 0 \u2192 1 (newly: 5)" in layers["layer 1"]
    assert layers["1 other layer"] == "unchanged"
    assert list(facts_in(found["Experts that moved most"]).items())[:2] == [
        ("layer 1, expert 5", "12.5 % \u2192 0 % of the layer's picks"),
        ("layer 1, expert 6", "12.5 % \u2192 25 % of the layer's picks"),
    ]
    drift, null = found["Drift per layer"].series
    assert drift.y[0] == 0 < null.y[1] < drift.y[1]
    assert [variant.label for variant in found["Expert load before and after"].variants] == ["new run", "reference"]
    assert found["Expert load before and after"].variants[0].loads[1] == (1, 1, 1, 1, 1, 0, 2, 1)
    assert facts_in(found["All layers together"])["Experts newly dead"] == "1"


def test_a_page_says_little_where_nothing_moved() -> None:
    assert list(blocks_of(changed(model(PLAIN), model(PLAIN), exact=True))) == ["said"]
    assert routing_section([]) is None


def test_pages_and_comments_can_draw_the_blocks() -> None:
    several = [changed(model(PLAIN), model(without(PLAIN, 5))), changed(model(PLAIN, PLAIN), model(PLAIN, PLAIN + 0))]
    loads = changed(with_loads({"decode": [[9, 1]]}, 1), with_loads({"decode": [[2, 8]]}, 1))
    section = routing_section([*several, loads])
    assert section is not None
    page = Document(
        title="t", run="r", status="done", started_at="", headline="", subtitle="", banners=(), models=(),
        first_screen=(), sections=(section,), doubts=(),
    )  # fmt: skip
    assert "Layer 0: expert 5 got 12.5 %" in render_html(page)
    assert "|layer 0, expert 5|12.5 % \u2192 0 %" in render_markdown(page)
    assert "loads alone, of tokens that may differ" in render_markdown(page)
