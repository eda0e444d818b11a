"""The rungs of the sparsity ladder: which experts each step really touches, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.capture.coverage import tiny_model
from moeprof.capture.lockstep.lanes import LaneSetup, Requests, check_ladder, record_steps, route_ladder
from moeprof.capture.lockstep.loop import Limits
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.routing.override import PickTable
from moeprof.capture.routing.tables import StepPicks, change_for, changed, loads_of, num_distinct, table_of
from moeprof.capture.run.lockstep import _check_distinct, check_workload, choose_moe, ladder_twins
from moeprof.capture.run.schedules import Scheduled
from moeprof.core.errors import EngineError, UnsupportedModelError, WorkloadError
from moeprof.core.record.layout import open_record
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.studies import Ladder
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Traffic
from moeprof.core.workload.workload import Workload
from tests.helpers.lane_models import SETTINGS, dense_model, moe_model, schedule, seat
from tests.helpers.left_on import left_on
from tests.helpers.tiny_run import NUM_EXPERTS, NUM_LAYERS, TOP_K, run_main

RUNGS = ("native", "concentrated", "balanced", "recorded")


def equipped(
    requests: Schedule, *, batching: Any = "continuous", distinct: tuple[int, ...] = ()
) -> dict[str, LaneSetup]:
    model, settings = moe_model(), replace(SETTINGS, batching=batching)
    seats = [seat(rung, model, rung=rung, settings=settings) for rung in RUNGS]
    seats += [seat(f"distinct-{n}", model, rung="distinct", distinct=n, settings=settings) for n in distinct]
    route_ladder(seats, Requests(schedule=requests, rows_N=tuple(range(len(requests)))), Limits(max_seconds=600.0))
    return {one.plan.name: one for one in seats}


def executed(one: LaneSetup, requests: Schedule) -> list[StepPicks]:
    """What the experts are really called with, step by step."""
    return record_steps(one, requests, Limits(max_seconds=600.0))


@pytest.fixture(scope="module", params=["continuous", "static"])
def climbed(request: pytest.FixtureRequest) -> tuple[dict[str, LaneSetup], dict[str, list[StepPicks]]]:
    """Every rung, and what it executed, in continuous batches and in padded static ones."""
    requests = schedule(6, pattern="closed", concurrency=4)
    seats = equipped(requests, batching=request.param, distinct=(2, 5, 99))
    return seats, {name: executed(one, requests) for name, one in seats.items()}


def per_layer(steps: list[StepPicks]) -> list[list[np.ndarray[Any, Any]]]:
    """Tokens per expert, by step and layer."""
    return [[np.bincount(layer.ravel(), minlength=NUM_EXPERTS) for layer in step.picks_LTK] for step in steps]


def test_the_recorded_rung_executes_what_the_router_did(climbed: Any) -> None:
    _, steps = climbed
    assert len(steps["native"]) > 5
    for native, again in zip(steps["native"], steps["recorded"], strict=True):
        assert native.rows_T.tolist() == again.rows_T.tolist()
        assert native.picks_LTK.tolist() == again.picks_LTK.tolist()


def test_the_balanced_rung_touches_the_recorded_experts_each_equally_often(climbed: Any) -> None:
    _, steps = climbed
    for native, balanced in zip(per_layer(steps["native"]), per_layer(steps["balanced"]), strict=True):
        for count_E, even_E in zip(native, balanced, strict=True):
            assert ((count_E > 0) == (even_E > 0)).all()
            loads = even_E[even_E > 0]
            assert loads.max() - loads.min() <= 1 and loads.sum() == count_E.sum()


def test_the_concentrated_rung_touches_exactly_k_experts(climbed: Any) -> None:
    _, steps = climbed
    for layers in per_layer(steps["concentrated"]):
        for count_E in layers:
            assert np.flatnonzero(count_E).tolist() == list(range(TOP_K)) and len(set(count_E[:TOP_K])) == 1


@pytest.mark.parametrize("asked", [2, 5, 99])
def test_a_distinct_rung_touches_as_many_experts_as_there_can_be(climbed: Any, asked: int) -> None:
    _, steps = climbed
    for step, layers in zip(steps[f"distinct-{asked}"], per_layer(steps[f"distinct-{asked}"]), strict=True):
        tokens = step.picks_LTK.shape[1]
        assert [int((count_E > 0).sum()) for count_E in layers] == [
            min(asked, NUM_EXPERTS, tokens * TOP_K)
        ] * NUM_LAYERS


def test_no_token_picks_an_expert_twice(climbed: Any) -> None:
    _, steps = climbed
    for name in steps:
        for step in steps[name]:
            assert (np.diff(np.sort(step.picks_LTK, axis=2), axis=2) > 0).all(), name


def test_the_loads_beside_the_times_are_those_that_are_executed(climbed: Any) -> None:
    seats, steps = climbed
    for name, one in seats.items():
        assert one.lane.loads == loads_of(steps[name], one.shapes), name


def test_nothing_stays_on_the_shared_model(climbed: Any) -> None:
    seats, _ = climbed
    assert [left_on(layer.experts) for layer in seats["native"].layers] == [[]] * NUM_LAYERS


def test_an_override_that_is_not_in_force_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moe_model()
    seats = [seat(rung, model, rung=rung) for rung in ("native", "concentrated")]
    gather = PickTable.gather
    monkeypatch.setattr(PickTable, "gather", lambda *args, **more: gather(*args, **more).roll(1, 1) * 3)
    with pytest.raises(EngineError, match="lane concentrated: step 0 was not routed"):
        route_ladder(seats, Requests(schedule=schedule(3), rows_N=(0, 1, 2)), Limits(max_seconds=600.0))


# -- the formulas, without a model -------------------------------------------------------------------------------------


def step(*tokens: tuple[int, ...]) -> StepPicks:
    return StepPicks(rows_T=np.arange(len(tokens)), picks_LTK=np.array([tokens], dtype=np.int32))


def test_the_rungs_of_three_tokens_by_hand() -> None:
    shape, recorded = LayerShape(num_experts=8, top_k=2), step((7, 1), (1, 4), (4, 7))
    by_rung = {rung: changed([recorded], [shape], change_for(rung))[0].picks_LTK[0].tolist()
               for rung in RUNGS[1:]}  # fmt: skip
    assert by_rung["concentrated"] == [[0, 1], [0, 1], [0, 1]]
    assert by_rung["balanced"] == [[1, 4], [7, 1], [4, 7]]
    assert by_rung["recorded"] == [[7, 1], [1, 4], [4, 7]]
    four = changed([recorded], [shape], change_for("distinct", 4))[0].picks_LTK[0].tolist()
    assert four == [[0, 1], [2, 3], [0, 1]]


def test_loads_by_hand() -> None:
    shape = LayerShape(num_experts=8, top_k=2)
    (load,) = loads_of([step((7, 1), (1, 4), (1, 8))], [shape])  # 8 stands for no expert
    assert (load.distinct_experts, load.max_expert_load) == (3, 3)


@given(
    tokens=st.integers(1, 12), experts=st.integers(2, 16), top_k=st.integers(1, 4), asked=st.integers(1, 20),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_every_rung_is_legal_for_any_shape(tokens: int, experts: int, top_k: int, asked: int, seed: int) -> None:
    top_k = min(top_k, experts)
    random, shape = np.random.default_rng(seed), LayerShape(num_experts=experts, top_k=top_k)
    picks = np.array([[random.permutation(experts)[:top_k] for _ in range(tokens)]], dtype=np.int32)
    recorded = StepPicks(rows_T=np.arange(tokens), picks_LTK=picks)
    for rung in ("concentrated", "balanced", "recorded", "distinct"):
        found = changed([recorded], [shape], change_for(rung, asked))[0].picks_LTK[0]
        assert found.min() >= 0 and found.max() < experts
        assert all(len(set(row)) == top_k for row in found.tolist())
        if rung == "balanced":
            assert set(found.ravel()) == set(picks.ravel())
        if rung == "distinct":
            assert len(set(found.ravel())) == num_distinct(asked, tokens, shape)


def test_a_token_that_was_computed_twice_has_no_step_of_its_own() -> None:
    with pytest.raises(EngineError, match="twice"):
        table_of([step((0, 1)), step((2, 3))], 2)


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_models_whose_picks_cannot_be_replaced_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="Llama4"):
        check_ladder(find_moe_layers(tiny_model("llama4_text")))
    with pytest.raises(UnsupportedModelError, match="LongcatFlashMoE has picks that are no experts"):
        check_ladder(find_moe_layers(tiny_model("longcat_flash")))
    with pytest.raises(UnsupportedModelError, match="no routed experts"):
        check_ladder(find_moe_layers(dense_model()))


def workload(**more: Any) -> Workload:
    models = more.pop("models", (ModelSpec(name="dense", path="d"), ModelSpec(name="moe", path="m")))
    eight = Lengths(distribution="fixed", value=8)
    traffic = Traffic(
        arrivals=Arrivals(pattern="offline"), lengths=LengthPair(input=eight, output=eight), num_requests=8
    )
    return Workload(name="w", traffic=traffic, models=models, **{"ladder": Ladder(), **more})


CONFIGS: dict[str, dict[str, Any]] = {
    "dense": {"model_type": "qwen3"},
    "moe": {"model_type": "x", "text_config": {"num_local_experts": 8}},
    "twin": {"num_experts": 8},
}


def schedules(num: int = 8) -> dict[str, Scheduled]:
    one = schedule(num)
    scheduled = Scheduled(tokenizer_hash="h", bundled=True, measured=one, warmup=one, file_name="schedule.parquet")
    return dict.fromkeys(CONFIGS, scheduled)


def test_the_ladder_takes_the_first_moe() -> None:
    found = check_workload(workload(), CONFIGS, schedules()).ladder
    assert found is not None and found.model == "moe"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"ladder": Ladder(model="nobody")}, "ladder.model: no model named 'nobody' .* models with experts: moe"),
        ({"ladder": Ladder(model="dense")}, "ladder.model: dense has no routed experts; models with experts: moe"),
        ({"models": (ModelSpec(name="dense", path="d"),)}, r"no model of this .* experts \(found dense\)"),
        ({"ladder": Ladder(concurrency=(1, 9))}, "ladder.concurrency: 9 in flight, but only 8 requests"),
        ({"ladder": Ladder(concurrency=(4,), num_requests=2)}, "ladder.concurrency: 4 in flight, but only 2 requests"),
        ({"outputs": "free"}, "ladder: a request may end early"),
    ],
)  # fmt: skip
def test_a_ladder_that_cannot_be_climbed_is_one_clear_line(more: dict[str, Any], words: str) -> None:
    with pytest.raises(WorkloadError, match=words) as error:
        check_workload(workload(**more), CONFIGS, schedules())
    assert "\n" not in str(error.value) and error.value.exit_code == 2


def test_the_workloads_own_twins_are_used_and_others_made() -> None:
    own = ModelSpec(name="twin", twin_of="moe", match="active")
    full = workload(models=(ModelSpec(name="moe", path="m"), own))
    active, total = ladder_twins(full, choose_moe(full, CONFIGS))
    assert active is own
    assert (total.name, total.twin_of, total.match) == ("moe-total", "moe", "total")


# -- a real run --------------------------------------------------------------------------------------------------------


def test_the_command_climbs_and_leaves_a_record(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ran = run_main(["ladder", tiny / "workload.yaml", "--concurrency", "4", "--distinct", "2,8", "--max-seconds", "3",
                    "--model", "moe", "--output-dir", folder, "--write", "json"])  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert "ladder: loading moe-total" in ran.stderr and f"record: {folder}" in ran.stderr
    record = open_record(folder)
    assert record.status == "done" and [model.name for model in record.models] == ["moe", "moe-active", "moe-total"]
    assert all(model.facts is not None and model.facts.total_params > 0 for model in record.models)
    (climbed,) = record.ladder
    assert climbed.info.kind == "ladder" and climbed.concurrency == 4 and climbed.info.num_requests == 8
    assert {lane.name: lane.rung for lane in climbed.info.lanes} == {
        "native": "native", "moe-active": "dense", "concentrated": "concentrated", "balanced": "balanced",
        "recorded": "recorded", "moe-total": "dense", "distinct-2": "distinct", "distinct-8": "distinct",
    }  # fmt: skip
    assert [lane.match for lane in climbed.info.lanes if lane.rung == "dense"] == ["active", "total"]
    table = climbed.table
    assert set(table.lane) == {lane.name for lane in climbed.info.lanes}
    assert table.groupby(["cycle", "step"]).num_requests.nunique().eq(1).all()
    assert table.groupby("lane").wall_s.min().gt(0).all() and record.experiment.ladder.status == "done"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--concurrency", "1,x"], "--concurrency '1,x': whole numbers with commas between them"),
        (["--concurrency", "0"], "concurrency: found 0; 1 or more is allowed"),
        (["--concurrency", "99"], "ladder.concurrency: 99 in flight, but only 24 requests are sent"),
        (["--model", "dense"], "ladder.model: dense has no routed experts; models with experts: moe"),
        (["--distinct", "0"], "distinct: found 0"),
    ],
)
def test_bad_options_are_one_line_and_exit_2(tiny: Path, options: list[str], words: str) -> None:
    ran = run_main(["ladder", tiny / "workload.yaml", *options])
    assert (ran.code, ran.stdout) == (2, "")
    assert words in ran.stderr and len(ran.stderr.splitlines()) == 1


@pytest.mark.parametrize("wanted", [1, 9])
def test_more_or_fewer_distinct_experts_than_there_can_be_are_refused(wanted: int) -> None:
    with pytest.raises(WorkloadError, match=rf"ladder.distinct: found {wanted}; 2 \(what one token takes\) to 8"):
        _check_distinct((4, wanted), {"text_config": {"num_experts": 8, "num_experts_per_tok": 2}})
