"""The loop on a fake clock: nobody sleeps, a step takes exactly as long as the test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moeprof.capture.engines.base import (
    EngineFacts,
    SequenceInStep,
    ServedFacts,
    Step,
    SteppedEngine,
    TokenEvent,
    TokenEvents,
)
from moeprof.capture.recorders.progress import ProgressRecorder
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import ReplayResult, replay
from moeprof.core.record.tables import read_table
from moeprof.core.trace import Pattern, Request, Schedule, first_requests

FACTS = EngineFacts(
    kind="fake", batching="continuous", attention="none", experts=None, dtype="float32", device="cpu",
    kv_tokens=1000, kv_bytes=None, max_batch_tokens=1000, max_sequence_tokens=100,
)  # fmt: skip


class FakeClock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now_s, self.naps = 1000.0, 0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.naps += 1
        self.now_s += max(seconds, 1e-6)  # no real sleep is shorter


@dataclass
class FakeEngine(SteppedEngine):
    """All submitted requests are in every step; each gives one token per step of ``step_s``."""

    clock: FakeClock
    step_s: float = 1.0
    facts: EngineFacts = FACTS
    running: dict[int, list[int]] = field(default_factory=dict)  # request -> [tokens made, tokens asked, prompt]
    submitted: list[int] = field(default_factory=list)

    def submit(self, request: Request) -> None:
        assert len(request.input_ids) + request.output_tokens <= self.facts.max_sequence_tokens
        self.running[request.index] = [0, request.output_tokens, len(request.input_ids)]
        self.submitted.append(request.index)

    def step(self) -> Step | None:
        if not self.running:
            return None
        start = self.clock.now_s
        self.clock.now_s += self.step_s
        sequences = []
        for index, state in list(self.running.items()):
            made, asked, prompt = state
            state[0] += 1
            sequences.append(
                SequenceInStep(
                    request=index,
                    query_tokens=1 if made else prompt,
                    past_tokens=prompt + made - 1 if made else 0,
                    is_prefill=not made,
                    token=7,
                    finished=made + 1 == asked,
                )
            )
            if made + 1 == asked:
                del self.running[index]
        return Step(start_s=start, end_s=self.clock.now_s, device_s=None, sequences=tuple(sequences))

    def reset(self) -> None:
        self.running.clear()

    def close(self) -> None:
        self.running.clear()


@dataclass
class Watcher:
    """Keeps what it is told; times are seconds from the start of the pass."""

    sent_s: list[float] = field(default_factory=list)
    slack_s: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    in_step: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    ended_s: float | None = None

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        self.origin_s = origin_s

    def on_send(self, request: Request, sent_s: float, slack_s: float, refused: str | None) -> None:
        if refused is not None:
            self.refused.append(refused)
            return
        self.sent_s.append(sent_s - self.origin_s)
        self.slack_s.append(slack_s)

    def on_step(self, step: Step, num_waiting: int) -> None:
        self.in_step.append(len(step.sequences))
        self.waiting.append(num_waiting)

    def on_end(self, end_s: float) -> None:
        self.ended_s = end_s - self.origin_s


def make_schedule(
    pattern: Pattern = "open",
    *,
    arrival_s: Sequence[float] = (),
    outputs: Sequence[int] = (),
    inputs: Sequence[int] = (),
    concurrency: int | None = None,
) -> Schedule:
    num = max(len(arrival_s), len(outputs), len(inputs))
    return Schedule(
        pattern=pattern,
        concurrency=concurrency,
        request_id=tuple(f"r{i}" for i in range(num)),
        arrival_s=np.array(arrival_s or [0.0] * num, dtype=float),
        input_ids=tuple(np.arange(n, dtype=np.int32) for n in (inputs or [4] * num)),
        output_tokens=np.array(outputs or [2] * num, dtype=np.int64),
        output_ids=None,
        request_class=("all",) * num,
        session=("",) * num,
        prefix_blocks=((),) * num,
        outputs="forced_length",
        num_characters=np.full(num, -1, dtype=np.int64),
    )


def run(schedule: Schedule, *, step_s: float = 1.0, **options: object) -> tuple[ReplayResult, Watcher, FakeClock]:
    clock, watcher = FakeClock(), Watcher()
    engine = FakeEngine(clock, step_s)
    result = replay(engine, schedule, [watcher], clock=clock, sleep=clock.sleep, **options)  # type: ignore[arg-type]
    return result, watcher, clock


# -- open loop ---------------------------------------------------------------------------------------------------------


def test_requests_are_sent_at_their_time_when_the_engine_is_idle() -> None:
    result, watcher, _ = run(make_schedule(arrival_s=[0.5, 10, 20], outputs=[2, 2, 2]))
    assert watcher.sent_s == pytest.approx([0.5, 10, 20], abs=1e-5)
    assert watcher.slack_s == pytest.approx([0, 0, 0], abs=1e-5)
    assert (result.status, result.sent, result.finished, result.refused) == ("done", 3, 3, 0)
    assert watcher.ended_s == pytest.approx(22, abs=1e-5)


def test_poisson_arrivals_are_sent_at_their_times_to_the_nap() -> None:
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(0.25, size=200))
    _, watcher, _ = run(make_schedule(arrival_s=arrival_s.tolist(), outputs=[1] * 200), step_s=1e-6)
    assert np.abs(np.array(watcher.sent_s) - arrival_s).max() < 1e-4


def test_a_request_that_comes_during_a_step_waits_for_its_end_and_that_is_not_the_replayers_lag() -> None:
    _, watcher, _ = run(make_schedule(arrival_s=[0, 0.25], outputs=[2, 1]))
    assert watcher.sent_s == pytest.approx([0, 1])
    assert watcher.slack_s == pytest.approx([0, 0])
    assert watcher.in_step == [1, 2]


def test_latency_counts_from_arrival_not_from_sending(tmp_path: Path) -> None:
    clock = FakeClock()
    recorders = [RequestRecorder(tmp_path), StepRecorder(tmp_path)]
    schedule = make_schedule(arrival_s=[0, 0.25], outputs=[2, 3], inputs=[5, 6])
    replay(FakeEngine(clock), schedule, recorders, clock=clock, sleep=clock.sleep)
    requests = read_table(tmp_path, "requests").set_index("request")
    assert requests.loc[1, ["arrival_s", "sent_s", "first_scheduled_s", "first_token_s"]].tolist() == [0.25, 1, 1, 2]
    assert requests.loc[1, "first_token_s"] - requests.loc[1, "arrival_s"] == 1.75
    assert list(requests.loc[1, "token_times_s"]) == [2, 3, 4]
    assert requests.loc[0, ["input_tokens", "output_tokens", "cached_tokens", "recomputed_tokens"]].tolist() == [
        5, 2, 0, 0,
    ]  # fmt: skip
    assert set(requests["status"]) == {"done"}
    steps = read_table(tmp_path, "steps")
    assert list(steps["phase"]) == ["prefill", "mixed", "decode", "decode"]
    assert list(steps["new_tokens"]) == [1, 2, 1, 1]
    assert list(steps["start_s"]) == [0, 1, 2, 3]


# -- closed loop and offline -------------------------------------------------------------------------------------------


def test_a_closed_loop_keeps_exactly_its_concurrency_in_flight() -> None:
    result, watcher, _ = run(make_schedule("closed", outputs=[3, 1, 2, 5, 1, 1, 4, 2, 2, 3], concurrency=3))
    assert result.finished == 10
    assert max(watcher.in_step) == 3
    last_sent = max(watcher.sent_s)
    assert set(watcher.in_step[: int(last_sent) + 1]) == {3}  # until none is left to send
    assert watcher.in_step[-1] < 3


def test_a_closed_loop_request_arrives_when_it_is_sent(tmp_path: Path) -> None:
    clock = FakeClock()
    schedule = make_schedule("closed", outputs=[2, 2, 2], concurrency=1)
    replay(FakeEngine(clock), schedule, [RequestRecorder(tmp_path)], clock=clock, sleep=clock.sleep)
    requests = read_table(tmp_path, "requests").sort_values("request")
    assert list(requests["arrival_s"]) == list(requests["sent_s"]) == [0, 2, 4]
    assert list(requests["first_token_s"] - requests["arrival_s"]) == [1, 1, 1]


def test_offline_sends_everything_at_once_and_nobody_naps() -> None:
    schedule = make_schedule(arrival_s=[0, 50, 100], outputs=[2, 2, 2]).as_offline()
    _, watcher, clock = run(schedule)
    assert watcher.sent_s == [0, 0, 0]
    assert watcher.in_step == [3, 3]
    assert clock.naps == 0


# -- what can go wrong -------------------------------------------------------------------------------------------------


def test_a_request_that_can_never_fit_is_refused_and_counted_and_the_others_run() -> None:
    result, watcher, _ = run(make_schedule("offline", inputs=[4, 99, 4], outputs=[2, 2, 2]))
    assert (result.sent, result.refused, result.finished) == (2, 1, 2)
    assert watcher.refused == ["too long: 101 tokens of prompt and output, the engine holds 100"]


def test_the_longest_request_that_fits_is_run() -> None:
    result, _, _ = run(make_schedule("offline", inputs=[98], outputs=[2]))
    assert (result.refused, result.finished) == (0, 1)


def test_an_empty_prompt_is_refused() -> None:
    result, watcher, _ = run(make_schedule("offline", inputs=[0, 4], outputs=[2, 2]))
    assert (result.refused, watcher.refused) == (1, ["empty prompt"])


def test_refusals_in_a_closed_loop_leave_no_place_empty() -> None:
    result, watcher, _ = run(make_schedule("closed", inputs=[99, 99, 4, 99, 4], outputs=[2] * 5, concurrency=1))
    assert (result.sent, result.refused, result.finished) == (2, 3, 2)
    assert set(watcher.in_step) == {1}


def test_a_schedule_of_refusals_only_ends() -> None:
    result, watcher, _ = run(make_schedule(arrival_s=[0, 1], inputs=[99, 99], outputs=[2, 2]))
    assert (result.status, result.sent, result.refused) == ("done", 0, 2)
    assert watcher.in_step == []


def test_refused_requests_are_rows_with_their_reason(tmp_path: Path) -> None:
    clock = FakeClock()
    schedule = make_schedule("offline", inputs=[99, 4], outputs=[2, 2])
    replay(FakeEngine(clock), schedule, [RequestRecorder(tmp_path)], clock=clock, sleep=clock.sleep)
    requests = read_table(tmp_path, "requests").sort_values("request")
    assert list(requests["status"]) == ["refused", "done"]
    assert requests["error"].iloc[0].startswith("too long: 101 tokens")
    assert requests["first_token_s"].isna().tolist() == [True, False]


def test_a_deadline_cuts_after_the_step_that_crosses_it() -> None:
    result, watcher, _ = run(make_schedule("offline", outputs=[10, 10]), deadline_s=1003.5)
    assert (result.status, result.finished) == ("cut", 0)
    assert watcher.in_step == [2, 2, 2, 2]
    assert watcher.ended_s == 4


def test_a_deadline_is_kept_while_waiting_for_an_arrival() -> None:
    result, watcher, _ = run(make_schedule(arrival_s=[60], outputs=[1]), deadline_s=1002)
    assert (result.status, result.sent) == ("cut", 0)
    assert watcher.ended_s == pytest.approx(2, abs=0.06)


def test_a_stop_ends_the_pass_after_its_current_step_and_keeps_what_began(tmp_path: Path) -> None:
    clock, answers = FakeClock(), iter([False, False, True])
    schedule = make_schedule("offline", outputs=[2, 10])
    result = replay(
        FakeEngine(clock),
        schedule,
        [RequestRecorder(tmp_path)],
        should_stop=lambda: next(answers),
        clock=clock,
        sleep=clock.sleep,
    )
    assert (result.status, result.finished) == ("stopped", 1)
    requests = read_table(tmp_path, "requests").sort_values("request")
    assert list(requests["status"]) == ["done", "unfinished"]
    assert list(requests["output_tokens"]) == [2, 3]


def test_an_empty_schedule_ends_at_once() -> None:
    result, watcher, _ = run(first_requests(make_schedule("offline", outputs=[1]), 0))
    assert (result.status, result.sent, watcher.in_step) == ("done", 0, [])


def test_the_first_requests_that_fit_leave_out_those_that_would_be_refused() -> None:
    schedule = make_schedule("offline", outputs=[1, 500, 2, 3])
    assert first_requests(schedule, 2, max_tokens=100).output_tokens.tolist() == [1, 2]
    assert first_requests(schedule, 2).output_tokens.tolist() == [1, 500]


# -- engines that step themselves --------------------------------------------------------------------------------------


@dataclass
class Answering:
    """Answers by itself: the first token of a request ``first_s`` after it was sent, each next one ``each_s`` later."""

    clock: FakeClock
    first_s: float = 0.5
    each_s: float = 0.25
    tokens_per_event: int = 1
    failing: dict[int, str] = field(default_factory=dict)
    facts: ServedFacts = field(default_factory=lambda: ServedFacts(kind="fake", max_sequence_tokens=100))
    due: list[TokenEvent] = field(default_factory=list)

    def submit(self, request: Request) -> None:
        now, size = self.clock.now_s, self.tokens_per_event
        if request.index in self.failing:
            error = self.failing[request.index]
            self.due.append(TokenEvent(request=request.index, at_s=now + self.first_s, finished=True, error=error))
            return
        for number in range(0, request.output_tokens, size):
            self.due.append(
                TokenEvent(
                    request=request.index,
                    at_s=now + self.first_s + number * self.each_s,
                    num_tokens=min(size, request.output_tokens - number),
                    finished=number + size >= request.output_tokens,
                )
            )

    def poll(self, wait_s: float) -> TokenEvents:
        self.due.sort(key=lambda event: event.at_s)
        if self.due and self.due[0].at_s <= self.clock.now_s + wait_s:
            self.clock.now_s = max(self.clock.now_s, self.due[0].at_s)
        else:
            self.clock.now_s += max(wait_s, 1e-6)
        return self.arrived()

    def arrived(self) -> TokenEvents:
        events = tuple(event for event in self.due if event.at_s <= self.clock.now_s)
        self.due = [event for event in self.due if event.at_s > self.clock.now_s]
        return TokenEvents(events=events)

    def drain(self) -> list[TokenEvents]:
        return [self.arrived()]

    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        return 0

    def reset(self) -> None:
        self.due.clear()

    def close(self) -> None:
        self.due.clear()


def serve(schedule: Schedule, folder: Path, **more: object) -> tuple[ReplayResult, pd.DataFrame]:
    """Result, and table ``requests`` by request."""
    clock = FakeClock()
    engine = Answering(clock, **more)  # type: ignore[arg-type]
    recorders = [RequestRecorder(folder), StepRecorder(folder), ProgressRecorder([].append, "round-0", None, clock)]
    result = replay(engine, schedule, recorders, clock=clock, sleep=clock.sleep)
    assert read_table(folder, "steps").empty
    return result, read_table(folder, "requests").set_index("request").sort_index()


def test_tokens_of_an_engine_that_steps_itself_have_the_times_at_which_they_came(tmp_path: Path) -> None:
    result, requests = serve(make_schedule(arrival_s=[0, 0.375], outputs=[3, 2]), tmp_path)
    assert (result.status, result.sent, result.finished) == ("done", 2, 2)
    assert list(requests.loc[0, "token_times_s"]) == [0.5, 0.75, 1.0]
    assert requests.loc[1, "token_times_s"] == pytest.approx([0.875, 1.125], abs=1e-5)
    assert list(requests["output_tokens"]) == [3, 2]
    unknown = ["first_scheduled_s", "cached_tokens", "recomputed_tokens", "num_preemptions"]
    assert requests[unknown].isna().all(axis=None)


def test_arrivals_are_on_time_while_an_engine_that_steps_itself_is_busy(tmp_path: Path) -> None:
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(0.1, size=50))
    _, requests = serve(make_schedule(arrival_s=arrival_s.tolist(), outputs=[20] * 50), tmp_path)
    assert np.abs(requests["sent_s"].to_numpy() - arrival_s).max() < 1e-4
    assert requests["send_slack_s"].abs().max() < 1e-4


def test_a_closed_loop_over_an_engine_that_steps_itself_sends_when_a_request_ends(tmp_path: Path) -> None:
    _, requests = serve(make_schedule("closed", outputs=[1, 1, 1], concurrency=1), tmp_path)
    assert list(requests["arrival_s"]) == list(requests["sent_s"]) == [0, 0.5, 1.0]
    assert list(requests["first_token_s"] - requests["arrival_s"]) == [0.5] * 3
    assert list(requests["send_slack_s"]) == [0, 0, 0]


def test_tokens_that_come_in_one_event_have_its_time(tmp_path: Path) -> None:
    _, requests = serve(make_schedule("offline", outputs=[5]), tmp_path, tokens_per_event=2)
    assert list(requests.loc[0, "token_times_s"]) == [0.5, 0.5, 1.0, 1.0, 1.5]


def test_a_request_that_fails_frees_its_place_and_stays_in_the_record(tmp_path: Path) -> None:
    schedule = make_schedule("closed", outputs=[2, 2, 2], concurrency=1)
    result, requests = serve(schedule, tmp_path, failing={1: "HTTP 429"})
    assert (result.sent, result.finished) == (3, 2)
    assert list(requests["status"]) == ["done", "failed", "done"]
    assert requests.loc[1, "error"] == "HTTP 429"
    assert requests.loc[1, "output_tokens"] == 0


def test_a_deadline_keeps_what_has_arrived(tmp_path: Path) -> None:
    clock = FakeClock()
    recorders = [RequestRecorder(tmp_path)]
    schedule = make_schedule("offline", outputs=[10])
    result = replay(Answering(clock), schedule, recorders, clock=clock, sleep=clock.sleep, deadline_s=1001.1)
    requests = read_table(tmp_path, "requests")
    assert (result.status, result.finished) == ("cut", 0)
    assert list(requests["status"]) == ["unfinished"]
    assert list(requests["token_times_s"].iloc[0]) == [0.5, 0.75, 1.0]


def test_what_the_model_itself_would_have_chosen_is_counted_where_every_token_tells(tmp_path: Path) -> None:
    schedule = replace(
        make_schedule("offline", outputs=[2, 2]), output_ids=(np.array([7, 8]), np.array([7, 8])), outputs="forced"
    )
    recorder = RequestRecorder(tmp_path)
    recorder.on_start(schedule, 0.0)
    for request in schedule.requests():
        recorder.on_send(request, 0.0, 0.0, None)
    told = (
        TokenEvent(request=0, at_s=1.0, num_tokens=1, chosen=(7,)),
        TokenEvent(request=1, at_s=1.0, num_tokens=2, finished=True),
        TokenEvent(request=0, at_s=2.0, num_tokens=1, chosen=(9,), cached_tokens=3, finished=True),
    )
    recorder.on_tokens(TokenEvents(events=told))
    recorder.on_end(3.0)
    requests = read_table(tmp_path, "requests").set_index("request").sort_index()
    assert requests["agreed_tokens"].tolist() == [1, pd.NA]
    assert requests["cached_tokens"].tolist() == [3, pd.NA]
