"""The recorder of routing beside engines that launch a step before they tell the last one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from moeprof.capture.engines.base import BatchLayout, SequenceInStep, Step
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.recorders.routing import PicksWriter, RoutingRecorder
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.record.picks import load_picks
from moeprof.core.record.routing import RequestCounts, Routing, merge_requests
from tests.helpers.lane_models import schedule
from tests.helpers.plain_moe import Model, run


def told(number: int, rows: int) -> Step:
    sequences = [
        SequenceInStep(request=request, query_tokens=1, past_tokens=number, is_prefill=False) for request in range(rows)
    ]
    return Step(start_s=number, end_s=number + 1.0, device_s=None, sequences=tuple(sequences))


@pytest.mark.parametrize("untold", [0, 3])
def test_steps_that_are_told_late_get_their_own_counts(tmp_path: Path, untold: int) -> None:
    """Step i has one or two rows in turn, all sent to experts i mod 4 and the next."""
    model = Model()
    tap = RoutingTap(model, find_moe_layers(model), save_picks=True)
    recorder = RoutingRecorder(
        tmp_path,
        tap,
        window_steps=16,
        step_counts_cap_bytes=2**20,
        picks=PicksWriter(tmp_path),
    )
    recorder.on_start(schedule(2), 0.0)
    for number in range(40):
        rows = 1 + number % 2
        now = BatchLayout(query_tokens=(1,) * rows, requests=tuple(range(rows)), is_prefill=(False,) * rows)
        run(tap, model, now, *[[[number % 4, (number + 1) % 4]] * rows] * 2)
        if number >= 3:  # three steps are under way
            recorder.on_step(told(number - 3, 1 + (number - 3) % 2), 0)
    for number in range(37, 40 - untold):
        recorder.on_step(told(number, 1 + number % 2), 0)
    recorder.on_end(41.0)
    tap.close()
    routing, steps = Routing.load(tmp_path / "routing.npz"), 40 - untold
    assert routing.step_counts_SPLE is not None and len(routing.step_counts_SPLE) == steps
    assert routing.step_counts_SPLE[5, 1, 0].tolist() == [0, 2, 2, 0]
    assert routing.real_tokens_WPC.sum() == sum(1 + number % 2 for number in range(steps))
    picks = load_picks(tmp_path)
    assert picks is not None and len(picks.picks_TLK) == routing.real_tokens_WPC.sum()
    assert (picks.picks_TLK[:, 0, 0] == picks.position_T % 4).all()


def test_requests_are_counted_apart_and_add_up_to_the_windows(tmp_path: Path) -> None:
    """Request 0 always takes experts 0 and 1, request 1 takes 2 and 3: prompts of 20 tokens, then 39 steps."""
    model = Model()
    tap = RoutingTap(model, find_moe_layers(model))
    recorder = RoutingRecorder(tmp_path, tap, window_steps=16, step_counts_cap_bytes=2**20)
    recorder.on_start(schedule(2), 0.0)
    for number in range(40):
        tokens, prefill = ((20, 20), True) if number == 0 else ((1, 1), False)
        now = BatchLayout(query_tokens=tokens, requests=(0, 1), is_prefill=(prefill, prefill))
        run(tap, model, now, *[[[0, 1]] * tokens[0] + [[2, 3]] * tokens[1]] * 2)
        sequences = tuple(
            SequenceInStep(request=i, query_tokens=tokens[i], past_tokens=0, is_prefill=prefill) for i in (0, 1)
        )
        recorder.on_step(Step(start_s=number, end_s=number + 1.0, device_s=None, sequences=sequences), 0)
    recorder.on_end(41.0)
    tap.close()
    routing = Routing.load(tmp_path / "routing.npz")
    assert routing.requests is not None
    counts = routing.requests.request_counts_UPLE
    assert counts[:, :, 0].tolist() == [[[20, 20, 0, 0], [39, 39, 0, 0]], [[0, 0, 20, 20], [0, 0, 39, 39]]]
    assert (counts.sum(axis=0) == routing.counts_WPCLE.sum(axis=(0, 2))).all()
    assert routing.requests.request_first_U.tolist() == [0, 1]
    assert routing.requests.requests_per_group == 1


def _one_each(num: int, request_class: int = 0) -> RequestCounts:
    """Requests 0, 1, 2...: request i sent i + 1 tokens to one expert."""
    return RequestCounts(
        request_counts_UPLE=np.arange(1, num + 1).reshape(num, 1, 1, 1),
        request_class_U=np.full(num, request_class),
        request_group_U=np.arange(num),
        request_first_U=np.arange(num),
        requests_per_group=1,
    )


def test_neighbours_become_one_group_where_requests_are_many() -> None:
    few = merge_requests([_one_each(64)])
    assert few is not None and (len(few.request_first_U), few.requests_per_group) == (64, 1)
    many = merge_requests([_one_each(100)])
    assert many is not None and (len(many.request_first_U), many.requests_per_group) == (50, 2)
    assert many.request_counts_UPLE[:3].reshape(-1).tolist() == [1 + 2, 3 + 4, 5 + 6]
    assert many.request_first_U[:3].tolist() == [0, 2, 4]
    again = merge_requests([many, _one_each(3)])  # a later part of the same pass, which had few requests in flight
    assert again is not None and again.request_counts_UPLE[:3].reshape(-1).tolist() == [3 + 3, 7 + 3, 11]
    classes = merge_requests([_one_each(40), _one_each(40, request_class=1)])  # 80 in all
    assert classes is not None and classes.requests_per_group == 2
    assert np.bincount(classes.request_class_U).tolist() == [20, 20]


def test_a_record_without_counts_per_request_says_none(tmp_path: Path) -> None:
    zeros = {name: np.zeros(1, dtype=np.int64) for name in ("window_start_s", "window_first_step", "top_k_L")}
    old = Routing(
        counts_WPCLE=np.zeros((1, 2, 1, 1, 4), dtype=np.int64),
        real_tokens_WPC=np.zeros((1, 2, 1), dtype=np.int64),
        distinct_SL=np.zeros((0, 1), dtype=np.int16),
        max_load_SL=np.zeros((0, 1), dtype=np.int32),
        step_counts_SPLE=None,
        layer_names=("layer",),
        class_names=("all",),
        dropped_PL=np.zeros((2, 1), dtype=np.int64),
        identity_PL=np.zeros((2, 1), dtype=np.int64),
        **zeros,
    )
    old.save(tmp_path / "routing.npz")
    assert Routing.load(tmp_path / "routing.npz").requests is None
