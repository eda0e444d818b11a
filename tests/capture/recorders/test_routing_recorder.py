"""The recorder of routing beside engines that launch a step before they tell the last one."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof.capture.engines.base import BatchLayout, SequenceInStep, Step
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.recorders.routing import PicksWriter, RoutingRecorder
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.record.picks import load_picks
from moeprof.core.record.routing import Routing
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
