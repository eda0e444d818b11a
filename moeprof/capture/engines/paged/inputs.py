"""A step's inputs on the device: what the host knows, sent in one copy, and what only the device knows.

The host sends a few integers per token; the last token of each sequence stays on the device, so that a step can be
launched before the host knows what the one before it said.
Legend: T tokens of a step, B sequences that decode, C sequences that get a token, N seats, P pages of a table row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Many

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture.engines.paged.sequences import PAGE_TOKENS, Part, Sequence

NO_TOKEN = -1
STAGES = (
    12  # pinned buffers in turn: a copy under way must not be overwritten; three tables a step, two steps under way
)
IntArray = npt.NDArray[np.int64]


class Seats:
    """Tables with a row per seat, on the device.

    Attributes:
        table_NP: int32 pages of the sequence in the seat.
        last_token_N: what it said last.
    """

    def __init__(self, num_seats: int, pages_per_sequence: int, device: torch.device) -> None:
        self.table_NP = torch.zeros(num_seats, pages_per_sequence, dtype=torch.int32, device=device)
        self.last_token_N = torch.zeros(num_seats, dtype=torch.int64, device=device)

    def enter(self, sequences: Many[Sequence]) -> None:
        """Write the pages of sequences that were let in."""
        for sequence in sequences:
            pages = torch.tensor(sequence.pages, dtype=torch.int32)
            if self.table_NP.is_cuda:
                pages = pages.pin_memory()
            self.table_NP[sequence.seat, : len(sequence.pages)].copy_(pages, non_blocking=True)


class Staging:
    """Sends small integer tables to the device without waiting for it."""

    def __init__(self, device: torch.device, size: int) -> None:
        """``size``: most integers of a table."""
        self._device = device
        self._free: deque[torch.Tensor] = deque()
        if device.type == "cuda":
            self._free.extend(torch.empty(size, dtype=torch.int64, pin_memory=True) for _ in range(STAGES))

    def send(self, values: IntArray, to: torch.Tensor | None = None) -> torch.Tensor:
        """``values`` on the device, in the tensor ``to`` if given (same shape)."""
        source = torch.from_numpy(values)
        if self._device.type != "cuda":
            return source if to is None else to.copy_(source)
        stage = self._free[0]
        self._free.rotate(-1)
        pinned = stage[: values.size].view(values.shape).copy_(source)
        target = torch.empty(values.shape, dtype=torch.int64, device=self._device) if to is None else to
        return target.copy_(pinned, non_blocking=True)


def decode_rows(parts: Many[Part], width: int) -> IntArray:
    """What a decode step needs of the host, [3, width]: seat, position, token to feed (or ``NO_TOKEN``).

    Rows past the parts repeat the first: padding that reads and writes what a real token does anyway.
    """
    own = [(part.sequence.seat, part.past, fed_token(part)) for part in parts]
    own.extend([own[0]] * (width - len(own)))
    return np.ascontiguousarray(np.array(own, dtype=np.int64).T)


def fed_token(part: Part) -> int:
    """The forced token that a decoding sequence is fed, or ``NO_TOKEN`` where the model's own choice is."""
    output_ids = part.sequence.request.output_ids
    return NO_TOKEN if output_ids is None or part.output_number is None else output_ids[part.output_number - 1]


def token_rows(parts: Many[Part]) -> IntArray:
    """What any step needs of the host, [4, T]: token, position, slot, and the seat of its last token or ``NO_TOKEN``.

    A seat stands where the token is the model's own choice, which only the device knows. Decoding sequences first.
    """
    decoding = [_decode_row(part) for part in parts if not part.is_prefill]
    blocks = [np.array(decoding, dtype=np.int64).reshape(-1, 4).T] if decoding else []
    blocks.extend(_prompt_rows(part) for part in parts[len(decoding) :])
    return np.concatenate(blocks, axis=1)


def _decode_row(part: Part) -> tuple[int, int, int, int]:
    token, page = fed_token(part), part.sequence.pages[part.past // PAGE_TOKENS]
    seat = part.sequence.seat if token == NO_TOKEN else NO_TOKEN
    return max(token, 0), part.past, page * PAGE_TOKENS + part.past % PAGE_TOKENS, seat


def _prompt_rows(part: Part) -> IntArray:
    first, end = part.past, part.past + part.query_tokens
    position = np.arange(first, end)
    pages = np.array(part.sequence.pages, dtype=np.int64)
    slot = pages[position // PAGE_TOKENS] * PAGE_TOKENS + position % PAGE_TOKENS
    token = np.array(part.sequence.request.input_ids[first:end], dtype=np.int64)
    return np.stack([token, position, slot, np.full(len(token), NO_TOKEN)])


def emitting(parts: Many[Part]) -> tuple[IntArray, list[Part]]:
    """Who gets a token: [2, C] last row and seat of each, and the parts themselves."""
    ends = np.cumsum([part.query_tokens for part in parts]) - 1
    chosen = [(int(end), part) for end, part in zip(ends, parts, strict=True) if part.output_number is not None]
    table = np.array([[end for end, _ in chosen], [part.sequence.seat for _, part in chosen]], dtype=np.int64)
    return table.reshape(2, -1), [part for _, part in chosen]
