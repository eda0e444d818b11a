"""What is kept of a request's body: its model, the size of its prompt, and hashes in place of its text.

A prompt is cut into blocks of equal size, and block i is hashed with all blocks before it, so that equal ids mean equal
text from the start on, as in Mooncake's traces. The hash is keyed by a salt that lives in memory only: without it, a
guessed prompt cannot be looked up in the file.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from moeprof.sources.formats.recording import BLOCK_CHARACTERS, BLOCK_IDS

SALT_BYTES = 32
MAX_NAME = 200
END_OF_PART = "\x1e"  # between role and content and between messages: no two chats run into the same text


class Salt:
    """Keyed hashes of one recording."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(SALT_BYTES)

    def name(self, text: str) -> str:
        """A session or user as 16 hexadecimal digits."""
        return hashlib.blake2b(encoded(text), key=self._key, digest_size=8, person=b"session").hexdigest()

    def blocks(self, pieces: Iterator[bytes]) -> list[int]:
        """Chained ids of the pieces of a prompt, each of 63 bits."""
        ids, chain = [], b""
        for piece in pieces:
            chain = hashlib.blake2b(chain + piece, key=self._key, digest_size=16, person=b"prefix").digest()
            ids.append(int.from_bytes(chain[:8], "big") >> 1)
        return ids


def encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which JSON can carry, becomes a question mark."""
    return text.encode("utf-8", "replace")


def parsed(body: bytes) -> dict[str, Any] | None:
    """A body that is a JSON object, else None."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def prompt_columns(body: bytes, salt: Salt, *, session: str | None, keep_text: bool) -> dict[str, Any]:
    """The keys of a row that come from the request.

    Args:
        body: as the client sent it.
        salt: of this recording.
        session: the session's header, or None: then the ``user`` field stands for the session.
        keep_text: write the text beside the hashes.
    """
    request = parsed(body)
    user = None if request is None else request.get("user")
    session = session or (user if isinstance(user, str) and user else None)
    row: dict[str, Any] = {} if session is None else {"session": salt.name(session)}
    if request is None:
        return row
    if isinstance(request.get("model"), str):
        row["model"] = encoded(request["model"][:MAX_NAME]).decode()
    for key in ("max_tokens", "max_completion_tokens"):
        if type(request.get(key)) is int:
            row["max_tokens"] = request[key]
    if type(request.get("n")) is int and request["n"] > 1:
        row["answers"] = request["n"]
    return row | _prompt(request, salt, keep_text)


def _prompt(request: Mapping[str, Any], salt: Salt, keep_text: bool) -> dict[str, Any]:
    if "messages" in request:
        return _chat(request, salt, keep_text)
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(one, str | list) for one in prompt):
        if len(prompt) > 1:
            return {"prompts": len(prompt)}
        prompt = prompt[0]
    if isinstance(prompt, str):
        row = _text(prompt, salt)
        return row | {"prompt": encoded(prompt).decode()} if keep_text else row
    if isinstance(prompt, list) and set(map(type, prompt)) == {int}:
        pieces = (repr(prompt[i : i + BLOCK_IDS]).encode() for i in range(0, len(prompt), BLOCK_IDS))
        return {"prompt_ids": len(prompt), "prefix_blocks": salt.blocks(pieces)}
    return {}


def _text(text: str, salt: Salt) -> dict[str, Any]:
    pieces = (encoded(text[i : i + BLOCK_CHARACTERS]) for i in range(0, len(text), BLOCK_CHARACTERS))
    return {"prompt_characters": len(text), "prefix_blocks": salt.blocks(pieces)}


def _chat(request: Mapping[str, Any], salt: Salt, keep_text: bool) -> dict[str, Any]:
    """Tools come first, as chat templates write them; content that is no text is hashed as the JSON that it is."""
    messages = request["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return {}
    parts = [json.dumps(request["tools"])] if request.get("tools") else []
    plain: list[dict[str, str]] | None = [] if not parts else None
    for message in messages:
        role, content = message.get("role"), _content(message)
        parts += [str(role), json.dumps(message) if content is None else content]
        if content is None or not isinstance(role, str):
            plain = None
        elif plain is not None:
            plain.append({"role": encoded(role).decode(), "content": encoded(content).decode()})
    row = _text(END_OF_PART.join(parts), salt)
    return row | {"messages": plain} if keep_text and plain else row


def _content(message: Mapping[str, Any]) -> str | None:
    """A message's text; None where it is more than text (pictures, calls of tools)."""
    content = message.get("content")
    if set(message) - {"role", "content", "name"}:
        return None
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return None
    texts = [part.get("text") for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None
