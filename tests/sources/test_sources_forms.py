"""What is written in another tool's form reads back the same, or the difference is named and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.sources.formats import read_trace
from moeprof.sources.formats.file import Reading
from moeprof.sources.formats.forms import FIELDS, LINES, Form, losses, write_form
from tests.helpers.shared_data import shared

READERS = {"moeprof": "jsonl"}


def lengths(**more: Any) -> Trace:
    """Four requests of lengths alone; times that are no whole milliseconds."""
    return Trace(
        source="made",
        arrival_s=np.array([0.0, 0.1234567, 1.5, 7200.000001]),
        input_tokens=np.array([700, 1300, 40, 1400]),
        output_tokens=np.array([5, 6, 7, 8]),
        **more,
    )


BLOCKS = {"prefix_blocks": ((1, 2), (1, 2, 3), (9,), (1, 2, 3)), "prefix_block_tokens": 512}
TURNS = {"session": ("a", "a", "b", "a"), "delay_s": np.array([np.nan, 0.118, np.nan, 3.5])}
CHATS = tuple((("system", "Be brief."), ("user", text)) for text in ("One", "Zwei €", "3", "Four"))
UNKNOWN = np.full(4, -1)
TEXTS = ("One", "One\n\nTwo", "Drei", "One\n\nTwo\n\nThree")


def written(trace: Trace, folder: Path, form: Form, *, allow_loss: bool = False) -> tuple[Trace, dict[str, int]]:
    path = folder / f"{form}.jsonl"
    lost = write_form(trace, path, form, force=False, allow_loss=allow_loss)
    how = Reading(timestamp_unit="ms") if form in ("mooncake", "aiperf") else Reading()
    return read_trace(path, READERS.get(form, form), how), lost


def same(before: Trace, after: Trace, *fields: str) -> None:
    for name in fields:
        left, right = getattr(before, name), getattr(after, name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=name)
        else:
            assert left == right, name


NUMBERS = ("arrival_s", "input_tokens", "output_tokens")


@pytest.mark.parametrize("form", ["moeprof", "mooncake", "aiperf"])
def test_lengths_times_and_prefix_ids_come_back_to_the_last_digit(tmp_path: Path, form: Form) -> None:
    trace = lengths(**BLOCKS)
    again, lost = written(trace, tmp_path, form)
    assert lost == {}
    same(trace, again, *NUMBERS, "prefix_blocks", "prefix_block_tokens")


@pytest.mark.parametrize("form", ["moeprof", "aiperf"])
def test_sessions_and_delays_come_back(tmp_path: Path, form: Form) -> None:
    trace = lengths(**BLOCKS, **TURNS)
    again, lost = written(trace, tmp_path, form)
    assert lost == {}
    same(trace, again, *NUMBERS, "session", "delay_s", "prefix_blocks")


@pytest.mark.parametrize("form", ["moeprof", "aiperf", "evalscope"])
def test_chats_and_answers_come_back(tmp_path: Path, form: Form) -> None:
    trace = replace(lengths(messages=CHATS, output_text=("a", "b", "ç", "d")), input_tokens=UNKNOWN)
    again, lost = written(trace, tmp_path, form)
    assert lost == {}
    same(trace, again, "arrival_s", "output_tokens", "messages", "output_text")


def test_whole_prompts_of_turns_come_back(tmp_path: Path) -> None:
    trace = replace(lengths(prompt_text=TEXTS, **TURNS), input_tokens=UNKNOWN)
    again, lost = written(trace, tmp_path, "moeprof")
    assert lost == {}
    same(trace, again, "arrival_s", "output_tokens", "prompt_text", "session", "delay_s")


@pytest.mark.parametrize("form", ["moeprof", "aiperf"])
def test_what_turns_add_comes_back(tmp_path: Path, form: Form) -> None:
    waits = lengths(**TURNS).waits.tolist()
    added = tuple(f"\n\nand {i}" if before >= 0 else f"first {i}" for i, before in enumerate(waits))
    trace = replace(lengths(prompt_text=added, **TURNS), input_tokens=UNKNOWN, stated="added")
    again, lost = written(trace, tmp_path, form)
    assert lost == {}
    same(trace, again, "arrival_s", "output_tokens", "prompt_text", "session", "delay_s", "waits", "stated")


def test_aiperf_does_not_hold_whole_prompts_of_later_turns(tmp_path: Path) -> None:
    trace = replace(lengths(prompt_text=TEXTS, **TURNS), input_tokens=UNKNOWN)
    with pytest.raises(TraceError, match="the aiperf form does not hold prompts' text"):
        written(trace, tmp_path, "aiperf")


def test_plain_prompts_come_back_from_evalscope(tmp_path: Path) -> None:
    trace = replace(lengths(prompt_text=TEXTS), input_tokens=UNKNOWN)
    again, lost = written(trace, tmp_path, "evalscope")
    assert lost == {}
    same(trace, again, "arrival_s", "output_tokens", "prompt_text")


def test_our_own_form_holds_everything_at_once(tmp_path: Path) -> None:
    """Lengths that a log states beside its texts, and rows of lengths among texts, too."""
    more = {"request_class": ("x", "y", "x", "y"), "output_text": (None, "b", None, "d")}
    trace = lengths(prompt_text=("One", "", "Drei", "4"), **more, **BLOCKS, **TURNS)
    again, lost = written(trace, tmp_path, "moeprof")
    assert lost == {}
    same(trace, again, *FIELDS, "prefix_block_tokens")


@pytest.mark.parametrize(
    ("form", "columns", "lost"),
    [
        ("mooncake", TURNS, {"session": 4, "delay_s": 2}),
        ("mooncake", {"request_class": ("x",) * 4}, {"request_class": 4}),
        ("aiperf", {"request_class": ("x",) * 4}, {"request_class": 4}),
        ("mooncake", {"prompt_text": TEXTS}, {"prompt_text": 4}),
        ("evalscope", {"messages": CHATS} | TURNS, {"session": 4, "delay_s": 2, "input_tokens": 4}),
    ],
)
def test_what_a_form_does_not_hold_is_refused_by_name_and_counted(
    tmp_path: Path, form: Form, columns: dict[str, Any], lost: dict[str, int]
) -> None:
    trace = lengths(**columns)
    with pytest.raises(TraceError) as caught:
        written(trace, tmp_path, form)
    assert list(tmp_path.iterdir()) == []
    for name, number in lost.items():
        assert f"{FIELDS[name]} ({number})" in str(caught.value)
    again, said = written(trace, tmp_path, form, allow_loss=True)
    assert said == lost
    assert len(again) == 4


def test_a_form_of_lengths_or_of_texts_refuses_the_other_kind(tmp_path: Path) -> None:
    texts = replace(lengths(prompt_text=TEXTS), input_tokens=UNKNOWN)
    for form, trace, said in (
        ("mooncake", texts, "holds lengths; this trace has requests whose length is not known"),
        ("evalscope", lengths(), "holds requests with their text; this trace has lengths alone"),
    ):
        with pytest.raises(TraceError, match=said):
            write_form(trace, tmp_path / "out", form, force=False, allow_loss=True)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_difference_is_counted_by_request() -> None:
    trace = lengths(**BLOCKS)
    moved = replace(trace, arrival_s=trace.arrival_s + np.array([0, 0, 0.001, 0]), prefix_block_tokens=16)
    assert losses(trace, trace) == {}
    assert losses(trace, moved) == {"arrival_s": 1, "prefix_blocks": 4}
    assert losses(trace, trace.select(np.arange(3))) == {"requests": 1}


def test_every_form_has_its_lines() -> None:
    assert set(LINES) == set(Form.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("traces/AzureLLMInferenceTrace_code.csv", "mooncake"),
        ("traces/AzureLLMInferenceTrace_code.csv", "aiperf"),
        ("cases/aiperf-multiturn-delay/inference_day_head.jsonl", "aiperf"),
        ("cases/gateway-logs/litellm_standard_logging.jsonl", "moeprof"),
        ("cases/openai-shapes/openai_chat_tools.jsonl", "moeprof"),
        ("cases/openai-shapes/openai_finetune.jsonl", "evalscope"),
        ("cases/aiperf-text/aiperf_mixed.jsonl", "moeprof"),
        ("cases/json-object-called-broken/otel_simple_chain.json", "moeprof"),
    ],
)
def test_real_traces_go_there_and_back(tmp_path: Path, name: str, form: Form) -> None:
    trace = read_trace(shared(name))
    again, lost = written(trace, tmp_path, form)
    assert lost == {}
    assert losses(trace, again) == {}
    assert json.loads((tmp_path / f"{form}.jsonl").read_text(encoding="utf-8").splitlines()[0])
