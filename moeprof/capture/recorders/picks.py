"""Every pick of every token (``--save-detailed``): ``picks/part-<n>.npz``, in the order tokens were computed.

Each part holds picks_TLK (smallest integer type), request_T, position_T (token position in its sequence) and step_T.
Parts are compressed when the pass is over: that takes longer than a step. The tap bounds the bytes; tokens that were
left out are counted in ``picks/left_out.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.capture.engine.base import Step
from moeprof.capture.routing_blocks import RoutingBlock
from moeprof.core.record import write_json

PART_BYTES = 8 * 2**20


class PicksWriter:
    """Buffers picks and writes them in parts of about eight megabytes (Q: sequences of the steps of a block)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "picks"
        self._folder.mkdir()
        self._buffer: list[tuple[npt.NDArray[Any], ...]] = []
        self._bytes = self._part = self._left_out = 0

    def append(self, first_step: int, steps: list[Step], block: RoutingBlock) -> None:
        """Add a block's picks, with whose tokens they are."""
        self._left_out += block.picks_left_out_tokens
        if block.picks_TLK is None:
            return
        kept = [(first_step + i, step) for i, step in enumerate(steps) if block.picks_tokens_S[i]]
        sequences = [sequence for _, step in kept for sequence in step.sequences]
        # A few long vectors: one small array per sequence would cost more than the step that it is about.
        query_Q = np.array([sequence.query_tokens for sequence in sequences], dtype=np.int32)
        shift_Q = np.array([sequence.past_tokens for sequence in sequences], dtype=np.int32) - (
            query_Q.cumsum(dtype=np.int32) - query_Q
        )
        request_T = np.array([sequence.request for sequence in sequences], dtype=np.int32).repeat(query_Q)
        position_T = np.arange(len(request_T), dtype=np.int32) + shift_Q.repeat(query_Q)
        step_T = np.repeat(
            np.array([number for number, _ in kept], dtype=np.int32),
            [step.prefill_tokens + step.decode_tokens for _, step in kept],
        )
        self._buffer.append((block.picks_TLK, request_T, position_T, step_T))
        self._bytes += block.picks_TLK.nbytes
        if self._bytes >= PART_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the rest, compress the parts, and say what was left out."""
        self._flush()
        for part in range(self._part):
            path = self._folder / f"part-{part}.npz"
            with np.load(path) as arrays:
                found = dict(arrays)
            np.savez_compressed(self._folder / "compressed.npz", **found)
            (self._folder / "compressed.npz").replace(path)
        write_json(self._folder / "left_out.json", {"tokens": self._left_out, "reason": "instruments.picks_cap_mib"})

    def _flush(self) -> None:
        if not self._buffer:
            return
        names = ("picks_TLK", "request_T", "position_T", "step_T")
        arrays: dict[str, Any] = {
            name: np.concatenate([row[i] for row in self._buffer]) for i, name in enumerate(names)
        }
        np.savez(self._folder / f"part-{self._part}.npz", **arrays)
        self._buffer.clear()
        self._bytes, self._part = 0, self._part + 1
