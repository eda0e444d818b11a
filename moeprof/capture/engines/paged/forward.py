"""One forward of a step: eager for any batch, and the form of a decode step that can be captured; and its inputs.

The host sends a few integers per token in one copy; the last token of each sequence stays on the device, so that a step
can be launched before the host knows what the one before it said.
Legend: T tokens of a step, B rows of a decode step, C sequences that get a token, N seats, P pages of a table row.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence as Many
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture.engines.paged.attention import EagerPlan
from moeprof.capture.engines.paged.cache import PagedCache, StepContext
from moeprof.capture.engines.paged.sequences import PAGE_TOKENS, Part, Sequence, pages_for


class Forward:
    """Runs the model over a paged cache and chooses the likeliest token; returns device tensors, waits for nothing."""

    def __init__(self, model: Any, cache: PagedCache, seats: Seats, staging: Staging) -> None:
        self._model, self._cache, self._seats, self._staging = model, cache, seats, staging
        self._device = seats.table_NP.device
        self._keeps_few_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def eager(self, parts: Many[Part]) -> torch.Tensor:
        """Any step; the chosen token of every sequence that gets one, [C]."""
        rows_4T = token_rows(parts)
        last_2C, _ = emitting(parts)
        whole = self._staging.send(rows_4T)
        last_row_C, seat_C = self._staging.send(last_2C)
        token_T, position_T, slot_T, seat_T = whole
        if (rows_4T[3] >= 0).any():
            token_T = torch.where(seat_T >= 0, self._seats.last_token_N[seat_T.clamp(min=0)], token_T)
        self._cache.step = self._context(parts, slot_T)
        logits_CV = self._logits(token_T, position_T, last_row_C)
        return self._choose(logits_CV, seat_C)

    def _context(self, parts: Many[Part], slots_T: torch.Tensor) -> StepContext:
        plan = EagerPlan(list(parts), self._device)
        decoding = parts[: plan.num_decode]
        plain = all(layer.facts.is_plain for layer in self._cache.layers)
        if not decoding or (plan.groups and plain):
            return StepContext(slots_T=slots_T, eager=plan)
        rows_3B = self._staging.send(decode_rows(decoding, len(decoding)))
        num_pages = pages_for(max(part.past + 1 for part in decoding))
        return StepContext(
            slots_T=slots_T,
            table_BP=self._seats.table_NP[:, :num_pages].index_select(0, rows_3B[0]),
            context_B=(rows_3B[1] + 1).int(),
            eager=plan,
        )

    def decode(self, rows_3B: torch.Tensor, num_pages: int) -> torch.Tensor:
        """A step of decoding rows from a static table (:func:`decode_rows`); can be captured. Chosen tokens [B]."""
        seat_B, position_B, fed_B = rows_3B
        token_B = torch.where(fed_B >= 0, fed_B, self._seats.last_token_N.index_select(0, seat_B))
        table_BP = self._seats.table_NP[:, :num_pages].index_select(0, seat_B)
        page_B = table_BP.gather(1, (position_B // PAGE_TOKENS)[:, None])[:, 0]
        self._cache.step = StepContext(
            slots_T=page_B.long() * PAGE_TOKENS + position_B % PAGE_TOKENS,
            table_BP=table_BP,
            context_B=(position_B + 1).int(),
        )
        logits_BV = self._logits(token_B, position_B, None)
        return self._choose(logits_BV, seat_B)

    def _logits(self, token_T: torch.Tensor, position_T: torch.Tensor, keep_C: torch.Tensor | None) -> torch.Tensor:
        few = {} if keep_C is None or not self._keeps_few_logits else {"logits_to_keep": keep_C}
        out = self._model(input_ids=token_T[None], position_ids=position_T[None], use_cache=False, **few)
        logits: torch.Tensor = out.logits[0]
        return logits if keep_C is None or few else logits.index_select(0, keep_C)

    def _choose(self, logits_CV: torch.Tensor, seat_C: torch.Tensor) -> torch.Tensor:
        chosen_C = logits_CV.argmax(dim=-1)
        self._seats.last_token_N.index_copy_(0, seat_C, chosen_C)
        return chosen_C


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
