"""Where the cache keeps each token, so that a step's read index is made by a few tensor operations.

transformers lists the place of every cached token of every sequence in Python, each step: with 16 sequences of 1,000
tokens that is a tenth of a decode step. The pages of a sequence are enough: token t lies at
``pages[t // page_tokens] * stride + t % page_tokens``. Where the cache is not of the one known kind, the stock list
stays in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class PageTable:
    """The pages of a step's sequences, and from them the cache slots of their tokens."""

    def __init__(self, pages: list[list[int]], stride: int, offsets: torch.Tensor) -> None:
        """``pages`` per sequence; ``stride``: slots from one page to the next; ``offsets``: slots within a page."""
        self._pages, self._stride, self._offsets = pages, stride, offsets

    def slots(self, sequences: list[int], num_tokens: int) -> torch.Tensor:
        """Cache slots of the first ``num_tokens`` tokens, rounded up to whole pages, of these sequences; [B, W].

        Slots past a sequence's end hold finite numbers of no meaning; whoever reads them masks them.
        """
        num_pages = -(-num_tokens // len(self._offsets))
        first_slots = np.zeros((len(sequences), num_pages, 1), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            pages = self._pages[sequence][:num_pages]
            first_slots[row, : len(pages), 0] = pages
        first_slots *= self._stride
        return (torch.from_numpy(first_slots).to(self._offsets.device) + self._offsets).flatten(1)


class PagedReads:
    """Takes the read index over from a cache with one allocator of full attention."""

    def __init__(self, allocator: Any, device: torch.device) -> None:
        self._allocator = allocator
        self._offsets = torch.arange(allocator.tokens_per_page, device=device)

    def table(self, request_ids: Sequence[str]) -> PageTable:
        """The pages of these requests, now."""
        block_table = self._allocator.block_table
        return PageTable(
            [block_table[key] for key in request_ids], self._allocator.block_physical_stride, self._offsets
        )


def take_over_reads(cache: Any, device: torch.device) -> PagedReads | None:
    """Stop the cache from listing reads, or None where it is of another kind (transformers 5.17, sliding windows).

    One entry per sequence stays in the list: an empty one would say that nothing is to be read.
    """
    allocators = list(getattr(cache, "cache_allocators", {}).values())
    if len(allocators) != 1 or not all(hasattr(allocators[0], name) for name in ("block_table", "tokens_per_page")):
        return None
    allocator = allocators[0]
    page_tokens, stride = allocator.tokens_per_page, allocator.block_physical_stride

    def extend(
        request_id: str,
        past_length: int,
        query_length: int,
        read_index: list[list[int]] | None,
        write_index: list[list[int]],
    ) -> None:
        if query_length == 1:
            page, offset = divmod(past_length, page_tokens)
            write_index[0].append(allocator.block_table[request_id][page] * stride + offset)
        else:
            write_index[0].extend(allocator.get_write_indices(request_id, past_length, query_length))
        if read_index is not None:
            read_index[0].append(0)

    cache.extend_read_and_write_indices = extend
    return PagedReads(allocator, device)
