"""Conversations whose rows state what a turn adds: whole prompts, their shared blocks, and when turns are due.

In such files (AIPerf's, GuideLLM's) turn k's prompt is turn k-1's prompt, its answer, and the addition. Its delay
counts from the end of the previous answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from moeprof.core.trace import NO_SESSION, FloatArray, IntArray, Note
from moeprof.sources.formats.columns import RowOf
from moeprof.sources.formats.file import SourceFile

OWN_BLOCK_TOKENS = 64  # of contexts that are shared without ids in the file
TEXTS_JOINED_BY = "\n\n"


def predecessors(sessions: Sequence[str]) -> list[int | None]:
    """For each row the row of its session's previous turn, None for a first turn."""
    last: dict[str, int] = {}
    before: list[int | None] = []
    for i, session in enumerate(sessions):
        before.append(last.get(session) if session != NO_SESSION else None)
        last[session] = i
    return before


def whole_lengths(added: IntArray, outputs: IntArray, before: Sequence[int | None]) -> IntArray:
    """Prompt lengths from additions; an answer of unknown length (-1) adds nothing."""
    whole = added.copy()
    for i, previous in enumerate(before):
        if previous is not None:
            whole[i] += whole[previous] + max(0, int(outputs[previous]))
    return whole


def whole_blocks(
    ids: Sequence[tuple[int, ...]], inputs: IntArray, before: Sequence[int | None], block_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Prefix blocks of whole prompts: a later turn begins with the full blocks of its session's previous prompt.

    What follows them (the previous answer and the addition) stands at another place than the file's ids say, so it gets
    ids of its own; a first turn keeps those of the file.
    """
    fresh = _unused_ids(ids)
    whole: list[tuple[int, ...]] = []
    for i, previous in enumerate(before):
        needed = -(-int(inputs[i]) // block_tokens)
        known = ids[i] if previous is None else whole[previous][: int(inputs[previous]) // block_tokens]
        own = tuple(next(fresh) for _ in range(needed - len(known))) if previous is not None or not ids[i] else ()
        whole.append(known + own)
    return tuple(whole)


def _unused_ids(ids: Sequence[tuple[int, ...]]) -> Iterator[int]:
    taken = {block for blocks in ids for block in blocks if block < 0}
    return (block for block in count(-1, -1) if block not in taken)


def whole_texts(texts: Sequence[str], before: Sequence[int | None]) -> tuple[str, ...]:
    """Prompts that hold their session's earlier texts; the answers between them are not in the file."""
    whole: list[str] = []
    for text, previous in zip(texts, before, strict=True):
        whole.append(text if previous is None else whole[previous] + TEXTS_JOINED_BY + text)
    return tuple(whole)


def turn_times(
    file: SourceFile, times_s: FloatArray, delays_s: FloatArray, before: Sequence[int | None], row_of: RowOf
) -> FloatArray | None:
    """When turns are due if answers took no time: a stated time, else the previous turn's plus the delay.

    Args:
        file: for messages.
        times_s: stated times, NaN where there is none, shape [N].
        delays_s: stated delays, NaN where there is none, shape [N].
        before: the previous turn of each row.
        row_of: for messages.

    Raises:
        TraceError: a first turn has no time, but others have.
    """
    if np.isnan(times_s).all() and np.isnan(delays_s).all():
        return None
    has_times = not np.isnan(times_s).all()
    due_s = times_s.copy()
    for i in np.flatnonzero(np.isnan(times_s)).tolist():
        previous = before[i]
        if previous is None and has_times:
            raise file.error(row_of(i), "timestamp is missing; other rows have one")
        due_s[i] = (0.0 if previous is None else due_s[previous]) + (0.0 if np.isnan(delays_s[i]) else delays_s[i])
    return due_s


def additions_note(before: Sequence[int | None], *, with_answers: bool) -> tuple[Note, ...]:
    """Says that later turns' prompts were put together from additions."""
    later = sum(previous is not None for previous in before)
    if not later:
        return ()
    if with_answers:
        text = "later turns state what they add: their prompts are the previous prompt, its answer and the addition"
    else:
        text = "later turns hold their session's earlier texts, without the answers, which the file does not have"
    return (Note(code="turns_add_up", count=later, text=text),)
