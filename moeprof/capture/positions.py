"""Every token that a schedule computes has a row: its request and its place in it. Numpy only.

Suffix legend: N requests, R rows, S sequences of a forward, T its real tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moeprof.capture.engine.base import BatchLayout
from moeprof.core.errors import EngineError
from moeprof.core.trace import IntArray, Schedule


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
        request_S, query_S = np.array(layout.requests, dtype=np.int64), np.array(layout.query_tokens, dtype=np.int64)
        past_S = np.array(layout.past_tokens, dtype=np.int64)
        if wrap:
            request_S = request_S % len(self.start_N)
        elif (request_S >= len(self.start_N)).any() or (past_S + query_S > self.tokens_N[request_S]).any():
            raise EngineError(f"no picks for a token of requests {layout.requests}: the schedule has no such position")
        if not wrap and len(query_S) == query_S.sum():
            rows_S: IntArray = self.start_N[request_S] + past_S
            return rows_S  # every step of decode comes here
        first_T = np.repeat(query_S.cumsum() - query_S, query_S)
        position_T = np.arange(len(first_T)) - first_T + np.repeat(past_S, query_S)
        if wrap:
            position_T = position_T % np.repeat(self.tokens_N[request_S], query_S)
        rows_T: IntArray = np.repeat(self.start_N[request_S], query_S) + position_T
        return rows_T
