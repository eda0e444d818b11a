"""Shapes and candidates of the kernel probe.

Shape legend: B sequences, H query heads, G key/value heads, D head size, S slots, P pages, T tokens, k picks, d hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from moeprof.capture.kernels import candidates
from moeprof.capture.kernels.attention import AttentionKind, DecodeShape, torch_decode
from moeprof.capture.kernels.choose import Candidate

PAGE_TOKENS = 16
Attention = Callable[..., torch.Tensor]
Experts = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """One call of a decode kernel, and the bytes that it has to read."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    table: torch.Tensor
    context: torch.Tensor
    shape: DecodeShape
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """Attention of one model: heads, key/value heads, head size."""

    name: str
    num_heads: int
    num_groups: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16

    def tiny(self) -> AttentionCase:
        """The same, for a CPU."""
        return replace(self, num_heads=4, num_groups=2, head_dim=16, dtype=torch.float32)

    def inputs(self, batch: int, context: int, device: torch.device) -> AttentionInputs:
        """Random queries over a cache whose pages lie in random order."""
        torch.manual_seed(0)
        pages = -(-context // PAGE_TOKENS)
        kinds: dict[str, Any] = {"device": device, "dtype": self.dtype}
        slots = (batch * pages + 1) * PAGE_TOKENS
        key, value = (torch.randn(slots, self.num_groups, self.head_dim, **kinds) for _ in range(2))
        order = torch.randperm(batch * pages, device=device).to(torch.int32) + 1
        return AttentionInputs(
            query=torch.randn(batch, self.num_heads, self.head_dim, **kinds),
            key=key,
            value=value,
            table=order.view(batch, pages),
            context=torch.full((batch,), context, dtype=torch.int32, device=device),
            shape=DecodeShape(page_tokens=PAGE_TOKENS, scale=self.head_dim**-0.5),
            num_bytes=2 * batch * context * self.num_groups * self.head_dim * key.element_size(),
        )

    def prompt(self, num_tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Random queries [1, H, T, D], keys and values [1, G, T, D] of one prompt."""
        torch.manual_seed(0)
        kinds: dict[str, Any] = {"device": device, "dtype": self.dtype}
        heads = (self.num_heads, self.num_groups, self.num_groups)
        query, key, value = (torch.randn(1, num, num_tokens, self.head_dim, **kinds) for num in heads)
        return query, key, value


ATTENTION = (
    AttentionCase(name="mixtral", num_heads=32, num_groups=8, head_dim=128),
    AttentionCase(name="qwen3-30b", num_heads=32, num_groups=4, head_dim=128),
)


def attention_candidates(every: bool) -> Iterator[tuple[str, Attention]]:
    """Name and kernel: the plain form, torch's varlen kernel, ours in Triton (one tiling, or ``every``)."""
    ours = [one for one in candidates.DECODE if one.name == "triton"]
    yield "torch", torch_decode
    for number, one in enumerate(ours if every else ours[:1]):
        yield f"triton tiling {number}", one.kernel
    for one in candidates.DECODE:
        if one.name == "varlen":
            yield "varlen", partial(_where_served, one)


def prefill_candidates() -> Iterator[tuple[str, Attention]]:
    """Name and form of attention of whole prompts."""
    for one in candidates.PREFILL:
        if one.name != "plain":
            yield one.name, one.kernel


def _where_served(
    one: Candidate[AttentionKind, Attention], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any
) -> torch.Tensor:
    kind = AttentionKind(
        dtype=query.dtype, num_heads=query.shape[1], num_groups=key.shape[1], head_dim=query.shape[2],
        value_dim=value.shape[2], shape=rest[2],
    )  # fmt: skip
    reason = one.why_none(query.device, [kind])
    if reason is not None:
        raise RuntimeError(reason)
    return one.kernel(query, key, value, *rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsCase:
    """The experts of one layer of one model."""

    name: str
    num_experts: int
    top_k: int
    hidden: int
    inner: int
    dtype: torch.dtype = torch.bfloat16

    def tiny(self) -> ExpertsCase:
        """The same experts and picks, at the widths of a test."""
        return replace(self, hidden=32, inner=24, dtype=torch.float32)

    def module(self, device: torch.device) -> Any:
        """Experts with random weights; every class behind transformers' experts interface has Mixtral's layout."""
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        config = MixtralConfig(
            hidden_size=self.hidden, intermediate_size=self.inner, num_local_experts=self.num_experts,
            num_experts_per_tok=self.top_k,
        )  # fmt: skip
        torch.manual_seed(0)
        with torch.device("meta"):
            module = MixtralExperts(config)
        module = module.to(self.dtype).to_empty(device=device).eval()
        for parameter in module.parameters():
            parameter.data.normal_(std=0.02)
        return module

    def inputs(self, num_tokens: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Hidden states [T, d], picks without repetition [T, k], equal weights [T, k]."""
        torch.manual_seed(num_tokens)
        hidden = torch.randn(num_tokens, self.hidden, device=device, dtype=self.dtype)
        index = torch.rand(num_tokens, self.num_experts, device=device).topk(self.top_k, dim=-1).indices
        return hidden, index, torch.full_like(index, 1, dtype=self.dtype) / self.top_k

    def expert_bytes(self, module: Any) -> int:
        """Bytes of one expert."""
        return 3 * self.hidden * self.inner * int(module.down_proj.element_size())


EXPERTS = (
    ExpertsCase(name="qwen3-30b", num_experts=128, top_k=8, hidden=2048, inner=768),
    ExpertsCase(name="mixtral", num_experts=8, top_k=2, hidden=4096, inner=14336),
)


def plain_experts(module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Expert by expert in float32, [T, d]."""
    out = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for expert in torch.unique(index).tolist():
        token, pick = torch.where(index == expert)
        gate, up = (hidden[token].float() @ module.gate_up_proj[expert].float().T).chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
        out.index_add_(0, token, (inner @ module.down_proj[expert].float().T) * weights[token, pick, None].float())
    return out


def experts_candidates(phase: str) -> Iterator[tuple[str, Experts]]:
    """Name and form: transformers' own, and ours in Triton for decode steps."""
    if phase == "decode":
        for number, one in enumerate(one for one in candidates.EXPERTS if one.name == "triton"):
            yield f"triton tiling {number}", one.kernel
    for name in ("batched_mm", "grouped_mm", "eager"):
        yield name, partial(_interface, name)


def _interface(
    name: str, module: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    module.config._experts_implementation = name
    found: torch.Tensor = module(hidden, index, weights)
    return found
