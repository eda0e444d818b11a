"""What the tap hands out: counts of some dozens of forwards, on the host.

Suffix legend: S forwards, T tokens, L MoE layers, G groups (phase x class), E experts, K top-k.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingStep:
    """One forward of a :class:`RoutingBlock`; same meaning without S."""

    counts_LGE: Int32Array
    tokens_G: npt.NDArray[np.int64]
    dropped_LG: Int32Array
    identity_LG: Int32Array
    picks_TLK: npt.NDArray[np.integer[Any]] | None = None
    picks_left_out_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    """How S forwards loaded the experts (P phases).

    Attributes:
        distinct_SL: experts touched.
        max_load_SL: tokens of the busiest expert.
        counts_SPLE: tokens by phase, modulo 2^16.
    """

    distinct_SL: npt.NDArray[np.integer[Any]]
    max_load_SL: npt.NDArray[np.integer[Any]]
    counts_SPLE: npt.NDArray[np.uint16]

    @staticmethod
    def of(counts_SLGE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The three tensors, worked out where the counts are; the last one as int16."""
        size, layers, _, experts = counts_SLGE.shape
        by_phase_SLPE = counts_SLGE.reshape(size, layers, 2, -1, experts).sum(3, dtype=torch.int32)
        load_SLE = by_phase_SLPE.sum(2, dtype=torch.int32)
        counts_SPLE = by_phase_SLPE.to(torch.int16).transpose(1, 2).contiguous()
        return (load_SLE > 0).sum(-1, dtype=torch.int32), load_SLE.amax(-1), counts_SPLE

    @staticmethod
    def on_host(distinct_SL: torch.Tensor, max_load_SL: torch.Tensor, counts_SPLE: torch.Tensor) -> Loads:
        """From host tensors that are complete."""
        return Loads(
            distinct_SL=distinct_SL.numpy(), max_load_SL=max_load_SL.numpy(), counts_SPLE=counts_SPLE.numpy().view("u2")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingBlock:
    """What was routed in S consecutive forwards. Group = phase * C + class, phases in the order prefill, decode.

    Attributes:
        counts_SLGE: executed (token, expert) assignments of real tokens.
        tokens_SG: real tokens.
        dropped_SLG: picks that stand for no expert (weight 0).
        identity_SLG: picks of zero-computation experts.
        picks_TLK: every pick of every real token of the block, in the order of the forwards; None unless asked for.
            Ids at or above a layer's E: identity experts, then the two highest "dropped" and "absent".
        picks_tokens_S: tokens of each forward in ``picks_TLK`` (0 where left out); empty when picks are not kept.
        picks_left_out_tokens: real tokens whose picks were left out because the cap was reached.
        loads: what the device worked out of the counts, or None.
    """

    counts_SLGE: Int32Array
    tokens_SG: npt.NDArray[np.int64]
    dropped_SLG: Int32Array
    identity_SLG: Int32Array
    picks_TLK: npt.NDArray[np.integer[Any]] | None = None
    picks_tokens_S: tuple[int, ...] = ()
    picks_left_out_tokens: int = 0
    loads: Loads | None = None

    def first(self, num: int) -> RoutingBlock:
        """The first ``num`` forwards of it, for a pass that broke off behind them."""
        tokens_S = self.picks_tokens_S[:num]
        left_out = sum(int(n.sum()) for n, kept in zip(self.tokens_SG, tokens_S, strict=False) if not kept)
        return replace(
            self,
            counts_SLGE=self.counts_SLGE[:num],
            tokens_SG=self.tokens_SG[:num],
            dropped_SLG=self.dropped_SLG[:num],
            identity_SLG=self.identity_SLG[:num],
            picks_TLK=None if self.picks_TLK is None else self.picks_TLK[: sum(tokens_S)],
            picks_tokens_S=tokens_S,
            picks_left_out_tokens=left_out,
            loads=None,
        )

    def all_loads(self) -> Loads:
        """Loads of the experts; worked out here where the device did not."""
        if self.loads is not None:
            return self.loads
        return Loads.on_host(*Loads.of(torch.from_numpy(np.ascontiguousarray(self.counts_SLGE))))

    def steps(self) -> Iterator[RoutingStep]:
        """The forwards of the block, one by one."""
        start = 0
        for s in range(len(self.tokens_SG)):
            tokens = int(self.tokens_SG[s].sum())
            kept = bool(self.picks_tokens_S) and self.picks_tokens_S[s] > 0
            picks = self.picks_TLK[start : start + tokens] if kept and self.picks_TLK is not None else None
            start += tokens if kept else 0
            yield RoutingStep(
                counts_LGE=self.counts_SLGE[s],
                tokens_G=self.tokens_SG[s],
                dropped_LG=self.dropped_SLG[s],
                identity_LG=self.identity_SLG[s],
                picks_TLK=picks,
                picks_left_out_tokens=tokens if self.picks_tokens_S and not kept else 0,
            )
