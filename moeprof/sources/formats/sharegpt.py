"""ShareGPT conversations: ``[{"id", "conversations": [{"from": "human" | "gpt", "value"}]}]``.

Every assistant turn is one request: the turns before it are the messages, its own text is the true continuation. The
file has no times; the requests of a conversation share a session. Images of a conversation (``image``, a name or a
list; ``<image>`` marks their places, as LLaVA's files have it) are left out and counted, with their marks.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.chat import ChatReader, Messages
from moeprof.sources.formats.columns import assemble, checked_text
from moeprof.sources.formats.file import SourceFile, json_rows

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
IMAGE_KEYS = ("image", "images")
IMAGE_MARK = re.compile(r"<image>\n?|\n?<image>")


def matches(file: SourceFile) -> bool:
    """True when the first object holds conversations."""
    return "conversations" in file.keys


def read(file: SourceFile) -> Trace:
    """Read ShareGPT conversations.

    Raises:
        TraceError: broken JSON, conversations that are no list of turns, or nothing to replay.
    """
    messages: list[Messages] = []
    outputs: list[str] = []
    sessions: list[str] = []
    num_odd = num_turns = 0
    file.use("id", "conversations", *IMAGE_KEYS)
    chat = ChatReader(file=file)
    for number, row in json_rows(file):
        turns = _turns(file, number, row)
        images = [row[key] for key in IMAGE_KEYS if row.get(key)]
        if images:
            chat.left_out(number, "image", sum(len(image) if isinstance(image, list) else 1 for image in images))
            turns = [(role, IMAGE_MARK.sub("", value)) for role, value in turns]
        num_turns += len(turns)
        requests = requests_of(turns)
        num_odd += not requests
        for before, answer in requests:
            messages.append(before)
            outputs.append(answer)
            sessions.append(str(row.get("id", number)))
    if not messages:
        raise file.error(None, "no conversation holds a user's turn followed by an assistant's")
    notes: tuple[Note, ...] = ()
    if num_odd:
        text = "conversations without a user's turn followed by an assistant's, or with an unknown role, were dropped"
        notes = (Note(code="dropped_conversations", count=num_odd, text=text),)
    unknown = np.full(len(messages), -1, dtype=np.int64)
    return assemble(
        "sharegpt",
        file,
        arrival_s=None,
        input_tokens=unknown,
        output_tokens=unknown,
        notes=(*notes, *chat.notes()),
        messages=tuple(messages),
        output_text=tuple(outputs),
        session=tuple(sessions),
    )


def requests_of(turns: list[tuple[str, str]]) -> list[tuple[Messages, str]]:
    """(messages before, answer) for each non-empty assistant turn that follows a user's; none if a role is unknown."""
    if any(role not in ROLES for role, _ in turns):
        return []
    known = [(ROLES[role], value) for role, value in turns]
    while known and known[0][0] == "assistant":  # an answer whose question was cut off
        known = known[1:]
    return [
        (tuple(known[:i]), value)
        for i, (role, value) in enumerate(known)
        if role == "assistant" and known[i - 1][0] == "user" and value and known[i - 1][1]
    ]


def _turns(file: SourceFile, number: int, row: dict[str, Any]) -> list[tuple[str, str]]:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise file.error(number, 'conversations must be a list of {"from", "value"} objects')
    return [
        (
            checked_text(file, number, "from", turn.get("from")),
            checked_text(file, number, "value", turn.get("value")),
        )
        for turn in turns
    ]
