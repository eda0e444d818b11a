"""Where each sequence of a step lies among its queries and keys, and which sequences decode together.

One attention call per sequence and layer costs more than its arithmetic when sequences are short, so sequences with one
query each share a call: their keys are read padded to the longest of the group, the padding masked. The cache reads
keys by an index anyway, so padding costs no copy of its own; the index is rewritten once per step, not once per layer.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

import numpy as np
import torch

from moeprof.capture.engines.paging import PageTable

PADDING_TOKENS = 128  # most keys of padding per sequence; reading them costs about as much as a call saves
WIDTH_MULTIPLE = 16  # as whole pages have it: fused CUDA kernels copy a mask whose rows are not aligned


class DecodeGroup:
    """Sequences with one query each that attend in one call.

    Attributes:
        size: how many, B.
        width: keys of each with padding, W.
        first_key: where their keys begin among the keys as read.
        end_key: where they end.
    """

    def __init__(
        self, rows: list[int], key_tokens: list[int], width: int, first_key: int, device: torch.device
    ) -> None:
        """``rows``: places among the step's queries; ``key_tokens``: keys of each."""
        self.size, self.width, self.first_key = len(rows), width, first_key
        self.end_key = first_key + len(rows) * width
        self._rows, self._key_tokens, self._device = rows, key_tokens, device
        self._mask: torch.Tensor | None = None

    @cached_property
    def rows(self) -> torch.Tensor:
        """Their places among the queries, shape [B]."""
        return torch.tensor(self._rows, device=self._device)

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores, [B, 1, 1, W]: 0 for keys, -inf for padding. Made once per step."""
        if self._mask is None:
            # In numpy: a handful of tiny torch operations would cost more than the attention of a small step.
            padding = np.arange(self.width) >= np.array(self._key_tokens)[:, None]
            scores = np.where(padding, np.float32("-inf"), np.float32(0))[:, None, None]
            self._mask = torch.from_numpy(scores).to(self._device, dtype)
        return self._mask


class StepEdges:
    """The plan of a step.

    Attributes:
        groups: sequences that decode together.
        spans: (first query, end query, first key, end key) of every other sequence.
        only_group: the group when all sequences of the step are in it, in order; else None.
    """

    def __init__(
        self, query_tokens: list[int], key_tokens: list[int], device: torch.device, pages: PageTable | None = None
    ) -> None:
        """``pages``: where the keys lie; None when the cache lists them itself."""
        self._device, self._pages = device, pages
        self._masks: dict[tuple[int, int], torch.Tensor] = {}
        self._read_index: list[torch.Tensor] | None = None
        self.groups: list[DecodeGroup] = []
        self.only_group: DecodeGroup | None = None
        self._key_tokens = key_tokens
        self._first_query = list(accumulate(query_tokens, initial=0))
        self._first_key = list(accumulate(key_tokens, initial=0))
        # Without cached tokens nothing is read back, so there is no index to make.
        any_past = query_tokens != key_tokens
        together = [i for i, num in enumerate(query_tokens) if num == 1] if any_past else []
        members = alike(together, key_tokens)
        grouped = {i for group in members for i in group}
        alone = [i for i in range(len(query_tokens)) if i not in grouped]
        parts = [self._add_group(group) for group in members]
        self.spans: list[tuple[int, int, int, int]] = []
        first = self.groups[-1].end_key if members else 0
        for i in alone:
            self.spans.append((self._first_query[i], self._first_query[i + 1], first, first + key_tokens[i]))
            first += key_tokens[i]
            if members or (any_past and pages is not None):
                parts.append(self._slots([i])[0, : key_tokens[i]])
        self._order = torch.cat(parts) if len(parts) > 1 else parts[0] if parts else None
        if members and members[0] == list(range(len(query_tokens))):
            self.only_group = self.groups[0]

    def _add_group(self, group: list[int]) -> torch.Tensor:
        """Make a group; returns which keys it reads, padding included, [B * W]."""
        slots = self._slots(group)
        rows, key_tokens = [self._first_query[i] for i in group], [self._key_tokens[i] for i in group]
        first_key = self.groups[-1].end_key if self.groups else 0
        self.groups.append(DecodeGroup(rows, key_tokens, slots.shape[1], first_key, self._device))
        return slots.flatten()

    def _slots(self, sequences: list[int]) -> torch.Tensor:
        """Where to read the keys of these sequences: slots of the cache, or places in its own list; [B, W]."""
        most = max(self._key_tokens[i] for i in sequences)
        if self._pages is not None:
            return self._pages.slots(sequences, most)
        most = -(-most // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        table = [[self._first_key[i] for i in sequences], [self._first_key[i + 1] - 1 for i in sequences]]
        first, last = torch.tensor(table, device=self._device)
        return torch.minimum(first[:, None] + torch.arange(most, device=self._device), last[:, None])

    def read_index(self, stock: list[torch.Tensor]) -> list[torch.Tensor]:
        """The cache's read index in the order of the plan; the same for every layer, so made once."""
        if self._order is None:
            return stock
        if self._pages is not None:
            return [self._order]
        if self._read_index is None:
            self._read_index = [index[self._order] for index in stock]
        return self._read_index

    def chunk_mask(self, num_q: int, num_k: int, dtype: torch.dtype) -> torch.Tensor:
        """What to add to the scores of a prompt chunk that continues cached tokens, [num_q, num_k]: 0 or -inf.

        Made once per step. A boolean mask would be turned into this one by every layer anew.
        """
        mask = self._masks.get((num_q, num_k))
        if mask is None:
            hidden = torch.full((num_q, num_k), float("-inf"), dtype=dtype, device=self._device)
            mask = self._masks[num_q, num_k] = hidden.triu(num_k - num_q + 1)
        return mask


def alike(sequences: list[int], key_tokens: list[int]) -> list[list[int]]:
    """Sequences in groups whose key counts differ by at most PADDING_TOKENS; all in order where one group will do."""
    if not sequences:
        return []
    counts = [key_tokens[i] for i in sequences]
    if max(counts) - min(counts) <= PADDING_TOKENS:
        return [sequences]
    groups: list[list[int]] = []
    for i in sorted(sequences, key=lambda i: key_tokens[i], reverse=True):
        if groups and key_tokens[groups[-1][0]] - key_tokens[i] <= PADDING_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups
