"""Replayed routing: the recorded picks and no others, and a clear line where they do not fit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moeprof.capture.engines.base import BatchLayout
from moeprof.capture.lockstep.lanes import Requests, record_steps, route_models
from moeprof.capture.lockstep.loop import Limits
from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.routing.override import PickTable
from moeprof.capture.routing.recorded import check_same_requests, replay_table
from moeprof.capture.routing.rows import Positions
from moeprof.core.errors import EngineError, WorkloadError
from moeprof.core.record.picks import load_picks
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from tests.helpers.lane_models import moe_model, schedule, seat
from tests.helpers.tiny_run import NUM_EXPERTS, NUM_LAYERS, TOP_K, run_main

SHAPES = [LayerShape(num_experts=NUM_EXPERTS, top_k=TOP_K)] * NUM_LAYERS


def write_pass(folder: Path, requests: Schedule, *, leave_out: Sequence[int] = (), left_out: int = 0) -> Path:
    """A pass whose token at position p of request r picks experts (r + p) mod 8 and the next."""
    (folder / "picks").mkdir(parents=True)
    positions = Positions.of(requests)
    request_T = np.repeat(np.arange(len(requests)), positions.tokens_N)
    position_T = np.arange(positions.num_rows) - positions.start_N[request_T]
    kept = ~np.isin(np.arange(positions.num_rows), leave_out)
    first_T = (request_T + position_T) % NUM_EXPERTS
    picks_TLK = np.stack([np.stack([first_T, (first_T + 1) % NUM_EXPERTS], axis=1)] * NUM_LAYERS, axis=1)
    arrays: dict[str, Any] = {"picks_TLK": picks_TLK, "request_T": request_T, "position_T": position_T,
                              "step_T": np.zeros_like(request_T)}  # fmt: skip
    np.savez(folder / "picks" / "part-0.npz", **{name: value[kept] for name, value in arrays.items()})
    (folder / "picks" / "left_out.json").write_text(json.dumps({"tokens": left_out}))
    return folder


# -- rows --------------------------------------------------------------------------------------------------------------


def layout(requests: tuple[int, ...], query: tuple[int, ...], past: tuple[int, ...], **more: Any) -> BatchLayout:
    return BatchLayout(query_tokens=query, requests=requests, is_prefill=(True,) * len(query), past_tokens=past, **more)


def test_rows_of_a_mixed_step_by_hand() -> None:
    # Prompts of 4, 5, 6 tokens and 5, 6, 7 outputs: 8, 10, 12 computed tokens; the last output is never computed.
    positions = Positions.of(schedule(3))
    assert positions.tokens_N.tolist() == [8, 10, 12] and positions.start_N.tolist() == [0, 8, 18]
    assert positions.rows(layout((2, 0), (3, 1), (2, 7))).tolist() == [20, 21, 22, 7]
    assert positions.rows(layout((2, 0), (1, 1), (2, 7))).tolist() == [20, 7]


def test_a_token_without_a_row_is_an_error_and_borrows_one_only_when_allowed() -> None:
    positions = Positions.of(schedule(3))
    for strange in (layout((3,), (1,), (0,)), layout((0,), (2,), (7,))):
        with pytest.raises(EngineError, match="no picks for a token"):
            positions.rows(strange)
    assert positions.rows(layout((3,), (1,), (0,)), wrap=True).tolist() == [0]
    assert positions.rows(layout((0,), (2,), (7,)), wrap=True).tolist() == [7, 0]


def test_padding_gets_the_picks_of_real_tokens() -> None:
    table = PickTable(np.arange(30)[None, :, None], Positions.of(schedule(3)), torch.device("cpu"))
    padded = layout((0, 1), (1, 2), (0, 0), token_mask=[False, True, True, True, False])
    assert table.gather(padded)[0, :, 0].tolist() == [0, 0, 8, 9, 8]


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_token_gets_the_picks_that_were_recorded_for_it(tmp_path: Path) -> None:
    requests = schedule(4)
    folder = write_pass(tmp_path / "pass", requests)
    spec = ModelSpec(name="again", path="moe", routing=RoutingPolicy(policy="replay", path=str(folder)))
    one = seat("again", moe_model(), spec=spec)
    route_models([one], Requests(schedule=requests, rows_N=(0, 1, 2, 3)), Limits(max_seconds=600.0))
    assert one.describe()["rung"] == "recorded"
    positions, seen = Positions.of(requests), 0
    for step in record_steps(one, requests, Limits(max_seconds=600.0)):
        for row, picks_LK in zip(step.rows_T, step.picks_LTK.transpose(1, 0, 2), strict=True):
            request = int(np.searchsorted(positions.start_N, row, side="right")) - 1
            first = (request + row - positions.start_N[request]) % NUM_EXPERTS
            assert picks_LK.tolist() == [[first, (first + 1) % NUM_EXPERTS]] * NUM_LAYERS
            seen += 1
    assert seen == positions.num_rows


def test_a_part_of_the_schedule_keeps_its_own_picks(tmp_path: Path) -> None:
    requests = schedule(4)
    folder = write_pass(tmp_path / "pass", requests)
    whole = replay_table(folder, requests, SHAPES)
    part = replace(
        requests, request_id=("r2",), arrival_s=np.zeros(1), input_ids=requests.input_ids[2:3],
        output_tokens=requests.output_tokens[2:3], output_ids=requests.output_ids[2:3],  # type: ignore[index]
        request_class=("all",), session=("",), prefix_blocks=((),), num_characters=np.array([-1]),
    )  # fmt: skip
    start, tokens = int(Positions.of(requests).start_N[2]), int(Positions.of(requests).tokens_N[2])
    found = replay_table(folder, part, SHAPES, rows_N=(2,))
    assert found.tolist() == whole[:, start : start + tokens].tolist()


def test_missing_positions_are_named(tmp_path: Path) -> None:
    requests = schedule(3)
    with pytest.raises(
        WorkloadError, match=r"no picks for position 2 of request r1 \(2 positions are missing\); the pa"
    ):
        replay_table(write_pass(tmp_path / "a", requests, leave_out=[10, 11]), requests, SHAPES)
    with pytest.raises(WorkloadError, match=r"7 tokens were left out; raise instruments.picks_cap_mib"):
        replay_table(write_pass(tmp_path / "b", requests, leave_out=[10], left_out=7), requests, SHAPES)


def test_requests_that_will_be_refused_need_no_picks(tmp_path: Path) -> None:
    requests = schedule(3)
    folder = write_pass(tmp_path / "pass", requests, leave_out=range(8, 18))
    assert replay_table(folder, requests, SHAPES, left_out=frozenset({1})).shape == (NUM_LAYERS, 30, TOP_K)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (SHAPES[:1], r"picks of 2 MoE layers, 2 per token; this model has 1 layers and top-2"),
        ([replace(SHAPES[0], top_k=3)] * 2, r"this model has 2 layers and top-3"),
        ([replace(SHAPES[0], num_experts=4)] * 2, r"picks of MoE layer 0 stand for no expert of this model"),
    ],
)  # fmt: skip
def test_picks_of_another_model_are_refused(tmp_path: Path, shapes: list[LayerShape], words: str) -> None:
    requests = schedule(3)
    with pytest.raises(WorkloadError, match=words):
        replay_table(write_pass(tmp_path / "pass", requests), requests, shapes)


def test_identity_experts_are_replayed_as_they_are(tmp_path: Path) -> None:
    requests = schedule(3)
    shapes = [LayerShape(num_experts=4, top_k=2, num_identity=4)] * 2
    assert replay_table(write_pass(tmp_path / "pass", requests), requests, shapes).max() == 7


# -- the record it comes from ------------------------------------------------------------------------------------------


def record_of(folder: Path, requests: Schedule, *, with_content: bool = True) -> Path:
    found = write_pass(folder / "run" / "moe" / "launch-0" / "round-0", requests)
    requests.save(folder / "run" / "schedule.parquet", with_content=with_content)
    recorded = {"moe": {"sha256": requests.sha256(), "file": "schedule.parquet"}}
    (folder / "run" / "experiment.json").write_text(
        json.dumps({"format_version": 1, "workload": {}, "environment": {}, "models": [], "schedules": recorded})
    )
    return found


def test_the_same_requests_at_another_pace_are_fine(tmp_path: Path) -> None:
    requests = schedule(3)
    folder = record_of(tmp_path, requests)
    check_same_requests(folder, requests)
    check_same_requests(folder, replace(requests, pattern="closed", concurrency=2))


def test_other_requests_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    requests = schedule(3)
    folder = record_of(tmp_path, requests)
    other = replace(requests, input_ids=(requests.input_ids[0], requests.input_ids[1] + 1, requests.input_ids[2]))
    with pytest.raises(WorkloadError, match=r"recorded on other requests \(request r1 has other tokens\)"):
        check_same_requests(folder, other)
    with pytest.raises(WorkloadError, match=r"recorded on other requests \(3 requests, 4 now\)"):
        check_same_requests(folder, schedule(4))


def test_without_content_the_schedule_must_be_the_very_same(tmp_path: Path) -> None:
    requests = schedule(3)
    folder = record_of(tmp_path, requests, with_content=False)
    check_same_requests(folder, requests)
    with pytest.raises(WorkloadError, match="requests cannot be compared"):
        check_same_requests(folder, schedule(4))


def test_a_folder_without_picks_is_one_clear_line(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "no such folder"), (tmp_path, "holds no picks")):
        with pytest.raises(WorkloadError, match=f"{words}; routing policy replay: .* --save-detailed"):
            check_same_requests(path, schedule(1))


# -- a real run --------------------------------------------------------------------------------------------------------

RUN = """\
name: replayed
traffic:
  arrivals: {{pattern: offline}}
  lengths: {{input: {{distribution: fixed, value: 8}}, output: {{distribution: fixed, value: 6}}}}
  prompts: {{source: packaged}}
  num_requests: 6
models: [{models}]
rounds: 1
threads: 1
device: cpu
warmup: {{num_requests: 2, max_seconds: 0.2}}
instruments: {{overhead: false, peaks: false, quality: false, power: false}}
prices: {{usd_per_device_hour: 1}}
{more}
"""


def picks_by_token(folder: Path) -> dict[tuple[int, int], list[Any]]:
    picks = load_picks(folder)
    assert picks is not None
    return {
        (int(r), int(p)): ids.tolist()
        for r, p, ids in zip(picks.request_T, picks.position_T, picks.picks_TLK, strict=True)
    }


def test_a_run_that_replays_a_run_routes_alike_and_its_lock_step_shows_the_cost(tiny: Path, tmp_path: Path) -> None:
    import pandas as pd

    first, second = tmp_path / "first", tmp_path / "second"
    (tmp_path / "a.yaml").write_text(RUN.format(models=f"{{name: moe, path: {tiny / 'moe'}}}", more=""))
    assert run_main(["run", tmp_path / "a.yaml", "--output-dir", first, "--save-detailed", "-q"]).code == 0
    recorded = first / "moe" / "launch-0" / "round-0"
    models = f"{{name: moe, path: {tiny / 'moe'}}}, {{name: again, path: {tiny / 'moe'}, routing: {{policy: replay, path: {recorded}}}}}"  # noqa: E501
    more = "lockstep: {max_seconds: 2, concurrency: [4]}"
    (tmp_path / "b.yaml").write_text(RUN.format(models=models, more=more))
    ran = run_main(["run", tmp_path / "b.yaml", "--output-dir", second, "--save-detailed", "-q"])
    assert ran.code == 0, ran.stderr
    replayed = second / "again" / "launch-0" / "round-0"
    assert picks_by_token(replayed) == picks_by_token(recorded)
    agreed = [pd.read_parquet(folder / "requests.parquet").agreed_tokens.to_list() for folder in (recorded, replayed)]
    assert agreed[0] == agreed[1]
    lanes = pd.read_parquet(second / "lockstep" / "launch-0" / "c4" / "lanes.parquet")
    loads = lanes[lanes.cycle == 0].pivot(index="step", columns="lane", values="distinct_experts")
    assert (loads["moe"] == loads["again"]).all() and len(loads) >= 6
    assert json.loads((second / "experiment.json").read_text())["lockstep"] == {"status": "done", "error": None}
    # Another seed is other requests: refused before anything is loaded.
    refused = run_main(["run", tmp_path / "b.yaml", "--seed", 1, "--output-dir", tmp_path / "third", "-q"])
    assert refused.code == 2 and "recorded on other requests" in refused.stderr
