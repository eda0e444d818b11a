"""A mixture of experts small enough to count by hand: every token goes where a test says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moeprof.capture.engines.base import BatchLayout
from moeprof.capture.routing.count import RoutingBlock
from moeprof.capture.routing.tap import RoutingTap

torch.set_num_threads(1)
EXPERTS, TOP_K, WIDTH = 4, 2, 3


class PlainExperts(nn.Module):
    """Experts as transformers calls them; expert e multiplies by e + 1."""

    def __init__(self, num_experts: int = EXPERTS) -> None:
        super().__init__()
        scale = torch.arange(1, num_experts + 1, dtype=torch.float32)[:, None, None]
        self.down_proj = nn.Parameter(scale.expand(num_experts, WIDTH, WIDTH).clone())

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
        scale = self.down_proj[:, 0, 0][top_k_index]
        return hidden_states * (scale * top_k_weights).sum(-1, keepdim=True)


class Block(nn.Module):
    """Sends every token to the picks that a test put into ``picks``."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts, self.top_k = experts, TOP_K
        self.picks = torch.zeros(0, TOP_K, dtype=torch.int64)

    def forward(self, hidden: Any) -> Any:
        return self.experts(hidden, self.picks, torch.full(self.picks.shape, 0.5))


class Model(nn.Module):
    def __init__(
        self, num_layers: int = 2, experts: type[nn.Module] = PlainExperts, block: type[Block] = Block
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(experts()) for _ in range(num_layers))

    def forward(self, *picks: Any) -> None:
        for layer, chosen in zip(self.layers, picks, strict=True):
            layer.picks = torch.as_tensor(chosen)
            layer(torch.ones(layer.picks.shape[0], WIDTH))


def run(tap: RoutingTap, model: Model, layout: BatchLayout, *picks: Any) -> None:
    with torch.inference_mode():
        tap.before_forward(layout)
        model(*picks)
        tap.after_forward()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingStep:
    """One forward of a RoutingBlock; same meaning without S."""

    counts_LGE: npt.NDArray[np.int32]
    tokens_G: npt.NDArray[np.int64]
    dropped_LG: npt.NDArray[np.int32]
    identity_LG: npt.NDArray[np.int32]
    picks_TLK: npt.NDArray[np.integer[Any]] | None = None
    picks_left_out_tokens: int = 0


def steps(blocks: list[RoutingBlock]) -> Iterator[RoutingStep]:
    """The forwards of blocks, one by one."""
    for block in blocks:
        start = 0
        for s in range(len(block.tokens_SG)):
            tokens = int(block.tokens_SG[s].sum())
            kept = bool(block.picks_tokens_S) and block.picks_tokens_S[s] > 0
            picks = block.picks_TLK[start : start + tokens] if kept and block.picks_TLK is not None else None
            start += tokens if kept else 0
            yield RoutingStep(
                counts_LGE=block.counts_SLGE[s],
                tokens_G=block.tokens_SG[s],
                dropped_LG=block.dropped_SLG[s],
                identity_LG=block.identity_SLG[s],
                picks_TLK=picks,
                picks_left_out_tokens=tokens if block.picks_tokens_S and not kept else 0,
            )


def all_steps(tap: RoutingTap) -> list[RoutingStep]:
    """Every forward that was not collected yet."""
    return list(steps(tap.collect_blocks(everything=True)))


def collected(tap: RoutingTap) -> RoutingStep:
    (step,) = all_steps(tap)
    return step


def layout(
    tokens: tuple[int, ...], prefill: tuple[bool, ...] | None = None, mask: list[bool] | None = None
) -> BatchLayout:
    return BatchLayout(
        query_tokens=tokens,
        requests=tuple(range(len(tokens))),
        is_prefill=prefill or (True,) * len(tokens),
        token_mask=mask,
    )
