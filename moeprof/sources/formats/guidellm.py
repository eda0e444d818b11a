"""GuideLLM's data sets: ``prompt`` and ``output_tokens_count`` (``prompt_tokens_count``), as CSV or JSON.

``prompt_0, prompt_1, ...`` with ``output_tokens_count_0, ...`` are the turns of a conversation, each what it adds;
``prefix`` is text that stands before the prompt. Its traces (``timestamp``, lengths, ``hash_ids``) are Mooncake's form
in seconds, its agent traces Weka's.
Source: https://github.com/vllm-project/guidellm/blob/main/docs/guides/datasets.md and multiturn.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from moeprof.core.trace import NO_SESSION, Trace
from moeprof.core.turns import waits_by_session, whole_lengths
from moeprof.sources.formats import turns as conversations
from moeprof.sources.formats.calls import count_of, row_objects
from moeprof.sources.formats.columns import assemble, checked_text
from moeprof.sources.formats.file import SourceFile

OUTPUTS = ("output_tokens_count", "completion_tokens_count")
INPUTS = ("prompt_tokens_count", "input_tokens_count")
TEXTS = ("prompt", "instruction", "question", "input", "context", "content", "text")
TURN = re.compile(r"prompt(?:_tokens_count)?_(\d{1,4})$")
UNKNOWN = -1


def matches(file: SourceFile) -> bool:
    """True when its names of counts stand there, alone or numbered."""
    names = {re.sub(r"_\d{1,4}$", "", name) for name in file.keys or file.header}
    return bool(names & {*OUTPUTS, *INPUTS})


def read(file: SourceFile) -> Trace:
    """Read a data set of prompts, or of lengths alone.

    Raises:
        TraceError: see columns.py; or a row without prompt and length.
    """
    texts: list[str | None] = []
    inputs: list[int] = []
    outputs: list[int] = []
    sessions: list[str] = []
    lines: list[int] = []
    for number, row in row_objects(file):
        turns = sorted({int(match[1]) for key in row if (match := TURN.match(key))})
        for i, turn in enumerate([f"_{turn}" for turn in turns] or [""]):
            text = _text(file, number, row, turn, with_prefix=i == 0)
            length = _count(file, number, row, INPUTS, turn)
            if text is None and length is None:
                raise file.error(number, f"neither prompt{turn} nor prompt_tokens_count{turn} is there")
            texts.append(text)
            inputs.append(UNKNOWN if length is None else length)
            output = _count(file, number, row, OUTPUTS, turn)
            outputs.append(UNKNOWN if output is None else output)
            sessions.append(str(number) if turns else NO_SESSION)
            lines.append(number)
    after = waits_by_session(sessions)
    columns: dict[str, Any] = {"session": tuple(sessions)} if any(sessions) else {}
    added, asked = np.array(inputs, dtype=np.int64), np.array(outputs, dtype=np.int64)
    with_text = [text is not None for text in texts]
    if any(with_text):
        if not all(with_text):
            raise file.error(lines[with_text.index(False)], "the prompt is missing; other rows have one")
        columns["prompt_text"] = conversations.added_texts([text or "" for text in texts], after)
        whole = np.where([bool(text) for text in texts], np.where(added == 0, UNKNOWN, added), 0)
        if any(sessions):
            whole = np.where(whole == 0, 0, UNKNOWN)  # counts are of the additions
    else:
        whole = whole_lengths(added, asked, after)
        if any(sessions):
            size = conversations.OWN_BLOCK_TOKENS
            columns["prefix_blocks"] = conversations.whole_blocks([()] * len(whole), whole, after, size)
            columns["prefix_block_tokens"] = size
    return assemble(
        "guidellm",
        file,
        arrival_s=None,
        input_tokens=whole,
        output_tokens=asked,
        stated="added",
        notes=conversations.additions_note(after),
        **columns,
    )


def _text(file: SourceFile, number: int, row: Mapping[str, Any], turn: str, *, with_prefix: bool) -> str | None:
    key = next((name + turn for name in TEXTS if row.get(name + turn) is not None), None)
    if key is None:
        return None
    file.use(key, "prefix")
    text = checked_text(file, number, key, row[key])
    prefix = row.get("prefix") if with_prefix else None
    return checked_text(file, number, "prefix", prefix) + conversations.TEXTS_JOINED_BY + text if prefix else text


def _count(file: SourceFile, number: int, row: Mapping[str, Any], names: tuple[str, ...], turn: str) -> int | None:
    key = next((name + turn for name in names if row.get(name + turn) not in (None, "")), None)
    if key is None:
        return None
    file.use(key)
    return count_of(file, number, key, row[key])
