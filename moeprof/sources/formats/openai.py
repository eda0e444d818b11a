"""OpenAI's files: batch requests, batch results, and chats one a line (requests, or fine-tuning examples).

Batch requests: ``{"custom_id", "method", "url", "body"}``; batch results: ``{"custom_id", "response", "error"}``, of
which only token counts can be replayed. Chats: a body a line, ``{"messages", "tools", "max_tokens"}``. A chat that ends
with the assistant's message is an example: that message is the answer. Without an answer, ``max_completion_tokens``
(``max_tokens``, ``max_output_tokens``) is the length asked for, which a Note says, because it is only the most.
Sources: https://platform.openai.com/docs/guides/batch, https://platform.openai.com/docs/guides/supervised-fine-tuning,
https://docs.vllm.ai/en/latest/examples/offline_inference/openai_batch
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats.calls import Call, count_of, inner, trace_of
from moeprof.sources.formats.chat import ChatReader, split_answer
from moeprof.sources.formats.columns import checked_text, shown
from moeprof.sources.formats.file import SourceFile, json_rows

LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens")
USED = ("messages", "prompt", "input", "instructions", "system", "tools", "functions", "n", "model", *LIMITS)
WRITES = ("chat/completions", "completions", "responses", "messages")
# moeprof's and AIPerf's own rows have messages too, and these keys beside them.
OTHERS = {"arrival_s", "input_tokens", "output_tokens", "output", "request_class", "session", "prefix_blocks"}
OTHERS |= {"delay_s", "output_length", "input_length", "timestamp", "delay", "session_id", "hash_ids"}


def matches(file: SourceFile) -> bool:
    """True for a batch file, or for messages without the keys of other formats that have them."""
    keys = file.keys
    if "custom_id" in keys:
        return bool(keys & {"body", "response"})
    return "messages" in keys and not keys & OTHERS


@dataclass(slots=True, kw_only=True)
class BodyReader:
    """Reads request bodies of one file.

    Attributes:
        chat: reads their messages.
        limit_rows: requests whose length is only the most they may have.
        many_rows: requests that asked for more than one answer.
        id_rows: requests whose prompt is token ids.
    """

    chat: ChatReader
    limit_rows: int = 0
    many_rows: int = 0
    id_rows: int = 0

    def call(self, row: int, body: Mapping[str, Any], answer: str | None = None) -> Call:
        """The call that a body makes, with its answer where the log has one.

        Raises:
            TraceError: no prompt of a known kind.
        """
        call = self._prompt(row, body)
        answer = answer or call.answer
        limit = None
        if answer is None:
            limit = next((count_of(self.chat.file, row, key, body[key]) for key in LIMITS if body.get(key)), None)
            self.limit_rows += limit is not None
        if type(body.get("n")) is int and body["n"] > 1:
            self.many_rows += 1
        return replace(call, answer=answer, output_tokens=limit)

    def _prompt(self, row: int, body: Mapping[str, Any]) -> Call:
        file, tools = self.chat.file, body.get("tools") or body.get("functions")
        given = body.get("messages", body.get("input"))
        if isinstance(given, list) and given:
            system = body.get("system", body.get("instructions"))  # Anthropic's and the responses API's place for it
            first = [{"role": "system", "content": system}] if system else []
            messages, answer = split_answer(self.chat.messages(row, [*first, *given], tools=tools))
            return Call(row=row, messages=messages, answer=answer)
        if "messages" in body:
            self.chat.messages(row, given)  # says what is expected
        prompt = next((body[key] for key in ("prompt", "input", "inputs") if key in body), None)
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, list) and prompt and set(map(type, prompt)) == {int}:
            self.id_rows += 1
            return Call(row=row, input_tokens=len(prompt))
        if isinstance(prompt, list):
            raise file.error(row, f"prompt is {shown(prompt)}; one text or list of token ids is expected")
        return Call(row=row, prompt=checked_text(file, row, "messages or prompt", prompt))

    def notes(self) -> tuple[Note, ...]:
        """What was left out or taken for something else, over all bodies read."""
        counts = (
            ("limit_as_length", self.limit_rows, "requests without an answer are as long as max_tokens lets them be"),
            ("one_answer", self.many_rows, "requests asked for more than one answer; one is replayed"),
            ("token_ids", self.id_rows, "prompts are token ids of another tokenizer: only their lengths are kept"),
        )
        return (*(Note(code=code, count=n, text=text) for code, n, text in counts if n), *self.chat.notes())


def usage_of(file: SourceFile, row: int, usage: Any) -> tuple[int | None, int | None]:
    """(prompt, answer) tokens of a ``usage`` object under any of its names."""
    names = (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
    if not isinstance(usage, dict):
        return None, None
    found = [next(((key, usage[key]) for key in keys if usage.get(key) is not None), None) for keys in names]
    counts = [None if pair is None else count_of(file, row, *pair) for pair in found]
    return counts[0], counts[1]


def read(file: SourceFile) -> Trace:
    """Read a batch file or chats.

    Raises:
        TraceError: see calls.py and chat.py.
    """
    file.use("custom_id", "method", "url", "body", "response", "error", "id", *USED)
    bodies = BodyReader(chat=ChatReader(file=file))
    calls: list[Call] = []
    num_other = 0
    for number, row in json_rows(file):
        if "response" in row and "body" not in row:
            calls.append(_result(file, number, row))
            continue
        body = row.get("body", row)
        if not isinstance(body, dict):
            raise file.error(number, f"body is {shown(body)}; an object is expected")
        if isinstance(row.get("url"), str) and not row["url"].endswith(WRITES):
            num_other += 1
            continue
        calls.append(bodies.call(number, body))
    notes = bodies.notes()
    if num_other:
        text = "requests to other endpoints than chat and completions were dropped"
        notes = (*notes, Note(code="dropped_other_calls", count=num_other, text=text))
    return trace_of("openai", file, calls, notes)


def _result(file: SourceFile, number: int, row: Mapping[str, Any]) -> Call:
    num_input, num_output = usage_of(file, number, inner(row, "response", "body", "usage"))
    failed = bool(row.get("error")) or inner(row, "response", "status_code") not in (200, None)
    return Call(row=number, input_tokens=num_input, output_tokens=num_output, failed=failed)
