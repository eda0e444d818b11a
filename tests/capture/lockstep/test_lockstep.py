"""Lock-step: equal batches in all lanes, places shared fairly, and a lane that diverges is an error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.capture.engines.base import BatchLayout, SequenceInStep, Step, SteppedEngine
from moeprof.capture.lockstep.lanes import LaneSetup, Requests, route_models
from moeprof.capture.lockstep.loop import Limits, LocalLane, LockstepResult, run_lockstep, turn_orders, warm_up_lanes
from moeprof.capture.protocol import WorkerPlan, wanted_requests
from moeprof.capture.routing.tap import RoutingTap
from moeprof.capture.run.lockstep import LockstepRun, ladder_plan, lockstep_plan
from moeprof.capture.run.schedules import Scheduled
from moeprof.core.errors import EngineError
from moeprof.core.record.experiment import StudyHeader
from moeprof.core.record.tables import LANE_COLUMNS, read_table
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from moeprof.core.workload.studies import Ladder, Lockstep
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Traffic
from moeprof.core.workload.workload import Workload
from tests.helpers.lane_models import SETTINGS, dense_model, moe_model, schedule, seat
from tests.helpers.plain_moe import all_steps


@pytest.fixture(scope="module")
def moe() -> Any:
    return moe_model()


@pytest.fixture(scope="module")
def dense() -> Any:
    return dense_model()


class Clock:
    """Ticks once per look, so that a limit in seconds is a limit in looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


class Scripted(SteppedEngine):
    """An engine of known step times: ``seconds`` pass on ``clock`` in each step, whatever is in it."""

    def __init__(self, facts: Any, clock: list[float], seconds: float = 1.0, lag: int = 0) -> None:
        self.facts, self._clock, self._seconds, self._lag = facts, clock, seconds, lag
        self._left: dict[int, int] = {}
        self.most = 0

    def submit(self, request: Any) -> None:
        self._left[request.index] = request.output_tokens + self._lag

    def step(self) -> Step | None:
        if not self._left:
            return None
        self._clock[0] += self._seconds
        self.most = max(self.most, len(self._left))
        sequences = []
        for index in sorted(self._left):
            self._left[index] -= 1
            finished = not self._left[index]
            sequences.append(
                SequenceInStep(request=index, query_tokens=1, past_tokens=0, is_prefill=False, finished=finished)
            )
        self._left = {index: left for index, left in self._left.items() if left}
        return Step(start_s=0.0, end_s=0.0, device_s=None, sequences=tuple(sequences))

    def reset(self) -> None:
        self._left.clear()

    def close(self) -> None:
        self.reset()


def scripted(dense: Any, *seconds: float, lag: tuple[int, ...] = ()) -> tuple[list[LocalLane], list[float]]:
    facts, clock = seat("facts", dense).lane.engine.facts, [0.0]
    lags = lag or (0,) * len(seconds)
    return [
        LocalLane(name=f"lane-{i}", engine=Scripted(facts, clock, s, lags[i])) for i, s in enumerate(seconds)
    ], clock


def measure(
    lanes: list[LocalLane], requests: Schedule, folder: Path, **limits: Any
) -> tuple[LockstepResult, pd.DataFrame]:
    result = run_lockstep(lanes, requests, folder, Limits(**{"max_seconds": 60.0, **limits}))
    return result, read_table(folder, "lanes")


# -- places ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(1, 10))
def test_each_lane_takes_each_place_and_follows_each_other_equally_often(n: int) -> None:
    orders = turn_orders(n)
    assert all(sorted(order) == list(range(n)) for order in orders)
    places = Counter((lane, place) for order in orders for place, lane in enumerate(order))
    assert set(places.values()) == {2} and len(places) == n * n
    follows = Counter(pair for order in orders for pair in pairwise(order))
    assert len(follows) == n * (n - 1) and set(follows.values()) <= {2}


def test_places_are_shared_equally_in_the_table(dense: Any, tmp_path: Path) -> None:
    lanes, clock = scripted(dense, 1.0, 1.0, 1.0)
    # One request of 6 steps per cycle, 3 s a turn: 6 turns are a cycle, and all orders.
    result, table = measure(
        lanes, schedule(1, output=6), tmp_path, max_seconds=36.0, clock=lambda: clock[0], cpu_clock=lambda: clock[0]
    )
    assert (result.status, result.cycles, result.steps) == ("done", 2, 12)
    assert list(table.columns) == list(LANE_COLUMNS)
    assert table.groupby(["lane", "place"]).size().to_list() == [4] * 9
    first = table[table.step == 0].sort_values(["cycle", "place"])
    assert first.lane[first.cycle == 0].to_list() != first.lane[first.cycle == 1].to_list()


# -- times -------------------------------------------------------------------------------------------------------------


def test_a_step_is_billed_to_the_lane_that_made_it(dense: Any, tmp_path: Path) -> None:
    lanes, clock = scripted(dense, 1.0, 3.0)
    _, table = measure(
        lanes, schedule(2), tmp_path, max_seconds=40.0, clock=lambda: clock[0], cpu_clock=lambda: 2 * clock[0]
    )
    assert table.groupby("lane").wall_s.unique().to_dict() == {"lane-0": [1.0], "lane-1": [3.0]}
    assert table.groupby("lane").cpu_s.unique().to_dict() == {"lane-0": [2.0], "lane-1": [6.0]}


def test_a_lane_slowed_on_purpose_shows(dense: Any, tmp_path: Path) -> None:
    slow = seat("slow", dense)

    class Busy:
        def before_forward(self, layout: BatchLayout) -> None:
            a = np.ones((200, 200))
            for _ in range(12):
                a = a @ a / 200

        def after_forward(self) -> None:
            pass

    slow.listeners.listeners.append(Busy())
    _, table = measure([seat("plain", dense).lane, slow.lane], schedule(4), tmp_path, max_seconds=1.5)
    steps = table.pivot(index=["cycle", "step"], columns="lane", values="wall_s").dropna()
    assert (steps["slow"] / steps["plain"]).median() > 1.1


def test_switching_hooks_is_no_part_of_the_step(dense: Any, tmp_path: Path) -> None:
    lanes, clock = scripted(dense, 1.0, 1.0)

    @contextmanager
    def slowly() -> Iterator[None]:
        clock[0] += 100.0
        yield
        clock[0] += 100.0

    lanes[1].switched_on = slowly
    _, table = measure(
        lanes, schedule(1), tmp_path, max_seconds=1000.0, clock=lambda: clock[0], cpu_clock=lambda: clock[0]
    )
    assert set(table.wall_s) == {1.0}


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batching", ["continuous", "static"])
@pytest.mark.parametrize("concurrency", [None, 3])
def test_all_lanes_have_the_same_batch_in_every_step(tmp_path: Path, batching: Any, concurrency: int | None) -> None:
    settings = replace(SETTINGS, batching=batching)
    moe, dense = moe_model(), dense_model()  # an engine chooses a model's attention, so kinds do not mix
    requests = schedule(6, pattern="closed" if concurrency else "offline", concurrency=concurrency)
    lanes = [seat(name, model, settings=settings).lane for name, model in (("moe", moe), ("dense", dense))]
    result, table = measure(lanes, requests, tmp_path, max_seconds=1.0)
    assert result.cycles >= 1
    columns = ["phase", "prefill_tokens", "decode_tokens", "context_tokens", "num_requests"]
    assert (table.groupby(["cycle", "step"])[columns].nunique() == 1).all().all()
    first = table[(table.cycle == 0) & (table.lane == "moe")]
    assert first.prefill_tokens.sum() == requests.input_tokens.sum()
    assert first.decode_tokens.sum() == (requests.output_tokens - 1).sum()


def test_a_closed_loop_keeps_its_concurrency(dense: Any, tmp_path: Path) -> None:
    _, table = measure([seat("dense", dense).lane], schedule(9, pattern="closed", concurrency=3), tmp_path,
                       max_seconds=1.0)  # fmt: skip
    in_flight = table[table.cycle == 0].num_requests.to_list()
    full = in_flight.count(3)
    # Three as long as there are requests to send; then it runs empty.
    assert in_flight[:full] == [3] * full and full > len(in_flight) / 2
    assert in_flight[full:] == sorted(in_flight[full:], reverse=True) and max(in_flight) == 3


def test_a_lane_that_ends_later_is_an_error_that_names_it(dense: Any, tmp_path: Path) -> None:
    lanes, _ = scripted(dense, 1.0, 1.0, lag=(0, 1))
    with pytest.raises(EngineError, match=r"lane lane-1: step 4 is decode of 1 requests .* in lane lane-0"):
        measure(lanes, schedule(1), tmp_path)
    assert len(read_table(tmp_path, "lanes")) == 8  # what was equal is kept


def test_a_lane_with_nothing_to_run_is_an_error(dense: Any, tmp_path: Path) -> None:
    lanes, _ = scripted(dense, 1.0, 1.0)
    lanes[1].engine.submit = lambda request: None  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="lane lane-1: nothing to run in step 0"):
        measure(lanes, schedule(1), tmp_path)


def test_engines_that_differ_are_refused_by_name(dense: Any, tmp_path: Path) -> None:
    other = seat("other", dense, settings=replace(SETTINGS, kv_tokens=512))
    with pytest.raises(EngineError, match="lane other: kv_tokens is 512, 1024 in lane dense"):
        measure([seat("dense", dense).lane, other.lane], schedule(1), tmp_path)


# -- limits ------------------------------------------------------------------------------------------------------------


def test_less_than_a_cycle_is_cut(dense: Any, tmp_path: Path) -> None:
    lanes, clock = scripted(dense, 1.0, 1.0)
    result, table = measure(lanes, schedule(1, output=10), tmp_path, max_seconds=6.0, clock=lambda: clock[0])
    assert (result.status, result.cycles, result.steps, len(table)) == ("cut", 0, 3, 6)


def test_a_stop_ends_after_the_turn(dense: Any, tmp_path: Path) -> None:
    lanes, _ = scripted(dense, 1.0, 1.0)
    asked = iter([False, False, False, True, True, True])
    result, table = measure(lanes, schedule(1, output=10), tmp_path, should_stop=lambda: next(asked))
    assert result.status == "stopped" and len(table) % 2 == 0


def test_a_deadline_ends_it_too(dense: Any, tmp_path: Path) -> None:
    lanes, clock = scripted(dense, 1.0)
    result, _ = measure(lanes, schedule(1, output=10), tmp_path, deadline_s=4.0, clock=lambda: clock[0])
    assert (result.status, result.steps) == ("cut", 4)


def test_warm_up_leaves_no_request_behind(dense: Any) -> None:
    lane = seat("dense", dense).lane
    steps = warm_up_lanes([lane], schedule(3), Limits(max_seconds=4.0, clock=Clock()))
    assert steps >= 1
    assert lane.engine.step() is None


# -- experts -----------------------------------------------------------------------------------------------------------


def loads_seen(one: LaneSetup, requests: Schedule) -> list[tuple[int, int]]:
    """Distinct experts and busiest expert's tokens per step, counted by the tap."""
    tap, found = RoutingTap(one.model, one.layers), []
    one.listeners.listeners.append(tap)
    one.lane.begin(requests, Limits(max_seconds=60.0))
    is_last = False
    while not is_last:
        is_last = one.lane.take(1).is_last
        (step,) = all_steps(tap)
        counts_LE = step.counts_LGE.sum(axis=1)
        found.append((int((counts_LE > 0).sum()), int(counts_LE.max(axis=1).sum())))
    one.listeners.listeners.remove(tap)
    tap.close()
    return found


def test_the_table_has_the_loads_that_a_tap_counts(moe: Any, dense: Any, tmp_path: Path) -> None:
    requests = schedule(4)
    seats = [seat("moe", moe), seat("dense", dense)]
    route_models(seats, Requests(schedule=requests, rows_N=(0, 1, 2, 3)), Limits(max_seconds=60.0))
    _, table = measure([one.lane for one in seats], requests, tmp_path, max_seconds=1.0)
    sparse = table[(table.lane == "moe") & (table.cycle == 0)].sort_values("step")
    assert list(zip(sparse.distinct_experts, sparse.max_expert_load, strict=True)) == loads_seen(seats[0], requests)
    assert table[table.lane == "dense"].distinct_experts.isna().all()
    again = table[(table.lane == "moe") & (table.cycle == 1)].sort_values("step")
    assert again.distinct_experts.to_list()[: len(sparse)] == sparse.distinct_experts.to_list()[: len(again)]


@pytest.mark.parametrize("policy", ["balanced", "zipf"])
def test_an_override_routes_every_cycle_alike_so_its_loads_are_known(moe: Any, tmp_path: Path, policy: Any) -> None:
    spec = ModelSpec(name="even", path="moe", routing=RoutingPolicy(policy=policy))
    one, requests = seat("even", moe, spec=spec), schedule(2)
    route_models([one], Requests(schedule=requests, rows_N=(0, 1)), Limits(max_seconds=60.0))
    assert one.note is None and one.describe()["routing_policy"] == policy
    _, table = measure([one.lane], requests, tmp_path, max_seconds=0.2)
    first = table[table.cycle == 0].sort_values("step")
    with one.lane.switched_on():
        assert "forward" in vars(one.layers[0].experts)
        assert list(zip(first.distinct_experts, first.max_expert_load, strict=True)) == loads_seen(one, requests)
    assert "forward" not in vars(one.layers[0].experts)


# -- what a run asks for -----------------------------------------------------------------------------------------------


def setup(folder: Path, *, together: bool = True, hashes: tuple[str, str] = ("h", "h"), **more: Any) -> Any:
    """What the parent knows: two models, each with a schedule."""
    requests = more.pop("requests", schedule(20))
    eight = Lengths(distribution="fixed", value=8)
    workload = Workload(
        name="w",
        traffic=Traffic(arrivals=Arrivals(pattern="offline"), lengths=LengthPair(input=eight, output=eight)),
        models=(ModelSpec(name="moe", path="moe"), ModelSpec(name="dense", path="dense")),
        **{"lockstep": Lockstep(), "ladder": Ladder(model="moe", distinct=(4,)), **more},
    )
    schedules = {
        spec.name: Scheduled(tokenizer_hash=h, bundled=True, measured=requests, warmup=requests, file_name="s.parquet")
        for spec, h in zip(workload.models, hashes, strict=True)
    }
    return SimpleNamespace(workload=workload, folder=folder, private=folder, schedules=schedules, device="cpu",
                           together=together, deadline_s=None, resume=None)  # fmt: skip


@pytest.mark.parametrize(
    ("more", "failed", "reason"),
    [
        ({"together": False}, (), "the models do not fit into memory together"),
        ({"hashes": ("a", "b")}, (), "the models have different tokenizers, so their steps have no equal batches"),
        ({}, ("dense",), "fewer than two models are there to compare"),
        ({"outputs": "free", "ladder": None}, (), "a request may end early under `outputs: free`, so steps have no "
         "equal batches; use forced or forced_length"),
    ],
)  # fmt: skip
def test_a_lock_step_that_cannot_be_is_left_out_with_its_reason(
    tmp_path: Path, more: dict[str, Any], failed: tuple[str, ...], reason: str
) -> None:
    assert lockstep_plan(setup(tmp_path, **more), 0, failed) == reason
    told: list[tuple[str, Any]] = []
    header = SimpleNamespace(put=lambda **known: told.extend(known.items()), note=lambda text: told.append(("", text)))
    listener = SimpleNamespace(on_event=lambda *said: told.append(said))
    ran = LockstepRun(setup(tmp_path, **(more | {"ladder": None})), header, listener, SimpleNamespace(number=0))  # type: ignore[arg-type]
    ran.measure(0, failed)
    assert told == [
        ("lockstep", StudyHeader(status="left out", error=reason)),
        ("", f"lock-step left out: {reason}"),
        ("lock-step", "progress", {"doing": f"left out: {reason}"}),
    ]


def test_time_that_is_over_is_said_too(tmp_path: Path) -> None:
    notes: list[str] = []
    header = SimpleNamespace(put=lambda **known: None, note=notes.append)
    over = setup(tmp_path)
    over.deadline_s = 0.0
    ran = LockstepRun(over, header, SimpleNamespace(on_event=lambda *said: None), SimpleNamespace(number=0))  # type: ignore[arg-type]
    ran.measure(2, ())
    assert notes == ["lock-step left out: max_minutes was over in launch 2",
                     "ladder left out: max_minutes was over in launch 2"]  # fmt: skip


def test_the_workloads_own_concurrency_is_the_default(tmp_path: Path) -> None:
    own = lockstep_plan(setup(tmp_path, requests=schedule(20, pattern="closed", concurrency=5)), 1, ())
    assert isinstance(own, WorkerPlan) and own.in_turn.concurrency == (5,)
    assert own.folder == tmp_path / "lockstep" / "launch-1" and [lane.name for lane in own.lanes] == ["moe", "dense"]
    offline = lockstep_plan(setup(tmp_path), 0, ())
    assert isinstance(offline, WorkerPlan) and offline.in_turn.concurrency == (0,)


def test_the_ladders_lanes_are_one_moe_between_its_twins(tmp_path: Path) -> None:
    plan = ladder_plan(setup(tmp_path), 0)
    assert [(lane.name, lane.rung, lane.optional) for lane in plan.lanes] == [
        ("native", "native", False),
        ("moe-active", "dense", True),
        ("concentrated", "concentrated", False),
        ("balanced", "balanced", False),
        ("recorded", "recorded", False),
        ("moe-total", "dense", True),
        ("distinct-4", "distinct", False),
    ]
    assert plan.in_turn.concurrency == (1, 8) and plan.kind == plan.folder.parent.name == "ladder"


@pytest.mark.parametrize(
    ("asked", "concurrency", "available", "found"),
    [(None, 1, 99, 8), (None, 16, 99, 32), (None, 16, 20, 20), (None, 0, 99, 32), (5, 2, 99, 5), (50, 2, 20, 20)],
)
def test_requests_of_a_measurement(asked: int | None, concurrency: int, available: int, found: int) -> None:
    assert wanted_requests(asked, concurrency, available) == found
