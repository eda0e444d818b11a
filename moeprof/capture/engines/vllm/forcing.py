"""Forced ids in vLLM's first model runner: what was sampled is written over before anything has read it.

A logits processor in Python costs up to a quarter of a small model's step. Here one row of a table per request and one
gather per step do: the sampler runs as always, its choice is kept as the model's own, and the ids of the schedule take
its place. (The second runner, on CUDA, does this on the device: ``trace_decode_token_ids``.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FIRST_ROWS, FIRST_WIDTH = 64, 256


class Forcing:
    """The ids that requests are made to have, a row of a table each."""

    def __init__(self) -> None:
        self._table: npt.NDArray[np.int64] = np.zeros((FIRST_ROWS, FIRST_WIDTH), dtype=np.int64)
        self._prompt: npt.NDArray[np.int64] = np.zeros(FIRST_ROWS, dtype=np.int64)
        self._free = list(range(FIRST_ROWS))[::-1]
        self._row_of: dict[str, int] = {}
        self._seen: list[str] = []
        self._rows: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._order: list[str] = []
        self._chosen: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def add(self, request: str, prompt_tokens: int, ids: Sequence[int]) -> None:
        """A request that is to have these ids, the first one after its prompt."""
        if not self._free or len(ids) > self._table.shape[1]:
            self._grow(len(ids))
        row = self._free.pop()
        self._table[row, : len(ids)] = ids
        self._prompt[row], self._row_of[request], self._seen = prompt_tokens, row, []

    def forget(self, request: str) -> None:
        """It has ended; others may have its row."""
        row = self._row_of.pop(request, None)
        if row is not None:
            self._free.append(row)
            self._seen = []

    def clear(self) -> None:
        """Forget all."""
        for request in list(self._row_of):
            self.forget(request)

    @property
    def chosen(self) -> Mapping[str, int]:
        """What the model itself took in the last step; of rows that are inside of their prompt as well."""
        return dict(zip(self._order, self._chosen.tolist(), strict=True))

    def put_on(self, runner: Any) -> None:
        """Stand behind the runner's sampler."""
        sample, batch = runner.sampler.forward, runner.input_batch

        def forced(*args: Any, **kwargs: Any) -> Any:
            output = sample(*args, **kwargs)
            self.write_over(output.sampled_token_ids, batch.req_ids, batch.num_tokens_no_spec)
            return output

        runner.sampler.forward = forced

    def write_over(self, sampled: Any, requests: Sequence[str], num_tokens: npt.NDArray[Any]) -> None:
        """Keep what was sampled, and put the forced ids in its place.

        Args:
            sampled: a host tensor [requests, 1] of ids.
            requests: internal ids, row by row.
            num_tokens: tokens of each that are known: prompt and outputs so far.
        """
        size = len(sampled)
        ids = sampled[:, 0].numpy()  # the tensor's own memory
        self._order, self._chosen = list(requests[:size]), ids.astype(np.int64)
        if self._order != self._seen:
            self._seen = self._order
            self._rows = np.array([self._row_of.get(request, -1) for request in self._seen], dtype=np.int64)
        number = num_tokens[:size] - self._prompt[self._rows]
        forced = self._table[self._rows, np.clip(number, 0, self._table.shape[1] - 1)]
        ids[:] = np.where(self._rows < 0, ids, forced)

    def _grow(self, width: int) -> None:
        rows, old_width = self._table.shape
        more = 0 if self._free else rows
        table = np.zeros((rows + more, max(width, old_width)), dtype=np.int64)
        table[:rows, :old_width] = self._table
        self._table, self._prompt = table, np.concatenate([self._prompt, np.zeros(more, dtype=np.int64)])
        self._free = list(range(rows, rows + more))[::-1] + self._free
