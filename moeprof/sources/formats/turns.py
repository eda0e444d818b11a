"""Conversations whose rows state what a turn adds: whole prompts, their shared blocks, and when turns are due.

In such files (AIPerf's, GuideLLM's) turn k's prompt is turn k-1's prompt, its answer, and the addition. Its delay
counts from the end of the previous answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

import numpy as np

from moeprof.core.trace import FloatArray, IntArray, Note
from moeprof.core.turns import NONE
from moeprof.sources.formats.columns import RowOf
from moeprof.sources.formats.file import SourceFile

OWN_BLOCK_TOKENS = 64  # of contexts that are shared without ids in the file
TEXTS_JOINED_BY = "\n\n"


def whole_blocks(
    ids: Sequence[tuple[int, ...]], inputs: IntArray, after: IntArray, block_tokens: int
) -> tuple[tuple[int, ...], ...]:
    """Prefix blocks of whole prompts: a later turn begins with the full blocks of the prompt before (row ``after``).

    What follows them (the previous answer and the addition) stands at another place than the file's ids say, so it gets
    ids of its own; a first turn keeps those of the file.
    """
    fresh = _unused_ids(ids)
    whole: list[tuple[int, ...]] = []
    for i, before in enumerate(after.tolist()):
        needed = -(-int(inputs[i]) // block_tokens)
        known = ids[i] if before == NONE else whole[before][: int(inputs[before]) // block_tokens]
        own = tuple(next(fresh) for _ in range(needed - len(known))) if before != NONE or not ids[i] else ()
        whole.append(known + own)
    return tuple(whole)


def _unused_ids(ids: Sequence[tuple[int, ...]]) -> Iterator[int]:
    taken = {block for blocks in ids for block in blocks if block < 0}
    return (block for block in count(-1, -1) if block not in taken)


def added_texts(texts: Sequence[str], after: IntArray) -> tuple[str, ...]:
    """What each turn adds to its session's text: a later one begins a paragraph."""
    pairs = zip(texts, after.tolist(), strict=True)
    return tuple(text if before == NONE else TEXTS_JOINED_BY + text for text, before in pairs)


def turn_times(
    file: SourceFile, times_s: FloatArray, delays_s: FloatArray, after: IntArray, row_of: RowOf
) -> FloatArray | None:
    """When turns are due if answers took no time: a stated time, else the previous turn's plus the delay.

    Args:
        file: for messages.
        times_s: stated times, NaN where there is none, shape [N].
        delays_s: stated delays, NaN where there is none, shape [N].
        after: the previous turn of each row, -1: none.
        row_of: for messages.

    Raises:
        TraceError: a first turn has no time, but others have.
    """
    if np.isnan(times_s).all() and np.isnan(delays_s).all():
        return None
    has_times = not np.isnan(times_s).all()
    due_s = times_s.copy()
    for i in np.flatnonzero(np.isnan(times_s)).tolist():
        before = int(after[i])
        if before == NONE and has_times:
            raise file.error(row_of(i), "timestamp is missing; other rows have one")
        due_s[i] = (0.0 if before == NONE else due_s[before]) + (0.0 if np.isnan(delays_s[i]) else delays_s[i])
    return due_s


def additions_note(after: IntArray) -> tuple[Note, ...]:
    """Says that later turns' prompts are put together from additions."""
    later = int((after != NONE).sum())
    text = "later turns state what they add: their prompts are the previous prompt, its answer and the addition"
    return (Note(code="turns_add_up", count=later, text=text),) if later else ()
