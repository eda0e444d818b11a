"""Turns that wait for answers, on a fake clock: every time can be worked out in the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeprof.capture.engines.base import EngineFacts, SequenceInStep, ServedFacts, Step, SteppedEngine, TokenEvent
from moeprof.capture.engines.base import TokenEvents as Events
from moeprof.capture.lockstep.loop import Limits, LocalLane
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.replay import ReplayResult, replay
from moeprof.core.record.tables import read_table
from moeprof.core.trace import Pattern, Request, Schedule, first_requests
from moeprof.core.turns import Turns, most_at_once

FACTS = EngineFacts(
    kind="fake", batching="continuous", attention="none", experts=None, dtype="float32", device="cpu",
    kv_tokens=1000, kv_bytes=None, max_batch_tokens=1000, max_sequence_tokens=100,
)  # fmt: skip


SERVED = ServedFacts(kind="fake", max_sequence_tokens=100)


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += max(seconds, 1e-6)


@dataclass
class Stepped(SteppedEngine):
    """All requests are in every step; a step takes a second and gives each of them a token: 100, 101, ..."""

    clock: Clock
    facts: EngineFacts = FACTS
    ends_early: Sequence[int] = ()
    running: dict[int, list[int]] = field(default_factory=dict)
    prompts: dict[int, list[int]] = field(default_factory=dict)

    def submit(self, request: Request) -> None:
        asked = 1 if request.index in self.ends_early else request.output_tokens
        self.running[request.index] = [0, asked]
        self.prompts[request.index] = list(request.input_ids)

    def step(self) -> Step | None:
        if not self.running:
            return None
        start_s = self.clock.now_s
        self.clock.now_s += 1
        told = []
        for index, state in list(self.running.items()):
            state[0] += 1
            told.append(
                SequenceInStep(
                    request=index, query_tokens=1, past_tokens=0, is_prefill=state[0] == 1, token=99 + state[0],
                    finished=state[0] == state[1],
                )
            )  # fmt: skip
            if state[0] == state[1]:
                del self.running[index]
        return Step(start_s=start_s, end_s=self.clock.now_s, device_s=None, sequences=tuple(told))

    def reset(self) -> None:
        self.running.clear()

    def close(self) -> None:
        self.running.clear()


@dataclass
class Served:
    """Steps itself: each answer takes ``output_tokens`` seconds and comes as one event; some fail, some have no ids."""

    clock: Clock
    fails: Sequence[int] = ()
    has_ids: bool = True
    facts: ServedFacts = SERVED
    ends: dict[int, tuple[float, int]] = field(default_factory=dict)
    prompts: dict[int, list[int]] = field(default_factory=dict)

    def submit(self, request: Request) -> None:
        self.ends[request.index] = (self.clock() + request.output_tokens, request.output_tokens)
        self.prompts[request.index] = list(request.input_ids)

    def poll(self, wait_s: float) -> Events:
        assert wait_s > 0
        self.clock.sleep(wait_s)
        events = []
        for index, (at_s, number) in list(self.ends.items()):
            if at_s <= self.clock():
                del self.ends[index]
                error = "connection reset" if index in self.fails else None
                ids = tuple(range(100, 100 + number)) if self.has_ids else ()
                told = TokenEvent(request=index, at_s=at_s, num_tokens=number, chosen=ids, finished=True, error=error)
                events.append(told)
        return Events(events=tuple(events))

    def drain(self) -> list[Events]:
        return []

    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        return 0

    def reset(self) -> None:
        self.ends.clear()

    def close(self) -> None:
        self.ends.clear()


def make(
    after: Sequence[int],
    *,
    arrival_s: Sequence[float] = (),
    delay_s: Sequence[float] = (),
    gap_s: Sequence[float] = (),
    outputs: Sequence[int] = (),
    context: Sequence[int] = (),
    inputs: Sequence[int] = (),
    pattern: Pattern = "open",
    concurrency: int | None = None,
    free: bool = False,
    closed: bool = True,
) -> Schedule:
    num, zeros = len(after), (0,) * len(after)
    return Schedule(
        pattern=pattern,
        concurrency=concurrency,
        request_id=tuple(f"r{i}" for i in range(num)),
        arrival_s=np.array(arrival_s or zeros, dtype=np.float64),
        input_ids=tuple(np.arange(10 * i, 10 * i + n, dtype=np.int32) for i, n in enumerate(inputs or (3,) * num)),
        output_tokens=np.array(outputs or (1,) * num, dtype=np.int64),
        output_ids=None,
        request_class=("all",) * num,
        session=("s",) * num,
        prefix_blocks=((),) * num,
        outputs="free" if free else "forced_length",
        num_characters=np.full(num, -1, dtype=np.int64),
        turns=Turns(
            after=np.array(after, dtype=np.int64),
            is_closed=closed,
            delay_s=np.array(delay_s or zeros, dtype=np.float64),
            gap_s=np.array(gap_s or zeros, dtype=np.float64),
            context=np.array(after, dtype=np.int64),
            context_tokens=np.array(context or zeros, dtype=np.int64),
        ),
    )


def run(schedule: Schedule, folder: Path, engine: Stepped | Served | None = None) -> tuple[ReplayResult, pd.DataFrame]:
    clock = engine.clock if engine is not None else Clock()
    recorder = RequestRecorder(folder)
    result = replay(
        engine or Stepped(clock), schedule, [recorder], clock=clock, sleep=clock.sleep
    )  # fmt: skip
    return result, read_table(folder, "requests").set_index("request_id").sort_index()


def column(table: pd.DataFrame, name: str) -> list[float | None]:
    return [None if pd.isna(value) else round(float(value), 3) for value in table[name]]


def test_a_turn_arrives_its_delay_after_the_end_of_the_answer_before(tmp_path: Path) -> None:
    # r0 at 0 takes 3 s; r1 follows 2 s later, takes 1 s; r2 follows at once. In the file they were due at 0, 2 and 2.
    schedule = make([-1, 0, 1], arrival_s=[0, 2, 2], delay_s=[0, 2, 0], outputs=[3, 1, 2])
    result, table = run(schedule, tmp_path)
    assert column(table, "arrival_s") == [0, 5, 6]
    assert column(table, "sent_s") == [0, 5, 6]
    assert column(table, "first_token_s") == [1, 6, 7]  # a turn's time to the first token is 1 s in each
    assert column(table, "last_token_s") == [3, 6, 8]
    assert column(table, "delay_s") == [None, 2, 0]
    assert column(table, "after") == [None, 0, 1]
    assert column(table, "turn") == [1, 2, 3]
    assert (result.sent, result.finished, result.not_sent) == (3, 3, 0)


def test_open_sessions_are_sent_at_their_own_times(tmp_path: Path) -> None:
    _, table = run(make([-1, 0], arrival_s=[0, 2], delay_s=[0, 2], outputs=[3, 1], closed=False), tmp_path)
    assert column(table, "arrival_s") == [0, 2]
    assert column(table, "after") == [None, None]
    assert column(table, "turn") == [1, 2]


def test_a_turn_with_a_time_alone_keeps_its_distance_or_waits_for_the_answer(tmp_path: Path) -> None:
    # As in the file 5 s after r0 arrived, though that took 1 s; r3 waits the 4 s that r2 takes, not the file's 1 s.
    schedule = make([-1, 0, -1, 2], arrival_s=[0, 5, 20, 21], gap_s=[0, 5, 0, 1], outputs=[1, 1, 4, 1])
    _, table = run(schedule, tmp_path)
    assert column(table, "arrival_s") == [0, 5, 20, 24]
    assert column(table, "delay_s") == [None, 4, None, 0]


def test_several_may_wait_for_the_same_answer(tmp_path: Path) -> None:
    # An agent calls two tools at once after r0, and a third call waits for the second one.
    _, table = run(make([-1, 0, 0, 2], outputs=[2, 1, 3, 1], delay_s=[0, 0, 1, 0]), tmp_path)
    assert column(table, "arrival_s") == [0, 2, 3, 6]
    assert column(table, "turn") == [1, 2, 2, 3]


def test_an_engine_that_steps_itself_gets_turns_when_the_answer_before_has_ended(tmp_path: Path) -> None:
    clock = Clock()
    schedule = make([-1, 0, -1], arrival_s=[0, 0.5, 1], delay_s=[0, 0.5, 0], outputs=[3, 1, 1])
    _, table = run(schedule, tmp_path, Served(clock))
    assert column(table, "arrival_s") == [0, 3.5, 1]
    assert column(table, "sent_s")[1] == pytest.approx(3.5, abs=0.06)  # heard within a nap


def test_a_turn_whose_predecessor_failed_is_not_sent_and_says_why(tmp_path: Path) -> None:
    result, table = run(make([-1, 0, 1, -1]), tmp_path, Served(Clock(), fails=[0]))
    assert table["status"].tolist() == ["failed", "not_sent", "not_sent", "done"]
    assert table["error"].tolist()[1:3] == [
        "the turn before it, r0, failed (connection reset)",
        "the turn before it, r1, was not sent",
    ]
    assert column(table, "arrival_s")[1:3] == column(table, "sent_s")[1:3] == [None, None]
    assert (result.sent, result.finished, result.refused, result.not_sent) == (2, 1, 0, 2)


def test_a_turn_whose_predecessor_was_refused_is_not_sent(tmp_path: Path) -> None:
    result, table = run(make([-1, 0, -1], inputs=[200, 3, 3]), tmp_path)
    assert table["status"].tolist() == ["refused", "not_sent", "done"]
    assert "was refused (too long: 201 tokens" in str(table["error"].iloc[1])
    assert (result.status, result.sent, result.refused, result.not_sent) == ("done", 1, 1, 1)


def test_in_a_closed_loop_a_turn_takes_the_next_free_place_before_new_conversations(tmp_path: Path) -> None:
    # One place. r0 ends at 1, its turn r3 is due at once and goes before r1 and r2.
    schedule = make([-1, -1, -1, 0], pattern="closed", concurrency=1)
    _, table = run(schedule, tmp_path)
    assert column(table, "sent_s") == [0, 2, 3, 1]
    # With a pause of 1.5 s the place goes to others meanwhile.
    paused = make([-1, -1, -1, 0], pattern="closed", concurrency=1, delay_s=[0, 0, 0, 1.5])
    (tmp_path / "paused").mkdir()
    _, table = run(paused, tmp_path / "paused")
    assert column(table, "sent_s") == [0, 1, 2, 3]


def test_offline_turns_still_wait_but_do_not_pause(tmp_path: Path) -> None:
    schedule = make([-1, 0, -1], arrival_s=[0, 9, 50], delay_s=[0, 9, 0], outputs=[2, 1, 1]).as_offline()
    _, table = run(schedule, tmp_path)
    assert column(table, "sent_s") == [0, 2, 0]


def test_a_free_output_goes_into_the_next_prompt_as_the_model_said_it(tmp_path: Path) -> None:
    # The schedule's second prompt is 3 + 4 tokens of context and 2 added ones; the model stops after one token, 100.
    schedule = make([-1, 0], outputs=[4, 1], inputs=[3, 9], context=[0, 7], free=True)
    engine = Stepped(Clock(), ends_early=[0])
    _, table = run(schedule, tmp_path, engine)
    assert engine.prompts[1] == [0, 1, 2, 100, 17, 18]
    assert column(table, "input_tokens") == [3, 6]


def test_a_forced_length_leaves_the_schedules_own_ids_so_that_all_models_get_the_same(tmp_path: Path) -> None:
    schedule = make([-1, 0], outputs=[4, 1], inputs=[3, 9], context=[0, 7])
    engine = Stepped(Clock())
    run(schedule, tmp_path, engine)
    assert engine.prompts[1] == list(range(10, 19))


def test_an_engine_without_ids_cannot_put_its_answers_into_prompts(tmp_path: Path) -> None:
    schedule = make([-1, 0, 1], outputs=[4, 1, 1], inputs=[3, 9, 3], context=[0, 7, 0], free=True)
    result, table = run(schedule, tmp_path, Served(Clock(), has_ids=False))
    assert table["status"].tolist() == ["done", "not_sent", "not_sent"]
    assert "does not tell the ids of its answers" in str(table["error"].iloc[1])
    assert result.not_sent == 2
    (tmp_path / "ids").mkdir()
    engine = Served(Clock())
    run(schedule, tmp_path / "ids", engine)
    assert engine.prompts[1] == [0, 1, 2, 100, 101, 102, 103, 17, 18]


def test_a_lane_in_lock_step_replays_turns_in_order() -> None:
    clock = Clock()
    lane = LocalLane(name="a", engine=Stepped(clock))  # type: ignore[arg-type]
    lane.begin(make([-1, 0, -1], outputs=[2, 1, 1]).as_offline(), Limits(max_seconds=99, clock=clock))
    turn = lane.take(9)
    assert [[s[0] for s in sequences] for sequences, _ in turn.held()] == [[0, 2], [0], [1]]
    assert turn.is_last


def test_a_schedule_with_turns_is_saved_hashed_and_cut_whole(tmp_path: Path) -> None:
    schedule = make([-1, -1, 0, 2], delay_s=[0, 0, 1, 2], context=[0, 0, 3, 4])
    schedule.save(tmp_path / "s.parquet")
    again = Schedule.load(tmp_path / "s.parquet")
    assert again.turns is not None
    assert again.turns.after.tolist() == [-1, -1, 0, 2]
    assert again.sha256() == schedule.sha256()
    assert schedule.turns is not None
    opened = replace(schedule, turns=replace(schedule.turns, is_closed=False))
    assert opened.sha256() == replace(schedule, turns=None).sha256() != schedule.sha256()
    few = first_requests(replace(schedule, output_tokens=np.array([1, 1, 90, 1])), 9, max_tokens=50)
    assert few.turns is not None
    assert few.turns.after.tolist() == [-1, -1, 0]  # r3 now waits for r0, and its prompt is the schedule's own
    assert few.turns.context_tokens.tolist() == [0, 0, 0]


def test_requests_of_a_conversation_are_never_in_flight_together_but_for_parallel_calls() -> None:
    after, size = np.array([-1, 0, 0, 1, -1]), np.array([5, 4, 3, 6, 2])
    assert most_at_once(size, after).tolist() == [9, 0, 0, 0, 2]  # 6 and 3, or 5


def test_tables_of_records_made_before_turns_are_read(tmp_path: Path) -> None:
    run(make([-1, 0]), tmp_path)
    import pyarrow.parquet as pq

    old = pq.read_table(tmp_path / "requests.parquet").drop_columns(
        ["session", "turn", "after", "delay_s", "reusable_tokens"]
    )
    pq.write_table(old, tmp_path / "requests.parquet")
    table = read_table(tmp_path, "requests")
    assert table["turn"].isna().all()
    assert len(table) == 2
