"""One forward of a step: eager for any batch, and the form of a decode step that can be captured.

Legend: T tokens of a step, B rows of a decode step, C sequences that get a token, N seats, P pages of a table row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence as Many
from typing import Any

import torch

from moeprof.capture.engines.paged.cache import PagedCache, StepContext
from moeprof.capture.engines.paged.eager import EagerPlan
from moeprof.capture.engines.paged.inputs import Seats, Staging, decode_rows, emitting, token_rows
from moeprof.capture.engines.paged.sequences import PAGE_TOKENS, Part, pages_for


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
