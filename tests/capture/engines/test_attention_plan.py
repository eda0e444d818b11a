"""Which sequences of a step decode together, and which keys they read, on numbers one can follow."""

from __future__ import annotations

import torch

from moeprof.capture.engines.attention_plan import PADDING_TOKENS, StepEdges
from moeprof.capture.engines.paging import PageTable

CPU = torch.device("cpu")


def test_sequences_that_decode_share_one_group_padded_to_the_longest() -> None:
    edges = StepEdges([1, 1], [3, 5], CPU)
    group = edges.only_group
    assert group is not None and edges.spans == []
    assert (group.size, group.width, group.first_key, group.end_key) == (2, 16, 0, 32)
    (read,) = edges.read_index([torch.arange(100, 108)])
    assert read[:4].tolist() == [100, 101, 102, 102], "padding reads the last key again"
    assert read[16:22].tolist() == [103, 104, 105, 106, 107, 107]
    assert torch.isfinite(group.mask(torch.float32)).sum(dim=-1).flatten().tolist() == [3, 5]


def test_a_prompt_chunk_attends_alone_after_the_group() -> None:
    edges = StepEdges([1, 4, 1], [3, 6, 5], CPU)
    assert edges.only_group is None
    assert [group.rows.tolist() for group in edges.groups] == [[0, 5]]
    assert edges.spans == [(1, 5, 32, 38)]
    (read,) = edges.read_index([torch.arange(14)])
    assert read[32:].tolist() == [3, 4, 5, 6, 7, 8]


def test_fresh_prompts_read_nothing_back_so_the_index_stays_as_it_is() -> None:
    edges = StepEdges([4, 1], [4, 1], CPU)
    stock = [torch.empty(0, dtype=torch.int64)]
    assert edges.read_index(stock) is stock
    assert edges.groups == [] and edges.spans == [(0, 4, 0, 4), (4, 5, 4, 5)]


def test_long_and_short_sequences_do_not_share_a_group() -> None:
    lengths = [10, 20 + PADDING_TOKENS, 12, 1000]
    groups = StepEdges([1] * 4, lengths, CPU).groups
    assert [group.rows.tolist() for group in groups] == [[3], [1], [2, 0]]


def test_pages_give_the_slots_of_every_token() -> None:
    # Pages of 4 tokens, 10 slots apart: sequence 0 lies in pages 2 and 0, sequence 1 in page 5.
    pages = PageTable([[2, 0], [5]], 10, torch.arange(4))
    assert pages.slots([0], 6).tolist() == [[20, 21, 22, 23, 0, 1, 2, 3]]
    assert pages.slots([0, 1], 4).tolist() == [[20, 21, 22, 23], [50, 51, 52, 53]]
    assert pages.slots([1], 5).tolist() == [[50, 51, 52, 53, 0, 1, 2, 3]], "a page that is not there reads page 0"


def test_with_pages_a_chunk_reads_its_own_tokens_only() -> None:
    pages = PageTable([[2, 0], [5]], 10, torch.arange(4))
    edges = StepEdges([2, 3], [6, 3], CPU, pages)
    (read,) = edges.read_index([])
    assert read.tolist() == [20, 21, 22, 23, 0, 1, 50, 51, 52]
    assert edges.spans == [(0, 2, 0, 6), (2, 5, 6, 9)]


def test_a_chunk_mask_hides_what_comes_later() -> None:
    mask = StepEdges([2], [4], CPU).chunk_mask(2, 4, torch.float32)
    assert torch.isfinite(mask).tolist() == [[True, True, True, False], [True] * 4]
