"""Conversations: who waits for whom in each format, when turns come, and what their prompts hold."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from moeprof.core.errors import TraceError, WorkloadError
from moeprof.core.trace import Schedule, Trace
from moeprof.core.turns import added_lengths, depths, kept_waits, roots, whole_lengths
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prompts, TraceSource, Traffic
from moeprof.sources.corpus import load_corpus
from moeprof.sources.formats import read_trace, write_trace
from moeprof.sources.schedule import build_schedule
from moeprof.sources.tokenizer import TextTokenizer, from_backend
from tests.helpers.shared_data import shared

Row = dict[str, Any]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "Hi"}


def trained(size: int, name: str) -> TextTokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    marks = ["<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    texts = [passage.load() for passages in load_corpus(Prompts(source="packaged")).values() for passage in passages]
    backend.train_from_iterator(texts, trainer)
    return from_backend(backend, name=name, sha256=name, chat_template=CHATML)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return trained(1000, "reference")


@pytest.fixture(scope="module")
def other() -> TextTokenizer:
    return trained(400, "other")


def write(folder: Path, *rows: Row, name: str = "trace.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def built(path: Path, tokenizer: TextTokenizer, *, outputs: Any = "forced", **options: Any) -> Schedule:
    arrivals, lengths = options.pop("arrivals", None), options.pop("lengths", LengthPair())
    number = options.pop("num_requests", None)
    traffic = Traffic(
        trace=TraceSource(path=str(path), **options), arrivals=arrivals, lengths=lengths, num_requests=number,
        prompts=Prompts(source="packaged"),
    )  # fmt: skip
    return build_schedule(traffic, tokenizer=tokenizer, seed=0, outputs=outputs, num_warmups=2).measured


def turns_of(schedule: Schedule) -> Any:
    assert schedule.turns is not None
    return schedule.turns


TWO = (
    {"session_id": "a", "timestamp": 0, "input_length": 40, "output_length": 10},
    {"session_id": "b", "timestamp": 2000, "input_length": 33, "output_length": 5},
    {"session_id": "a", "delay": 500, "input_length": 6, "output_length": 7},
    {"session_id": "a", "delay": 250, "input_length": 4, "output_length": 3},
)


# -- the forest --------------------------------------------------------------------------------------------------------


def test_a_forest_of_rows() -> None:
    after = np.array([-1, 0, 0, 1, -1])
    assert depths(after).tolist() == [1, 2, 2, 3, 1]
    assert roots(after).tolist() == [0, 0, 0, 0, 4]
    assert kept_waits(after, [0, 3, 4]).tolist() == [-1, 0, -1]  # its own predecessor went, the one before stays
    added, outputs = np.array([10, 2, 3, 4, 5]), np.array([1, 1, 1, 1, -1])
    whole = whole_lengths(added, outputs, after)
    assert whole.tolist() == [10, 13, 14, 18, 5]
    assert added_lengths(whole, outputs, after).tolist() == added.tolist()


# -- schedules ---------------------------------------------------------------------------------------------------------


def test_turns_of_additions_hold_the_prompt_and_the_answer_before(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    schedule = built(write(tmp_path, *TWO), tokenizer)
    turns = turns_of(schedule)
    # If answers took no time the turns of a would come at 0.5 and 0.75 s, before b.
    assert schedule.arrival_s.tolist() == [0.0, 0.5, 0.75, 2.0]
    assert (turns.after.tolist(), turns.is_closed) == ([-1, 0, 1, -1], True)
    assert turns.delay_s.tolist() == [0.0, 0.5, 0.25, 0.0]
    assert turns.gap_s.tolist() == [0.0] * 4
    assert schedule.input_tokens.tolist() == [40, 56, 67, 33]  # 40 + 10 + 6, 56 + 7 + 4
    assert turns.context_tokens.tolist() == [0, 50, 63, 0]
    assert schedule.output_ids is not None
    for row, before in ((1, 0), (2, 1)):
        context = [*schedule.input_ids[before].tolist(), *schedule.output_ids[before].tolist()]
        assert schedule.input_ids[row].tolist()[: len(context)] == context
    # Whole blocks of 16 of what was computed before: 49 of 50 tokens, 62 of 63.
    assert schedule.reusable_tokens is not None
    assert schedule.reusable_tokens.tolist() == [0, 48, 48, 0]
    note = next(note for note in schedule.notes if note.code == "sessions_closed")
    assert (note.count, "2 after the pause" in note.text) == (2, True)


def test_an_answer_that_the_model_chooses_cannot_be_reused_but_the_prompts_are_the_same(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    forced, chosen = (built(write(tmp_path, *TWO), tokenizer, outputs=name) for name in ("forced", "forced_length"))
    assert all(map(np.array_equal, forced.input_ids, chosen.input_ids))
    assert chosen.reusable_tokens is not None
    assert chosen.reusable_tokens.tolist() == [0, 32, 48, 0]  # 40 and 56 tokens of prompt alone
    free = built(write(tmp_path, *TWO), tokenizer, outputs="free")
    assert (free.own_answers, chosen.own_answers, forced.own_answers) == (True, False, False)
    assert any("the model's own answers" in note.text for note in free.notes)


def test_open_sessions_are_told_and_keep_the_files_times(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    schedule = built(write(tmp_path, *TWO), tokenizer, sessions="open")
    assert (schedule.waits, turns_of(schedule).is_closed) == (False, False)
    assert {note.code for note in schedule.notes} >= {"sessions_open", "turns_add_up"}
    assert turns_of(schedule).number.tolist() == [1, 2, 3, 1]
    closed = built(write(tmp_path, *TWO), tokenizer)
    assert all(map(np.array_equal, schedule.input_ids, closed.input_ids))
    assert schedule.sha256() != closed.sha256()


def test_stamps_alone_are_the_least_time_since_the_turn_before(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    length = {"input_length": 40, "output_length": 5, "session_id": "a"}
    path = write(tmp_path, length | {"timestamp": 1000}, length | {"timestamp": 4000})
    turns = turns_of(built(path, tokenizer))
    assert (turns.gap_s.tolist(), turns.delay_s.tolist()) == ([0.0, 3.0], [0.0, 0.0])
    assert turns_of(built(path, tokenizer, time_scale=0.5)).gap_s.tolist() == [0.0, 1.5]


def test_arrivals_of_the_workload_say_when_conversations_begin(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    schedule = built(write(tmp_path, *TWO), tokenizer, arrivals=Arrivals(pattern="constant", rate=0.5))
    assert schedule.arrival_s.tolist() == [0.0, 0.5, 0.75, 2.0]  # a at 0, b at 2; pauses stay
    closed = built(write(tmp_path, *TWO), tokenizer, arrivals=Arrivals(pattern="concurrency", concurrency=1))
    assert (closed.pattern, closed.arrival_s.tolist()) == ("closed", [0.0] * 4)
    assert sorted(turns_of(closed).delay_s.tolist()) == [0.0, 0.0, 0.25, 0.5]


def test_a_part_of_the_requests_is_a_beginning_of_conversations(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    assert turns_of(built(write(tmp_path, *TWO), tokenizer, num_requests=2)).after.tolist() == [-1, 0]
    # The second turn is over the limit, and so is the third, which holds it.
    assert built(write(tmp_path, *TWO), tokenizer, max_input_tokens=50).turns is None


def test_additions_grow_again_where_answers_are_cut_or_lengths_scaled(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    cut = built(write(tmp_path, *TWO), tokenizer, max_output_tokens=4, too_long="truncate")
    assert cut.input_tokens.tolist() == [40, 50, 58, 33]  # 40 + 4 + 6, 50 + 4 + 4
    assert turns_of(cut).context_tokens.tolist() == [0, 44, 54, 0]
    half = built(write(tmp_path, *TWO), tokenizer, length_scale=0.5)
    assert half.input_tokens.tolist() == [20, 28, 34, 17]  # 20 + 5 + 3, 28 + 4 + 2


def test_answers_drawn_by_the_workload_are_in_later_prompts(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    rows = [{key: value for key, value in row.items() if key != "output_length"} for row in TWO]
    lengths = LengthPair(output=Lengths(value=9))
    schedule = built(write(tmp_path, *rows), tokenizer, lengths=lengths)
    assert schedule.input_tokens.tolist() == [40, 55, 68, 33]  # 40 + 9 + 6, 55 + 9 + 4


def test_closed_without_sessions_is_refused(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    path = write(tmp_path, {"input_tokens": 5, "output_tokens": 5}, {"input_tokens": 5, "output_tokens": 5})
    assert built(path, tokenizer).turns is None
    with pytest.raises(TraceError, match=r"sessions: closed, but no request .* belongs to the session of another"):
        built(path, tokenizer, sessions="closed")
    with pytest.raises(WorkloadError, match="sessions: found 'half'; allowed: closed, open"):
        TraceSource(path="x", sessions="half")  # type: ignore[arg-type]


def test_texts_get_answers_of_other_text_where_the_file_has_none(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    turns = [{"text": "Tell me of a river."}, {"text": "And of the mill?", "delay": 1000}]
    path = write(tmp_path, {"session_id": "c", "turns": turns})
    schedule = built(path, tokenizer, lengths=LengthPair(output=Lengths(value=12)))
    first, second = schedule.input_ids
    assert second[: len(first)].tolist() == first.tolist()
    assert turns_of(schedule).context_tokens.tolist() == [0, len(first) + 12]
    assert tokenizer.decode([second[len(first) + 12 :]])[0] == "\n\nAnd of the mill?"
    assert {note.code for note in schedule.notes} >= {"answers_made_up", "no_output_text"}
    assert schedule.outputs == "forced_length"


def test_another_tokenizers_prompts_are_chained_as_well(
    tmp_path: Path, tokenizer: TextTokenizer, other: TextTokenizer
) -> None:
    traffic = Traffic(trace=TraceSource(path=str(write(tmp_path, *TWO))), prompts=Prompts(source="packaged"))
    schedule = build_schedule(traffic, tokenizer=tokenizer, seed=0, num_warmups=2).for_tokenizer(other)
    measured = schedule.measured
    assert measured.output_ids is not None
    for row, before in ((1, 0), (2, 1)):
        context = [*measured.input_ids[before].tolist(), *measured.output_ids[before].tolist()]
        assert measured.input_ids[row].tolist()[: len(context)] == context
        assert turns_of(measured).context_tokens[row] == len(context)


# -- formats -----------------------------------------------------------------------------------------------------------


def by_session(trace: Trace) -> dict[str, list[int]]:
    assert trace.session is not None
    return {name: [i for i, one in enumerate(trace.session) if one == name] for name in dict.fromkeys(trace.session)}


def test_several_chats_of_bailian_may_have_one_parent(tmp_path: Path) -> None:
    def chat(number: int, parent: int, at_s: int) -> Row:
        return {
            "chat_id": number, "parent_chat_id": parent, "timestamp": at_s, "input_length": 20, "output_length": 5,
            "type": "text", "turn": 1, "hash_ids": [number],
        }  # fmt: skip

    trace = read_trace(write(tmp_path, chat(1, -1, 0), chat(2, 1, 3), chat(3, 1, 4), chat(4, 3, 9), chat(5, 99, 9)))
    assert (trace.source, trace.waits.tolist(), trace.stated) == ("bailian", [-1, 0, 0, 2, -1], "whole")


def test_calls_of_weka_that_overlapped_wait_for_the_same_one(tmp_path: Path) -> None:
    def call(at_s: float, api_s: float | None = None, **more: Any) -> Row:
        return {"t": at_s, "in": 100, "out": 5, "hash_ids": []} | ({} if api_s is None else {"api_time": api_s}) | more

    agents = [
        {"type": "subagent", "t": 11.0, "agent_id": name, "requests": [call(0.0, length), call(length + 1, 2.0)]}
        for name, length in (("x", 3.0), ("y", 8.0))
    ]
    # 0: 0-4; 1 and 2 begin at 5 and 6 and overlap; 3 begins at 9 after both; agents from 11; the last one at 30.
    calls = [call(0.0, 4.0), call(5.0, 3.5), call(6.0, 1.0), call(9.0, 1.0), *agents, call(30.0, 1.0)]
    trace = read_trace(write(tmp_path, {"id": "a", "block_size": 64, "requests": calls}))
    # In order of time: 0, 5, 6, 9, x at 11 and 15, y at 11 and 20, 30.
    assert trace.arrival_s.tolist() == [0, 5, 6, 9, 11, 11, 15, 20, 30]
    assert trace.session == ("a", "a", "a", "a", "a/x", "a/y", "a/x", "a/y", "a")
    assert trace.waits.tolist() == [-1, 0, 0, 1, 3, 3, 4, 5, 7]
    assert trace.delay_s is not None
    assert [None if math.isnan(one) else round(one, 6) for one in trace.delay_s] == [None, 1, 2, 0.5, 1, 1, 1, 1, 8]


def test_aiperf_trees_fork_what_was_said_and_spawn_agents_that_know_nothing(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    def turn(text: str, **more: Any) -> Row:
        return {"messages": [{"role": "user", "content": text}], "max_tokens": 6} | more

    rows = (
        {"session_id": "root", "turns": [turn("Plan it.", spawns=["s"]), turn("Go on.", delay=500, forks=["f", "g"])]},
        {"session_id": "s", "turns": [turn("Search."), turn("Again.", delay=250)]},
        {"session_id": "f", "turns": [turn("One.")]},
        {"session_id": "g", "turns": [turn("Two.")]},
    )
    trace = read_trace(write(tmp_path, *rows))
    assert (trace.source, trace.stated) == ("aiperf", "added")
    found = by_session(trace)
    (plan, go), (search, again), (one,), (two,) = (found[name] for name in ("root", "s", "f", "g"))
    waits, context = trace.waits.tolist(), trace.context_of.tolist()
    assert [waits[row] for row in (plan, search, again, go, one, two)] == [-1, plan, search, again, go, go]
    assert [context[row] for row in (plan, search, again, go, one, two)] == [-1, -1, search, plan, go, go]
    assert trace.delay_s is not None
    assert (trace.delay_s[again], trace.delay_s[go]) == (0.25, 0.5)
    schedule = built(tmp_path / "trace.jsonl", tokenizer)
    name = {text: row for row, text in enumerate(schedule.session)}
    prompts = tokenizer.decode(schedule.input_ids)
    assert "Plan it." in prompts[name["f"]]
    assert "Go on." in prompts[name["g"]]
    assert "Plan it." not in prompts[name["s"]]


def test_aiperf_trees_refuse_circles_and_children_that_are_not_there(tmp_path: Path) -> None:
    turn = {"messages": [USER], "max_tokens": 2}
    with pytest.raises(TraceError, match=r"no session of the file has this name"):
        read_trace(write(tmp_path, {"session_id": "a", "turns": [turn | {"forks": ["nobody"]}]}))
    circle = [
        {"session_id": "a", "turns": [turn | {"forks": ["b"]}]},
        {"session_id": "b", "turns": [turn | {"forks": ["a"]}]},
    ]
    with pytest.raises(TraceError, match="started by none that is sent"):
        read_trace(write(tmp_path, *circle))
    orchestrated = [{"session_id": "o", "orchestrator": True, "spawns": ["a"]}, {"session_id": "a", "turns": [turn]}]
    assert read_trace(write(tmp_path, *orchestrated)).session == ("a",)


def test_our_own_rows_say_who_waits_for_whom(tmp_path: Path) -> None:
    row = {"input_tokens": 10, "output_tokens": 2}
    rows = [row | {"id": "p"}, row | {"id": "q", "after": "p", "delay_s": 1.5}, row | {"after": "p"}]
    trace = read_trace(write(tmp_path, *rows))
    assert trace.waits.tolist() == [-1, 0, 0]
    with pytest.raises(TraceError, match=r"2.*after is 'z'; no row above has this id"):
        read_trace(write(tmp_path, row, row | {"after": "z"}))
    with pytest.raises(TraceError, match="stated is 'half'; whole or added is allowed"):
        read_trace(write(tmp_path, row | {"stated": "half", "session": "a"}))


@pytest.mark.parametrize("name", ["additions", "texts", "tree"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    turn = {"messages": [USER], "max_tokens": 2}
    rows: dict[str, tuple[Row, ...]] = {
        "additions": TWO,
        "texts": ({"session_id": "c", "turns": [{"text": "One"}, {"text": "Two", "delay": 5}]},),
        "tree": ({"session_id": "a", "turns": [turn | {"spawns": ["b"]}, turn]}, {"session_id": "b", "turns": [turn]}),
    }
    trace = read_trace(write(tmp_path, *rows[name]))
    write_trace(trace, tmp_path / "again.jsonl")
    again = read_trace(tmp_path / "again.jsonl", "jsonl")
    for column in ("session", "stated", "prompt_text", "messages", "prefix_blocks", "prefix_block_tokens"):
        assert getattr(again, column) == getattr(trace, column)
    for column in ("input_tokens", "output_tokens", "arrival_s", "waits", "context_of"):
        assert getattr(again, column).tolist() == getattr(trace, column).tolist()
    assert trace.delay_s is not None
    assert again.delay_s is not None
    assert np.array_equal(again.delay_s, trace.delay_s, equal_nan=True)


# -- the cases ---------------------------------------------------------------------------------------------------------


def test_cases_with_sessions(tokenizer: TextTokenizer) -> None:
    day = read_trace(shared("cases/aiperf-multiturn-delay/inference_day_head.jsonl"))
    assert day.stated == "added"
    assert depths(day.waits).tolist().count(1) == 2
    first = by_session(day)["sess-ff14c6c4aab3"]
    assert day.input_tokens[first].tolist()[:3] == [44083, 44083 + 987 + 578, 44083 + 987 + 578 + 393 + 1816]
    assert day.delay_s is not None
    assert day.delay_s[first].tolist()[1:3] == pytest.approx([0.614, 6.5736])
    stamps = turns_of(built(shared("cases/session-dropped/all_stamps.jsonl"), tokenizer))
    assert (stamps.after.tolist(), stamps.gap_s.tolist()) == ([-1, -1, 0], [0.0, 0.0, 0.5])
    delays = turns_of(built(shared("cases/session-dropped/with_delay.jsonl"), tokenizer))
    assert (delays.after.tolist(), delays.delay_s.tolist()) == ([-1, -1, 0], [0.0, 0.0, 0.5])
