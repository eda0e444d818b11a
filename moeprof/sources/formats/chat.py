"""Chat messages as APIs write them, as (role, text) pairs: content parts, tool calls, tool definitions, media.

Text is kept. What is no text (images, audio, files) is left out and counted. Tool calls and tool definitions go to the
model as text that its chat template writes; here they stand as JSON, which is of nearly the same length.
Shapes: OpenAI's chat, completions and responses bodies (https://platform.openai.com/docs/api-reference), Anthropic's
content blocks, and the parts of OpenTelemetry's GenAI messages
(https://github.com/open-telemetry/semantic-conventions/blob/main/docs/gen-ai/gen-ai-input-messages.json).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moeprof.core.errors import TraceError
from moeprof.core.trace import Note
from moeprof.sources.formats.columns import checked_text, shown
from moeprof.sources.formats.file import SourceFile

Messages = tuple[tuple[str, str], ...]

ROLES = {"developer": "system", "function": "tool", "human": "user", "model": "assistant", "ai": "assistant"}
TEXT_PARTS = {"text", "input_text", "output_text", "refusal", "reasoning", "thinking", "summary_text"}
TOOL_PARTS = {"tool_call", "tool_use", "function_call"}
TOOL_ANSWERS = {"tool_call_response", "tool_result", "function_call_output"}
# Of a message; a name or an id beside them changes nothing that is sent.
READ_KEYS = {"role", "content", "parts", "type", "tool_calls", "function_call", "tool_call_id", "id", "name", "refusal"}
MEDIA = {
    "image": ("image", "image_url", "input_image", "images"),
    "audio": ("audio", "audio_url", "input_audio", "audios"),
    "video": ("video", "video_url", "input_video", "videos"),
}
MEDIUM_OF = {name: medium for medium, names in MEDIA.items() for name in names}
PARTS_JOINED_BY = "\n"  # as vLLM writes text parts for templates that take strings


@dataclass(slots=True, kw_only=True)
class ChatReader:
    """Reads messages of one file and keeps count of what it leaves out.

    Attributes:
        file: for messages of errors.
        media: kind of medium to the number of items left out.
        media_rows: rows that lost one.
        tool_rows: rows with tool calls or definitions.
    """

    file: SourceFile
    media: Counter[str] = field(default_factory=Counter)
    media_rows: set[int] = field(default_factory=set)
    tool_rows: set[int] = field(default_factory=set)

    def messages(self, row: int, value: Any, *, tools: Any = None, name: str = "messages") -> Messages:
        """The messages of one request; tool definitions stand before them as a system's message.

        Raises:
            TraceError: no list of objects with a role, or an empty one.
        """
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise self.file.error(row, f'{name} is {shown(value)}; a list of {{"role", "content"}} objects is expected')
        read = [self._message(row, name, message) for message in value]
        if tools:
            self.tool_rows.add(row)
            definitions = ("system", _json(self.file, row, tools))
            if read[0][0] == "system":  # templates take one system message, at the front
                definitions = ("system", f"{read[0][1]}{PARTS_JOINED_BY}{definitions[1]}")
                read = read[1:]
            read = [definitions, *read]
        return tuple(read)

    def _message(self, row: int, name: str, message: Mapping[str, Any]) -> tuple[str, str]:
        kind = str(message.get("type"))
        if kind in TOOL_PARTS and "role" not in message:  # the responses API's items
            return "assistant", self._part(row, name, message)
        if kind in TOOL_ANSWERS and "role" not in message:
            return "tool", self._part(row, name, message)
        if not message.keys() <= READ_KEYS:
            self.file.seen.update(f"{name}.{key}" for key in message.keys() - READ_KEYS if message[key])
        role = checked_text(self.file, row, f"{name}.role", message.get("role"))
        content = message.get("parts") if message.get("content") is None else message["content"]
        texts = [self.text(row, f"{name}.content", content)] if content is not None else []
        calls = message.get("tool_calls") or message.get("function_call")
        if calls:
            self.tool_rows.add(row)
            texts.append(_json(self.file, row, calls))
        if content is None and not calls and role != "assistant":
            raise self.file.error(row, f"{name}.content is missing")
        return ROLES.get(role, role), PARTS_JOINED_BY.join(text for text in texts if text)

    def text(self, row: int, name: str, content: Any) -> str:
        """Content as text: a string, one part or a list of parts.

        Raises:
            TraceError: neither of these.
        """
        if isinstance(content, list):
            parts = [self._part(row, name, part) for part in content]
            return PARTS_JOINED_BY.join(part for part in parts if part)
        return self._part(row, name, content)

    def _part(self, row: int, name: str, part: Any) -> str:
        if isinstance(part, str):
            return checked_text(self.file, row, name, part)
        if not isinstance(part, dict):
            raise self.file.error(row, f"{name} is {shown(part)}; text or a list of parts is expected")
        kind = str(part.get("type", "text"))
        if kind in TEXT_PARTS:
            text = next((part[key] for key in ("text", "content", "refusal", "thinking", "summary") if key in part), "")
            return self.text(row, name, text) if isinstance(text, list) else checked_text(self.file, row, name, text)
        if kind in TOOL_PARTS:
            self.tool_rows.add(row)
            call = {key: part[key] for key in ("name", "arguments", "input") if key in part}
            return _json(self.file, row, call)
        if kind in TOOL_ANSWERS:
            self.tool_rows.add(row)
            answer = next((part[key] for key in ("response", "content", "output", "result") if key in part), "")
            return answer if isinstance(answer, str) else _json(self.file, row, answer)
        self.left_out(row, MEDIUM_OF.get(str(part.get("modality", kind)), _plain(part.get("modality", kind))))
        return ""

    def left_out(self, row: int, medium: str, number: int = 1) -> None:
        """Count items of a row that are no text."""
        self.media[medium] += number
        self.media_rows.add(row)

    def notes(self) -> tuple[Note, ...]:
        """What was left out or rewritten, over all rows read."""
        notes = []
        if self.media:
            items = ", ".join(f"{number:,} {name}" for name, number in sorted(self.media.items()))
            text = f"requests held more than text, which is left out ({items} items); their text is kept"
            notes.append(Note(code="media_left_out", count=len(self.media_rows), text=text))
        if self.tool_rows:
            text = "requests have tool definitions or calls; they stand in the prompt as JSON text"
            notes.append(Note(code="tools_as_text", count=len(self.tool_rows), text=text))
        return tuple(notes)


def split_answer(messages: Messages) -> tuple[Messages, str | None]:
    """Messages that end with the assistant's: those before, and its text as the answer."""
    if len(messages) > 1 and messages[-1][0] == "assistant" and messages[-1][1]:
        return messages[:-1], messages[-1][1]
    return messages, None


def parsed(value: Any) -> Any:
    """JSON inside a string (as logs and capture files write bodies) as its value; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def answer_of(chat: ChatReader, row: int, response: Any) -> str | None:
    """The text of a response: an OpenAI response or message, generated text, or a string; None where there is none."""
    response = parsed(response)
    if isinstance(response, list):
        response = response[0] if response else None
    if isinstance(response, str):
        return checked_text(chat.file, row, "response", response) or None
    if not isinstance(response, dict):
        return None
    choices = response.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        response = choices[0]
    message = response.get("message", response)
    if isinstance(message, dict) and ("content" in message or "parts" in message or "tool_calls" in message):
        return chat.messages(row, [{"role": "assistant"} | message], name="response")[0][1] or None
    for key in ("text", "generated_text", "output_text"):
        if isinstance(response.get(key), str):
            return checked_text(chat.file, row, key, response[key]) or None
    return None


def _json(file: SourceFile, row: int, value: Any) -> str:
    try:
        return checked_text(file, row, "tools", json.dumps(value, ensure_ascii=False))
    except RecursionError as error:
        raise TraceError(f"{file.path}:{row}: tools are nested too deeply") from error


def _plain(kind: object) -> str:
    """A part's own name for what it is, short and printable."""
    return "".join(char for char in str(kind) if char.isascii() and char.isprintable())[:20] or "other"
