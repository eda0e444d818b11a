"""Every token that a schedule computes has a row: its request and its place in it. Numpy only.

Suffix legend: N requests, R rows, S sequences of a forward, T its real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from moeprof.capture.engine.base import BatchLayout
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
