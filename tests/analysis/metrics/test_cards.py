from __future__ import annotations

import numpy as np
import pytest

from moeprof.analysis.metrics.attribution import attribution_metrics, placebo_metrics
from moeprof.analysis.metrics.cards import all_cards, card_for
from moeprof.analysis.metrics.latency import latency_metrics
from moeprof.analysis.metrics.routing.metrics import routing_metrics
from moeprof.analysis.metrics.throughput import throughput_metrics
from moeprof.analysis.metrics.variance import variance_metrics
from moeprof.core.metric import Card, Place
from moeprof.core.workload.workload import Slo
from tests.helpers.records import draw_step_counts, make_facts, make_pass, make_requests, make_routing, make_steps


def test_every_metric_that_is_reported_has_a_card() -> None:
    tokens = np.stack([np.zeros(60, dtype=int), np.full(60, 4)], axis=1)
    counts = draw_step_counts(tokens, num_layers=2, num_experts=8, top_k=2)
    routing = make_routing(counts, class_names=("a", "b"), class_of_step=np.arange(60) // 10 % 2)
    requests = make_requests(8, request_class=["a", "b"] * 4)
    one = make_pass(requests=requests, steps=make_steps(60), routing=routing)
    empty = make_pass(requests=make_requests(0), steps=make_steps(0))
    facts, slo = make_facts(num_experts=8), Slo(ttft_s=1.0)
    for rounds in ([one], [one, one], [empty]):
        values = [*latency_metrics(rounds, slo), *throughput_metrics(rounds, slo), *variance_metrics(rounds)]
        values += [
            *attribution_metrics(rounds),
            *placebo_metrics({"dense": rounds}, rounds)["dense"],
            *routing_metrics(rounds, facts),
        ]
        for value in values:
            assert card_for(value.name).formula, value.name
            assert value.value is not None or value.reasons, value.name
        keys = [(value.name, tuple(sorted(value.labels.items()))) for value in values]
        assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)


@pytest.mark.parametrize("card", all_cards(), ids=lambda card: card.name)
def test_a_card_says_what_it_is(card: Card) -> None:
    assert all((card.title, card.unit, card.formula, card.source, card.section))
    assert card.name.isascii() and card.name.count("*") <= 1


def test_card_names_are_unique_and_a_star_is_only_a_statistic() -> None:
    names = [card.name for card in all_cards()]
    assert len(names) == len(set(names))
    assert card_for("ttft_p99_9_s").name == "ttft_*_s"
    assert card_for("ttft_from_sent_p50_s").name == "ttft_from_sent_*_s"
    assert card_for("step_device_mean_s").name == "step_device_*_s"
    with pytest.raises(KeyError):
        card_for("ttft_anything_s")


def test_a_card_without_a_stated_kind_is_refused() -> None:
    whole = {
        "name": "x_s",
        "title": "x",
        "unit": "s",
        "better": "lower",
        "formula": "x",
        "section": "cost",
        "source": "-",
    }
    with pytest.raises(TypeError, match="kind"):
        Card(**whole)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x_s: counts_tokens is stated of timed metrics"):
        Card(**whole, kind="timed")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of these alone"):
        Card(**whole, kind="exact", counts_tokens=True)  # type: ignore[arg-type]
    assert Card(**whole, kind="timed", counts_tokens=True).classes == {"timed", "tokens"}  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", ["screen", "gates", "baseline"])
def test_no_two_figures_have_the_same_place(chosen: str) -> None:
    places: list[Place] = [place for card in all_cards() for place in getattr(card, chosen)]
    assert len({place.rank for place in places}) == len(places) > 9
    for card in all_cards():
        for place in getattr(card, chosen):
            assert bool(place.of) == ("*" in card.name), card.name
