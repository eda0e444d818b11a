"""Which request waits for the answer to which: a forest over the rows of a trace or of a schedule.

A row that waits for none is a first turn. Several rows may wait for the same one (parallel calls of an agent). Rows
stand behind those that they wait for. Suffix legend: N requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
NO_SESSION = ""
NONE = -1  # instead of a row: waits for no answer
REUSE_BLOCK_TOKENS = 16  # a prefix is shared in whole blocks: vLLM's default size, and that of our own engine's pages


def waits_by_session(sessions: Sequence[str]) -> IntArray:
    """Every request waits for the one before it in its session, shape [N]."""
    last: dict[str, int] = {}
    after = np.full(len(sessions), NONE, dtype=np.int64)
    for i, session in enumerate(sessions):
        if session != NO_SESSION:
            after[i] = last.get(session, NONE)
            last[session] = i
    return after


def kept_waits(after_N: IntArray, rows: Sequence[int]) -> IntArray:
    """``after_N`` for these rows alone: whose request went waits for the nearest one before it that stays."""
    place = {row: i for i, row in enumerate(rows)}
    kept = np.full(len(rows), NONE, dtype=np.int64)
    for i, row in enumerate(rows):
        before = int(after_N[row])
        while before != NONE and before not in place:
            before = int(after_N[before])
        kept[i] = place.get(before, NONE)
    return kept


def whole_lengths(added_N: IntArray, outputs_N: IntArray, after_N: IntArray) -> IntArray:
    """Prompt lengths from what turns add: the prompt before, its answer, the addition.

    An answer of unknown length (-1) adds nothing.
    """
    whole = added_N.copy()
    for i in np.flatnonzero(after_N != NONE).tolist():
        before = int(after_N[i])
        whole[i] += whole[before] + max(0, int(outputs_N[before]))
    return whole


def added_lengths(inputs_N: IntArray, outputs_N: IntArray, after_N: IntArray) -> IntArray:
    """What turns add to the prompt before and its answer, at least 0: the inverse of :func:`whole_lengths`."""
    later = after_N != NONE
    before = np.where(later, after_N, 0)
    context = np.where(later, inputs_N[before] + np.maximum(outputs_N[before], 0), 0)
    return np.maximum(inputs_N - context, 0)


def depths(after_N: IntArray) -> IntArray:
    """1 for a first turn, else one more than the turn that it waits for."""
    depth = np.ones(len(after_N), dtype=np.int64)
    for i in np.flatnonzero(after_N != NONE).tolist():
        depth[i] = depth[after_N[i]] + 1
    return depth


def roots(after_N: IntArray) -> IntArray:
    """The first turn of each request's conversation: its tree."""
    root = np.arange(len(after_N), dtype=np.int64)
    for i in np.flatnonzero(after_N != NONE).tolist():
        root[i] = root[after_N[i]]
    return root


def most_at_once(size_N: IntArray, after_N: IntArray) -> IntArray:
    """The most that the requests of each conversation can need together, at its first turn; 0 elsewhere, shape [N].

    A request and those that wait for its answer are never in flight together, parallel calls are.
    """
    below, most = np.zeros(len(size_N), dtype=np.int64), size_N.astype(np.int64)
    for i in range(len(size_N) - 1, -1, -1):
        most[i] = max(int(size_N[i]), int(below[i]))
        if after_N[i] != NONE:
            below[after_N[i]] += most[i]
    return np.where(after_N == NONE, most, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """The conversations of a schedule.

    Attributes:
        after: row whose answer each request waits for, -1: none, shape [N].
        is_closed: a turn is sent when the answer before has ended; otherwise at its own time, and ``after`` only says
            who belongs together.
        delay_s: least seconds from the end of that answer to this request, shape [N].
        gap_s: least seconds from the arrival of that request to this one, for files that state times of arrival
            alone, shape [N].
        context: row whose prompt and answer each prompt begins with, mostly ``after``, -1: none, shape [N].
        context_tokens: leading prompt tokens that are these, 0 where the prompt is stated whole, shape [N].
    """

    after: IntArray
    is_closed: bool
    delay_s: FloatArray
    gap_s: FloatArray
    context: IntArray
    context_tokens: IntArray

    @property
    def number(self) -> IntArray:
        """1 for first turns, shape [N]."""
        return depths(self.after)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for an answer."""
        return int((self.after != NONE).sum()) if self.is_closed else 0

    def without_pauses(self) -> Turns:
        """Turns follow as soon as the answer before has ended."""
        zeros = np.zeros(len(self.after), dtype=np.float64)
        return replace(self, delay_s=zeros, gap_s=zeros)

    def select(self, rows: Sequence[int]) -> Turns:
        """The turns of these rows; one whose context went has its prompt whole."""
        after = kept_waits(self.after, rows)
        place = {row: i for i, row in enumerate(rows)}
        context = np.array([place.get(row, NONE) for row in self.context[rows].tolist()], dtype=np.int64)
        same = context != NONE
        return Turns(
            after=after,
            context=context,
            is_closed=self.is_closed,
            delay_s=np.where(after == NONE, 0.0, self.delay_s[rows]),
            gap_s=np.where(after == NONE, 0.0, self.gap_s[rows]),
            context_tokens=np.where(same, self.context_tokens[rows], 0),
        )

    def digested(self) -> bytes:
        """What of it an engine sees, for the schedule's hash."""
        if not self.is_closed:
            return b""
        columns: tuple[Any, ...] = (self.after, self.delay_s, self.gap_s, self.context, self.context_tokens)
        return b"closed" + b"".join(np.ascontiguousarray(column).tobytes() for column in columns)
