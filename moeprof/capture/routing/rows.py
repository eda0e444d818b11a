"""Which row of a table of picks each token of a forward takes, by its request and its place in it. Numpy only.

Recorded picks have a row for every token that a schedule computes. Drawn picks take rows by a pure function of seed,
request and position: a token goes to the same experts in every round, batch size and engine, and on both sides of a
pair, and nothing has to be drawn inside of a forward, where a captured step would draw once and for ever.
Suffix legend: N requests, R rows, S sequences of a forward, T its real tokens, P positions of a request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moeprof.capture.engines.base import BatchLayout
from moeprof.core.errors import EngineError
from moeprof.core.trace import IntArray, Schedule


class RowsOfTokens(Protocol):
    """Which row of a table of picks each token of a forward takes. It knows the layout, never what is computed."""

    @property
    def num_rows(self) -> int:
        """R."""

    def rows(self, layout: BatchLayout, *, wrap: bool = False) -> IntArray:
        """Rows of the real tokens of a forward [T]; ``wrap``: any row will do for tokens that have none (warm-up)."""


def places(layout: BatchLayout) -> tuple[IntArray, IntArray]:
    """Request and position of each real token of a forward [T]."""
    request_S, query_S = np.array(layout.requests, dtype=np.int64), np.array(layout.query_tokens, dtype=np.int64)
    past_S = np.array(layout.past_tokens or (0,) * len(request_S), dtype=np.int64)
    if len(query_S) == query_S.sum():
        return request_S, past_S  # every step of decode comes here
    first_T = np.repeat(query_S.cumsum() - query_S, query_S)
    return np.repeat(request_S, query_S), np.arange(len(first_T)) - first_T + np.repeat(past_S, query_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """Where a request's tokens stand in a table.

    Attributes:
        start_N: first row of each request.
        tokens_N: tokens of each request that are ever computed: prompt and output but the last output token.
    """

    start_N: IntArray
    tokens_N: IntArray

    @staticmethod
    def of(schedule: Schedule) -> Positions:
        """Rows for every token that a schedule computes."""
        tokens_N = np.maximum(schedule.input_tokens + schedule.output_tokens - 1, 1)
        return Positions(start_N=np.cumsum(tokens_N) - tokens_N, tokens_N=tokens_N)

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.tokens_N.sum())

    def rows(self, layout: BatchLayout, *, wrap: bool = False) -> IntArray:
        """Rows of the real tokens of a forward [T].

        Args:
            layout: what the forward holds.
            wrap: borrow rows for tokens of other requests (warm-up), by counting round.

        Raises:
            EngineError: a token has no row, and ``wrap`` is off.
        """
        request_T, position_T = places(layout)
        if wrap:
            request_T = request_T % len(self.start_N)
            position_T = position_T % self.tokens_N[request_T]
        elif (request_T >= len(self.start_N)).any() or (position_T >= self.tokens_N[request_T]).any():
            raise EngineError(f"no picks for a token of requests {layout.requests}: the schedule has no such position")
        rows_T: IntArray = self.start_N[request_T] + position_T
        return rows_T


UintArray = npt.NDArray[np.uint64]
MAX_REQUESTS = 4096  # whose rows are remembered
FIRST_POSITIONS = 512  # of a request are worked out at once; then twice as many


def hashed(seed: int, first: IntArray, second: IntArray, stream: int = 0) -> UintArray:
    """Independent 64-bit numbers for pairs of integers: three rounds of the splitmix64 finaliser.

    Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators" (constants of splitmix64).
    """
    value = np.full(np.broadcast(first, second).shape, (seed * 2 + 1) % 2**63 + stream, dtype=np.uint64)
    for part in (first, second):
        value = _mixed(value + part.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return _mixed(value)


def _mixed(value: UintArray) -> UintArray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnRows:
    """Rows at random, by hashing.

    Attributes:
        num_rows: rows of the table.
        seed: of the draws.
        correlation: chance that a token keeps the row of the token before it; runs have geometric lengths. The chance
            of any row stays what it is, so popularity does too.
    """

    num_rows: int
    seed: int
    correlation: float = 0.0
    _rows_of: dict[int, IntArray] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, layout: BatchLayout, *, wrap: bool = False) -> IntArray:
        """Rows of the real tokens of a forward [T]; every token has one."""
        if not self.correlation:
            return self._drawn(*places(layout))
        past_S = layout.past_tokens or (0,) * len(layout.requests)
        parts = zip(layout.requests, past_S, layout.query_tokens, strict=True)
        if len(layout.requests) == sum(layout.query_tokens):  # every step of decode comes here
            rows_S = [self._rows_until(request, past)[past] for request, past, _ in parts]
            return np.array(rows_S, dtype=np.int64)
        return np.concatenate([self._rows_until(r, past + query)[past : past + query] for r, past, query in parts])

    def _drawn(self, request: IntArray, position: IntArray) -> IntArray:
        rows: IntArray = (hashed(self.seed, request, position) % np.uint64(self.num_rows)).astype(np.int64)
        return rows

    def _rows_until(self, request: int, position: int) -> IntArray:
        """Rows of a request's first positions [P], that one among them."""
        known = self._rows_of.get(request)
        if known is not None and position < len(known):
            return known
        if len(self._rows_of) >= MAX_REQUESTS:
            self._rows_of.clear()
        size = FIRST_POSITIONS
        while size <= position:
            size *= 2
        position_P, request_P = np.arange(size), np.full(size, request)
        chance_P = hashed(self.seed, request_P, position_P, stream=1) / 2.0**64
        start_P = np.maximum.accumulate(np.where(chance_P < self.correlation, 0, position_P))
        self._rows_of[request] = self._drawn(request_P, start_P)
        return self._rows_of[request]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobinRows:
    """Consecutive rows for the tokens of a forward; where it begins depends on its first token alone."""

    num_rows: int

    def rows(self, layout: BatchLayout, *, wrap: bool = False) -> IntArray:
        """Rows of the real tokens of a forward [T]."""
        past = layout.past_tokens[:1] or (0,)
        start = hashed(0, np.array(layout.requests[:1]), np.array(past)) % np.uint64(self.num_rows)
        rows_T: IntArray = (int(start[0]) + np.arange(sum(layout.query_tokens))) % self.num_rows
        return rows_T
