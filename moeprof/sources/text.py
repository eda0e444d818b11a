"""Text columns of JSON traces: prompts, chat messages, answers, checked row by row."""

from __future__ import annotations

from typing import Any

from moeprof.sources.file import SourceFile
from moeprof.sources.numbers import shown


def checked_text(file: SourceFile, row: int, key: str, value: Any) -> str:
    """A string that can be written as UTF-8.

    Raises:
        TraceError: it is missing, no string, or holds half a surrogate pair (which no tokenizer takes).
    """
    if value is None:
        raise file.error(row, f"{key} is missing")
    if not isinstance(value, str):
        raise file.error(row, f"{key} is {shown(value)}; text is expected")
    if any("\ud800" <= char <= "\udfff" for char in value) if not value.isascii() else False:
        raise file.error(row, f"{key} holds half a surrogate pair, which is no text")
    return value


def checked_messages(file: SourceFile, row: int, value: Any) -> tuple[tuple[str, str], ...]:
    """Chat messages in the OpenAI form, ``[{"role", "content"}]``, as (role, content) pairs.

    Raises:
        TraceError: no list of such objects, or an empty one.
    """
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise file.error(row, f'messages is {shown(value)}; a list of {{"role", "content"}} objects is expected')
    return tuple(
        (
            checked_text(file, row, "messages.role", message.get("role")),
            checked_text(file, row, "messages.content", message.get("content")),
        )
        for message in value
    )


def plain_text(messages: tuple[tuple[str, str], ...]) -> str:
    """Messages without any template."""
    return "\n\n".join(content for _, content in messages)
