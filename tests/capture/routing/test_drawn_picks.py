"""Drawn picks: as popular as asked, correlated as asked, and a function of seed, request and position alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.capture.engines.base import BatchLayout
from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.routing.popularity import load_popularity
from moeprof.capture.routing.rows import DrawnRows, RoundRobinRows
from moeprof.capture.routing.tables import NUM_ROWS, balanced_table, drawn_table, inclusion
from moeprof.core.workload.models import RoutingPolicy
from tests.helpers.shared_data import shared

SHAPES = [LayerShape(num_experts=8, top_k=2)]


def decode(*places: tuple[int, int]) -> BatchLayout:
    """One token of each (request, position)."""
    return BatchLayout(
        query_tokens=(1,) * len(places),
        requests=tuple(request for request, _ in places),
        is_prefill=(False,) * len(places),
        past_tokens=tuple(position for _, position in places),
    )


def prompt(request: int, tokens: int, past: int = 0) -> BatchLayout:
    return BatchLayout(query_tokens=(tokens,), requests=(request,), is_prefill=(True,), past_tokens=(past,))


# --- popularity -------------------------------------------------------------------------------------------------------


def test_an_expert_is_picked_as_often_as_its_share_and_at_most_once_a_token() -> None:
    assert inclusion(np.array([3.0, 1.0, 0.0, 4.0]), 2).tolist() == [0.75, 0.25, 0.0, 1.0]
    # Twice 8/10 is more than once a token; the other pick falls on the others, 1 to 1.
    assert inclusion(np.array([8.0, 1.0, 1.0]), 2).tolist() == [1.0, 0.5, 0.5]


@given(st.lists(st.integers(0, 100), min_size=3, max_size=20), st.integers(1, 3), st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_tables_hold_distinct_experts_that_are_alive_in_the_shares_asked_for(
    counts: list[int], top_k: int, seed: int
) -> None:
    counts[:3] = [n + 1 for n in counts[:3]]
    popularity = np.array(counts, dtype=np.float64)
    picks_NK = drawn_table(popularity[None], [LayerShape(num_experts=len(counts), top_k=top_k)], seed)[0]
    assert picks_NK.shape == (NUM_ROWS, top_k)
    assert (np.diff(np.sort(picks_NK, axis=1), axis=1) > 0).all()
    share_E = np.bincount(picks_NK.ravel(), minlength=len(counts)) / NUM_ROWS
    chance_E = inclusion(popularity, top_k)
    assert not share_E[popularity == 0].any()
    assert np.abs(share_E - chance_E).max() < 0.01


def test_marginals_of_thousands_of_tokens_are_those_of_the_measured_counts() -> None:
    path = shared("routing/olmoe_mixtral_expert_counts.csv")
    policy = RoutingPolicy(policy="profile", path=str(path), select={"model": "olmoe", "domain": "arxiv"}, seed=3)
    shapes = [LayerShape(num_experts=64, top_k=8)] * 16
    found = load_popularity(policy, shapes)
    assert "model olmoe, domain arxiv" in found.words or "domain arxiv" in found.words
    table = drawn_table(found.counts_LE, shapes, policy.seed)
    rows = DrawnRows(num_rows=NUM_ROWS, seed=3).rows(prompt(0, 20_000))
    for layer in (0, 7, 15):
        chance_E = 8 * found.counts_LE[layer] / found.counts_LE[layer].sum()
        share_E = np.bincount(table[layer][rows].ravel(), minlength=64) / len(rows)
        # 20,000 tokens: four standard errors of a share of a half are 0.014; the table itself is within 0.005.
        assert np.abs(share_E - np.minimum(chance_E, 1)).max() < 0.02
    # METRICS section 5: the most popular expert of layer 0 takes 7.813 times the mean; drawing must not flatten that.
    top = np.bincount(table[0][rows].ravel(), minlength=64).max() / (len(rows) * 8 / 64)
    assert top == pytest.approx(7.813, rel=0.01)


def test_a_round_robin_uses_every_expert_equally_over_the_rows_of_its_table() -> None:
    shapes = [LayerShape(num_experts=8, top_k=3), LayerShape(num_experts=4, top_k=2)]
    table = balanced_table(shapes)
    assert table.shape == (2, 8, 3)
    assert table[0, :3].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 0]]
    assert np.bincount(table[0].ravel()).tolist() == [3] * 8
    assert np.bincount(table[1, :, :2].ravel()).tolist() == [4] * 4


@given(st.integers(1, 60), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_the_tokens_of_any_forward_are_balanced_up_to_one(tokens: int, request: int) -> None:
    table = balanced_table(SHAPES)
    rows = RoundRobinRows(num_rows=table.shape[1]).rows(prompt(request, tokens))
    load = np.bincount(table[0][rows].ravel(), minlength=8)
    assert load.max() - load.min() <= 1 and load.sum() == 2 * tokens


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_a_token_has_the_same_row_in_every_batch(correlation: float) -> None:
    alone = DrawnRows(num_rows=1000, seed=1, correlation=correlation).rows(prompt(5, 700))
    chunks = DrawnRows(num_rows=1000, seed=1, correlation=correlation)
    assert chunks.rows(prompt(5, 100, past=600)).tolist() == alone[600:].tolist()
    assert chunks.rows(decode((5, 3), (7, 0), (5, 699)))[[0, 2]].tolist() == alone[[3, 699]].tolist()
    other = DrawnRows(num_rows=1000, seed=2, correlation=correlation).rows(prompt(5, 700))
    assert (other != alone).mean() > 0.9
    assert (chunks.rows(prompt(6, 700)) != alone).mean() > 0.9


def test_rows_are_even_and_independent_of_their_neighbours() -> None:
    rows = DrawnRows(num_rows=16, seed=0).rows(prompt(0, 16_000))
    load = np.bincount(rows, minlength=16)
    assert ((load - 1000) ** 2 / 1000).sum() < 37.7  # chi-square with 15 degrees of freedom, one in a thousand
    pairs = np.bincount(rows[:-1] * 16 + rows[1:], minlength=256)
    assert ((pairs - 62.5) ** 2 / 62.5).sum() < 330.5  # 255 degrees of freedom


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_consecutive_tokens_share_experts_as_often_as_asked(correlation: float) -> None:
    """Same experts with chance c; otherwise two independent draws: c + (1 - c) / E for the first choice."""
    popularity = np.ones((1, 8))
    table = drawn_table(popularity, SHAPES, 0)[0]
    rows = DrawnRows(num_rows=NUM_ROWS, seed=4, correlation=correlation).rows(prompt(0, 20_000))
    picks = table[rows]
    same_top1 = (picks[1:, 0] == picks[:-1, 0]).mean()
    assert same_top1 == pytest.approx(correlation + (1 - correlation) / 8, abs=0.02)
    overlap = (picks[1:, :, None] == picks[:-1, None, :]).any(axis=(1, 2)).mean()
    independent = 1 - (6 * 5) / (8 * 7)  # no common expert: C(6,2) / C(8,2)
    assert overlap == pytest.approx(correlation + (1 - correlation) * independent, abs=0.02)
    share_E = np.bincount(picks.ravel(), minlength=8) / len(picks)
    assert np.abs(share_E - 0.25).max() < 0.03  # popularity stays


def test_many_requests_do_not_fill_the_memory() -> None:
    rows = DrawnRows(num_rows=10, seed=0, correlation=0.5)
    first = rows.rows(decode((0, 4))).tolist()
    for start in range(1, 6000, 1000):
        rows.rows(decode(*((request, 1) for request in range(start, start + 1000))))
    assert len(rows._rows_of) <= 4096 and rows.rows(decode((0, 4))).tolist() == first
