"""How many tokens texts come to: of a few rows counted, of the others estimated by their bytes; or all counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from moeprof.core.trace import IntArray, Note, Trace
from moeprof.sources.content import prompt_ids
from moeprof.sources.tokenizer import TextTokenizer, load_tokenizer

SAMPLED_ROWS = 500


def own_tokenizer() -> TextTokenizer:
    """The tokenizer that comes with moeprof, for models that have none."""
    return replace(
        load_tokenizer(Path(str(resources.files("moeprof").joinpath("data/tokenizer/tokenizer.json")))),
        name="moeprof's own tokenizer of 2,048 tokens",
    )


def needs_counting(trace: Trace) -> bool:
    """True when a row has text whose length the file does not state."""
    has_text = trace.prompt_text is not None or trace.messages is not None
    unsaid = (trace.output_tokens < 0).any() and trace.output_text is not None
    return bool((has_text and (trace.input_tokens < 0).any()) or unsaid)


def with_text_lengths(trace: Trace, tokenizer: TextTokenizer, *, exact: bool = False) -> Trace:
    """The trace with lengths where it has only text; lengths that the file states stay.

    An estimate is the row's bytes times the tokens per byte of the sampled rows, which chance draws with a fixed seed.

    Args:
        trace: as read.
        tokenizer: whose tokens.
        exact: count every row.

    Raises:
        TraceError: the tokenizer's chat template refuses messages.
    """
    texts = trace.prompt_text or ("",) * len(trace)
    chats = trace.messages or (None,) * len(trace)
    answers = trace.output_text or (None,) * len(trace)
    inputs, outputs = trace.input_tokens.copy(), trace.output_tokens.copy()
    todo = np.flatnonzero(inputs < 0) if trace.prompt_text or trace.messages else np.zeros(0, dtype=np.int64)
    sampled = _sample(todo, exact=exact)
    counts = [len(prompt_ids(tokenizer, texts[i], chats[i])) for i in sampled]
    prompts = [texts[i] if (chat := chats[i]) is None else "".join(text for _, text in chat) for i in todo]
    inputs[todo] = _lengths(todo, sampled, counts, prompts)
    said = np.array([i for i in np.flatnonzero(outputs < 0).tolist() if answers[i] is not None], dtype=np.int64)
    sampled_answers = _sample(said, exact=exact)
    counts = [len(tokenizer.encode(answers[i] or "")) for i in sampled_answers]
    outputs[said] = _lengths(said, sampled_answers, counts, [answers[i] or "" for i in said])
    return replace(trace, input_tokens=inputs, output_tokens=outputs).with_notes(
        _note(len(todo), len(sampled), len(said), len(sampled_answers), tokenizer.name)
    )


def _sample(rows: IntArray, *, exact: bool) -> list[int]:
    if exact or len(rows) <= SAMPLED_ROWS:
        return [int(row) for row in rows]
    return [int(row) for row in np.sort(np.random.default_rng(0).choice(rows, SAMPLED_ROWS, replace=False))]


def _lengths(rows: IntArray, sampled: Sequence[int], counts: Sequence[int], texts: Sequence[str]) -> IntArray:
    """Lengths of ``rows``, whose texts these are."""
    if not len(rows):
        return rows
    num_bytes = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts], dtype=np.int64)
    of_sample = np.searchsorted(rows, sampled)
    per_byte = sum(counts) / max(1, int(num_bytes[of_sample].sum()))
    lengths = np.maximum(1, np.round(num_bytes * per_byte)).astype(np.int64)
    lengths[of_sample] = counts
    return lengths


def _note(num_prompts: int, num_sampled: int, num_answers: int, num_sampled_answers: int, name: str) -> Note:
    if (num_sampled, num_sampled_answers) == (num_prompts, num_answers):
        return Note(code="lengths_counted", count=max(num_prompts, num_answers), text=f"lengths of text are in {name}")
    text = (
        f"lengths of text are estimates in {name}: {SAMPLED_ROWS} rows were counted, the others by their bytes; "
        "--exact counts all"
    )
    return Note(code="lengths_estimated", count=max(num_prompts, num_answers), text=text)
