"""SGLang's benchmark files: custom conversations, agentic conversations, and token traces.

* custom: ``{"conversations": [{"role", "content"}, ...]}`` (or ``conversation``) a line. The first message is the
  prompt, the second its answer; SGLang sends no more of them, and neither does this.
* agentic: one object ``{"metadata", "conversations": [[{"messages", "prompt_tokens"}, ...], ...]}``. A turn holds the
  new messages only, ``prompt_tokens`` counts its whole prompt.
* token trace: ``{"input_tokens": [ids], "output_tokens": [ids] | "num_output_tokens", "ts"}`` a line, ``ts`` in
  seconds. The ids are another tokenizer's: lengths stay, and what prompts share at their start stays shared.

Source: https://github.com/sgl-project/sglang/tree/main/python/sglang/benchmark/datasets (custom, agentic,
token_trace)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeprof.core.trace import Note, Trace
from moeprof.core.turns import waits_by_session
from moeprof.sources.formats.calls import NS_PER_S, Call, count_of, instant_ns, trace_of
from moeprof.sources.formats.chat import ChatReader, Messages
from moeprof.sources.formats.columns import assemble, shown
from moeprof.sources.formats.file import SourceFile, first_row, json_rows
from moeprof.sources.formats.mooncake import block_ids
from moeprof.sources.formats.turns import additions_note

BLOCK_TOKENS = 16
UNKNOWN = -1


def matches(file: SourceFile) -> bool:
    """True for conversations of messages or of turns, and for rows of token ids."""
    if not file.keys & {"conversation", "conversations", "input_tokens"}:
        return False
    first = first_row(file)
    if isinstance(first.get("input_tokens"), list):
        return True
    inside = first.get("conversations", first.get("conversation"))
    if not isinstance(inside, list) or not inside:
        return False
    return isinstance(inside[0], list) or (isinstance(inside[0], dict) and "content" in inside[0])


def read(file: SourceFile) -> Trace:
    """Read one of the three forms.

    Raises:
        TraceError: see columns.py and chat.py.
    """
    first = first_row(file)
    if "input_tokens" in first:
        return _token_trace(file)
    inside = first.get("conversations")
    if isinstance(inside, list) and inside and isinstance(inside[0], list):
        return _agentic(file)
    return _custom(file)


def _custom(file: SourceFile) -> Trace:
    file.use("conversations", "conversation", "id", "image")
    chat = ChatReader(file=file)
    calls: list[Call] = []
    num_short = num_more = 0
    for number, row in json_rows(file):
        given = row.get("conversations", row.get("conversation"))
        if not isinstance(given, list) or not all(isinstance(message, dict) for message in given):
            raise file.error(number, f"conversations is {shown(given)}; a list of messages is expected")
        if row.get("image"):
            chat.left_out(number, "image")
        if len(given) < 2:
            num_short += 1
            continue
        num_more += len(given) > 2
        prompt, answer = (
            chat.text(number, "content", message.get("content", message.get("value"))) for message in given[:2]
        )
        calls.append(Call(row=number, prompt=prompt, answer=answer or None, output_tokens=None if answer else 0))
    notes = [*chat.notes()]
    for code, count, text in (
        ("dropped_conversations", num_short, "conversations of fewer than two messages were dropped"),
        ("first_turn_only", num_more, "conversations have more messages than the two that SGLang sends"),
    ):
        if count:
            notes.append(Note(code=code, count=count, text=text))
    return trace_of("sglang", file, calls, notes)


def _agentic(file: SourceFile) -> Trace:
    file.use("conversations", "metadata")
    chat = ChatReader(file=file)
    messages: list[Messages] = []
    stated: list[int] = []
    sessions: list[str] = []
    for number, row in json_rows(file):
        given = row.get("conversations")
        if not isinstance(given, list) or not all(isinstance(turns, list) for turns in given):
            raise file.error(number, f"conversations is {shown(given)}; a list of lists of turns is expected")
        for i, turns in enumerate(given):
            for turn in turns:
                if not isinstance(turn, dict):
                    raise file.error(number, f"{shown(turn)} is no turn")
                count = count_of(file, number, "prompt_tokens", turn.get("prompt_tokens"))
                messages.append(chat.messages(number, turn.get("messages")))
                stated.append(UNKNOWN if count is None else count)
                sessions.append(f"{number}/{i}")
    if not messages:
        raise file.error(None, "none of its conversations has a turn")
    return assemble(
        "sglang",
        file,
        arrival_s=None,
        input_tokens=np.array(stated, dtype=np.int64),
        output_tokens=np.full(len(stated), UNKNOWN, dtype=np.int64),
        notes=(*additions_note(waits_by_session(sessions)), *chat.notes()),
        messages=tuple(messages),
        session=tuple(sessions),
        stated="added",
    )


def _token_trace(file: SourceFile) -> Trace:
    file.use("input_tokens", "output_tokens", "num_input_tokens", "num_output_tokens", "ts")
    prompts: list[tuple[int, ...]] = []
    outputs: list[int] = []
    times: list[int | None] = []
    for number, row in json_rows(file):
        prompts.append(block_ids(file, "input_tokens", row.get("input_tokens"), number))
        outputs.append(_output_length(file, number, row))
        times.append(None if row.get("ts") is None else instant_ns(file, number, "ts", row["ts"]))
        if (times[-1] is None) != (times[0] is None):
            raise file.error(number, "ts is missing in some rows and there in others")
    known = [time for time in times if time is not None]
    first = min(known, default=0)
    text = "token ids are another tokenizer's: lengths and shared beginnings are kept, the text is not"
    return assemble(
        "sglang",
        file,
        arrival_s=np.array([(time - first) / NS_PER_S for time in known]) if known else None,
        input_tokens=np.array([len(ids) for ids in prompts], dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        notes=(Note(code="token_ids", count=len(prompts), text=text),),
        prefix_blocks=chained_blocks(prompts, BLOCK_TOKENS),
        prefix_block_tokens=BLOCK_TOKENS,
    )


def _output_length(file: SourceFile, number: int, row: Mapping[str, Any]) -> int:
    stated = count_of(file, number, "num_output_tokens", row.get("num_output_tokens"))
    if stated is not None:
        return stated
    return len(block_ids(file, "output_tokens", row.get("output_tokens", []), number))


def chained_blocks(prompts: Sequence[tuple[int, ...]], block_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Ids of full blocks: the same id means the same tokens, and the same tokens before them."""
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    chains = []
    for ids in prompts:
        chain: list[int] = []
        for start in range(0, len(ids) - block_tokens + 1, block_tokens):
            key = (chain[-1] if chain else UNKNOWN, ids[start : start + block_tokens])
            chain.append(known.setdefault(key, len(known)))
        chains.append(tuple(chain))
    return tuple(chains)
