"""Figures of single picks: read from the record, and beside what chance gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.routing.metrics import routing_metrics
from moeprof.analysis.metrics.routing.picks import MAX_TOKENS, pick_metrics
from moeprof.core.errors import RecordError
from moeprof.core.metric import MetricValue
from moeprof.core.record.picks import Picks, load_picks
from tests.helpers.records import make_facts, make_pass, make_requests, make_routing, make_steps

FACTS = make_facts(num_layers=2, num_experts=16, top_k=2)


def picks_of(picks_TLK: Any, request_T: Any, position_T: Any = None, left_out: int = 0) -> Picks:
    request = np.asarray(request_T)
    first = np.concatenate([[0], np.flatnonzero(np.diff(request)) + 1])
    place = np.arange(len(request)) - np.repeat(first, np.diff(np.append(first, len(request))))
    position = place if position_T is None else np.asarray(position_T)
    return Picks(
        picks_TLK=np.asarray(picks_TLK, dtype=np.uint8),
        request_T=request,
        position_T=position,
        step_T=np.arange(len(request)),
        left_out_tokens=left_out,
    )


def random_picks(num_requests: int = 40, tokens: int = 50, seed: int = 0) -> Picks:
    rng = np.random.default_rng(seed)
    drawn = np.argsort(rng.random((num_requests * tokens, 2, 16)), axis=2)[..., :2]
    return picks_of(drawn, np.repeat(np.arange(num_requests), tokens))


def values_of(picks: Picks | None) -> dict[str, MetricValue]:
    return {value.name: value for value in pick_metrics(picks, FACTS, {"phase": "all"})}


def covers(value: MetricValue, number: float) -> bool:
    assert value.ci_low is not None and value.ci_high is not None
    return value.ci_low <= number <= value.ci_high


def test_a_random_router_lies_at_its_nulls() -> None:
    found = values_of(random_picks())
    overlap, same = found["consecutive_overlap_ratio"], found["consecutive_same_top1_ratio"]
    assert overlap.null["uniform"] == pytest.approx(1 - 14 * 13 / (16 * 15))
    assert same.null["uniform"] == 1 / 16
    assert covers(overlap, overlap.null["uniform"])
    assert covers(same, same.null["uniform"])
    assert overlap.n == 40
    together = found["coactivation"]
    assert together.value == pytest.approx(together.null["uniform"], abs=0.02)
    assert together.value == pytest.approx(together.null["permutation"], abs=0.02)


def test_experts_that_go_in_pairs_are_seen_and_popular_ones_are_not_called_pairs() -> None:
    rng = np.random.default_rng(0)
    first = 2 * rng.integers(0, 8, size=(2_000, 2))
    pairs = picks_of(np.stack([first, first + 1], axis=2), np.repeat(np.arange(40), 50))  # 0 with 1, 2 with 3...
    found = values_of(pairs)["coactivation"]
    assert found.value == 1.0
    assert found.null["uniform"] < 0.2
    assert found.null["permutation"] < 0.2
    scores = rng.gumbel(size=(2_000, 2, 16)) - np.log1p(np.arange(16))  # popularity only
    popular = values_of(picks_of(np.argsort(-scores, axis=2)[..., :2], np.repeat(np.arange(40), 50)))["coactivation"]
    assert popular.value == pytest.approx(popular.null["permutation"], abs=0.03)
    assert popular.null["permutation"] > popular.null["uniform"] + 0.1


def test_only_neighbours_of_one_sequence_are_compared_in_whatever_order_they_were_computed() -> None:
    picks = np.array([[[0, 1]] * 2, [[4, 5]] * 2, [[0, 2]] * 2, [[4, 6]] * 2, [[0, 1]] * 2])
    # request 0 at places 0, 1 and again 0 (recomputed); request 1 at places 0 and 1
    found = values_of(picks_of(picks, [0, 1, 0, 1, 0], [0, 0, 1, 1, 0]))
    assert found["consecutive_same_top1_ratio"].value == 1.0
    assert found["consecutive_same_top1_ratio"].n == 2
    hole = values_of(picks_of(picks[:2], [0, 0], [0, 7]))
    assert hole["consecutive_same_top1_ratio"].reasons == ("no sequence has two consecutive tokens",)


def test_ids_that_stand_for_no_expert_are_neither_shared_nor_paired() -> None:
    nothing = picks_of(np.full((4, 2, 2), 17), [0, 0, 1, 1])  # E is 16
    found = values_of(nothing)
    assert found["consecutive_overlap_ratio"].value == 0.0
    assert found["coactivation"].reasons == ("no expert was taken",)


def test_a_large_record_is_thinned_to_whole_requests_and_what_was_left_out_is_said() -> None:
    many = random_picks(num_requests=300, tokens=100)
    found = values_of(picks_of(many.picks_TLK, many.request_T, left_out=7))["consecutive_overlap_ratio"]
    assert found.n == 150
    assert found.reasons == (
        "the picks of 7 tokens were left out (instruments.picks_cap_mib)",
        f"from every 2th of 300 requests, at most {MAX_TOKENS} tokens",
    )


def write(folder: Path, picks: Picks, name: str = "part-0.npz") -> None:
    (folder / "picks").mkdir(exist_ok=True)
    arrays: dict[str, Any] = {key: getattr(picks, key) for key in ("picks_TLK", "request_T", "position_T", "step_T")}
    np.savez_compressed(folder / "picks" / name, **arrays)


def test_picks_of_a_record_are_read_in_order_and_reach_the_metrics(tmp_path: Path) -> None:
    assert load_picks(tmp_path) is None
    one = random_picks(num_requests=2)
    for number in range(11):  # part-10 comes after part-9
        write(tmp_path, picks_of(one.picks_TLK, one.request_T + 2 * number), f"part-{number}.npz")
    (tmp_path / "picks" / "left_out.json").write_text(json.dumps({"tokens": 3}))
    picks = load_picks(tmp_path)
    assert picks is not None
    assert picks.request_T.tolist() == np.repeat(np.arange(22), 50).tolist()
    assert picks.left_out_tokens == 3
    counts = np.full((60, 2, 2, 16), 1, dtype=np.uint16)
    tables = make_pass(requests=make_requests(2), steps=make_steps(60), routing=make_routing(counts))
    found = {v.name: v for v in routing_metrics([tables], FACTS, picks)}
    assert found["coactivation"].value is not None
    assert found["consecutive_overlap_ratio"].ci_low is not None


def test_a_killed_pass_loses_the_part_it_was_writing_and_a_finished_one_is_called_damaged(tmp_path: Path) -> None:
    write(tmp_path, random_picks(num_requests=2))
    (tmp_path / "picks" / "part-1.npz").write_bytes(b"PK\x03\x04cut")
    picks = load_picks(tmp_path)
    assert picks is not None and len(picks.request_T) == 100 and picks.left_out_tokens is None
    (tmp_path / "picks" / "left_out.json").write_text('{"tokens": 0}')
    with pytest.raises(RecordError, match=r"part-1\.npz: damaged picks"):
        load_picks(tmp_path)
