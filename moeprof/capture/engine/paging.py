"""Where the cache keeps each token, so that a step's read index is made by a few tensor operations.

transformers lists the place of every cached token of every sequence in Python, each step: with 16 sequences of 1,000
tokens that is a tenth of a decode step. The pages of a sequence are enough: token t lies at
``pages[t // page_tokens] * stride + t % page_tokens``. Where the cache is not of the one known kind, the stock list
stays in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class PageTable:
    """The pages of a step's sequences.

    Attributes:
        pages: page numbers, rows padded with 0, shape [sequences, most pages].
        page_tokens: tokens in a page.
        stride: cache slots from one page to the next.
    """

    pages: torch.Tensor
    page_tokens: int
    stride: int

    def slots(self, sequences: list[int]) -> torch.Tensor:
        """Cache slots of all tokens that the pages of these sequences can hold, [B, most pages * page_tokens].

        Slots past a sequence's end hold finite numbers of no meaning; whoever reads them masks them.
        """
        pages = self.pages if sequences == list(range(len(self.pages))) else self.pages[sequences]
        return (pages[:, :, None] * self.stride + self._offsets()).flatten(1)

    def _offsets(self) -> torch.Tensor:
        return torch.arange(self.page_tokens, device=self.pages.device)


class PagedReads:
    """Takes the read index over from a cache with one allocator of full attention."""

    def __init__(self, allocator: Any, device: torch.device) -> None:
        self._allocator, self._device = allocator, device

    def table(self, request_ids: Sequence[str]) -> PageTable:
        """The pages of these requests, now."""
        rows = [self._allocator.block_table[key] for key in request_ids]
        most = max(map(len, rows))
        padded = [row + [0] * (most - len(row)) for row in rows]
        return PageTable(
            torch.tensor(padded, device=self._device),
            self._allocator.tokens_per_page,
            self._allocator.block_physical_stride,
        )


def take_over_reads(cache: Any, device: torch.device) -> PagedReads | None:
    """Stop the cache from listing reads, or None where it is of another kind (transformers 5.17, sliding windows).

    One entry per sequence stays in the list: an empty one would say that nothing is to be read.
    """
    allocators = list(getattr(cache, "cache_allocators", {}).values())
    if len(allocators) != 1 or not all(hasattr(allocators[0], name) for name in ("block_table", "tokens_per_page")):
        return None
    allocator = allocators[0]

    def extend(
        request_id: str,
        past_length: int,
        query_length: int,
        read_index: list[list[int]] | None,
        write_index: list[list[int]],
    ) -> None:
        write_index[0].extend(allocator.get_write_indices(request_id, past_length, query_length))
        if read_index is not None:
            read_index[0].append(0)

    cache.extend_read_and_write_indices = extend
    return PagedReads(allocator, device)
