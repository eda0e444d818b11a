"""A twin's MLPs made of the experts that the router uses most, instead of random weights.

Per layer: the k experts with the most picks on the warm-up text, side by side, and the shared ones. The router's weight
of an expert becomes a constant, its mean over the picks of that expert, and goes into the output projection; so does
the mean of a gate of the shared experts. Where a router always picks the same k with constant weights, nothing changes.
Suffix legend: T tokens, K top-k, E experts, R rows of up (gate and up) of one expert, I units, d model width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from moeprof.capture.models.twins import (
    Twin,
    TwinLayer,
    describe_twin,
    read_layers,
    refusal,
    replace_experts,
    twin_mlps,
)
from moeprof.capture.models.wrap import after, before, put_on
from moeprof.core.errors import ModelError
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec

MAX_SEQUENCES = 16
MAX_TOKENS = 256  # of each sequence


@dataclass(slots=True, kw_only=True)
class Usage:
    """How one layer routed the warm-up text.

    Attributes:
        picks_E: picks per expert.
        weight_E: sum of the router's weights per expert.
        gate_sum: sum over tokens of the shared experts' gate.
        gate_tokens: tokens in it.
    """

    picks_E: torch.Tensor
    weight_E: torch.Tensor
    gate_sum: float = 0.0
    gate_tokens: int = 0

    def favourites(self, top_k: int) -> list[tuple[int, float]]:
        """The k most used experts in the order of their numbers, each with its mean weight."""
        chosen = sorted(self.picks_E.argsort(descending=True, stable=True)[:top_k].tolist())
        return [(e, float(self.weight_E[e] / self.picks_E[e].clamp(min=1))) for e in chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The weights of one expert or shared MLP: ``up [R, d]``, ``down [d, I]`` and biases; scaled already."""

    up: torch.Tensor
    down: torch.Tensor
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None


def popular_twin(model: Any, spec: ModelSpec, warmup: Schedule | None) -> Twin:
    """Replace the experts of a loaded MoE by an MLP of its most used experts.

    Raises:
        ModelError: there is no warm-up text to see which those are; or a dense model.
        UnsupportedModelError: a layer has no dense form, or its picks do not come with weights.
    """
    layers = tuple(_with_foldable_shared(layer) for layer in read_layers(model, spec))
    for layer in layers:
        if layer.layer.hook != "experts_arguments":
            raise refusal(spec.name, layer.layer, "which experts are popular is unknown, say `initialise: random`")
    if warmup is None or not any(len(ids) for ids in warmup.input_ids):
        raise ModelError(
            f"model {spec.name}: initialise: popular_experts needs warm-up text to see which experts those are; "
            "give warmup.num_requests at least 1, or say `initialise: random`"
        )
    usages = watch_routing(model, layers, warmup.input_ids)
    with torch.no_grad():
        packed = [_joined(_parts(twin, usage), twin) for twin, usage in zip(layers, usages, strict=True)]
        replace_experts(model, layers, spec)
        for mlp, part in zip(twin_mlps(model), packed, strict=True):
            mlp.up_proj.weight.copy_(part.up)
            mlp.down_proj.weight.copy_(part.down)
            if part.up_bias is not None and part.down_bias is not None:
                mlp.up_proj.bias.copy_(part.up_bias)
                mlp.down_proj.bias.copy_(part.down_bias)
    twin = describe_twin(model, layers, spec)
    share = sum(_share(twin_layer, usage) for twin_layer, usage in zip(layers, usages, strict=True)) / len(layers)
    note = (
        f"its MLPs hold the {layers[0].layer.top_k} experts of each layer that the router uses most on the warm-up "
        f"text ({share:.0%} of the picks), weighted by their mean router weight: not a trained model"
    )
    return replace(twin, notes=(*twin.notes, note))


def watch_routing(model: Any, layers: Sequence[TwinLayer], input_ids: Sequence[Any]) -> list[Usage]:
    """Run the first sequences through the model by plain forwards, and add up who is picked with what weight."""
    device = next(model.parameters()).device
    usages = [
        Usage(
            picks_E=torch.zeros(twin.layer.num_experts, dtype=torch.float64),
            weight_E=torch.zeros(twin.layer.num_experts, dtype=torch.float64),
        )
        for twin in layers
    ]
    handles = []
    for twin, usage in zip(layers, usages, strict=True):
        handles.append(put_on(twin.layer.tapped, "probe", before(_count_picks(usage))))
        if twin.shared_gate is not None:
            handles.append(put_on(twin.shared_gate, "probe", after(_add_gate(usage))))
    try:
        with torch.inference_mode():
            for ids in [ids for ids in input_ids if len(ids)][:MAX_SEQUENCES]:
                tokens = torch.as_tensor(ids[:MAX_TOKENS], dtype=torch.long, device=device)
                model(input_ids=tokens[None], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return usages


def _count_picks(usage: Usage) -> Callable[[tuple[torch.Tensor, ...]], None]:
    def look(args: tuple[torch.Tensor, ...]) -> None:
        picks, weights = args[1].flatten().cpu().long(), args[2].flatten().cpu().double()
        real = picks < usage.picks_E.numel()  # ids above stand for experts that compute nothing
        usage.picks_E.index_add_(0, picks[real], torch.ones_like(weights[real]))
        usage.weight_E.index_add_(0, picks[real], weights[real])

    return look


def _add_gate(usage: Usage) -> Callable[[torch.Tensor], None]:
    def look(output: torch.Tensor) -> None:
        usage.gate_sum += float(output.float().sigmoid().sum())
        usage.gate_tokens += output.numel()

    return look


def _share(twin: TwinLayer, usage: Usage) -> float:
    chosen = [e for e, _ in usage.favourites(twin.layer.top_k)]
    return float(usage.picks_E[chosen].sum() / usage.picks_E.sum().clamp(min=1))


def _with_foldable_shared(twin: TwinLayer) -> TwinLayer:
    """Shared experts whose matrices are not told apart stay beside the MLP."""
    interleaved = not getattr(twin.layer.experts, "is_concatenated", True)
    if twin.keeps_block or not twin.shared:
        return twin
    unknown = interleaved or any(_matrices(module, gated=twin.kind.gated) is None for module in twin.shared)
    return replace(twin, keeps_block=unknown)


def _matrices(shared: nn.Module, *, gated: bool) -> list[nn.Linear] | None:
    """[gate, up, down] or [up, down] of a shared MLP, by the names of its parts; None when they are others."""
    linears = {name.rpartition(".")[2]: m for name, m in shared.named_modules() if isinstance(m, nn.Linear)}
    wanted = ("gate_proj", "up_proj", "down_proj") if gated else ("up_proj", "down_proj")
    return [linears[name] for name in wanted] if set(linears) == set(wanted) else None


def _parts(twin: TwinLayer, usage: Usage) -> list[Part]:
    scale = _scale_after(twin)
    parts = [_expert_part(twin, e, weight * scale) for e, weight in usage.favourites(twin.layer.top_k)]
    if not twin.keeps_block:
        gate = usage.gate_sum / usage.gate_tokens if usage.gate_tokens else 1.0
        for module in twin.shared:
            *ups, down = _matrices(module, gated=twin.kind.gated) or []
            up_biases: list[torch.Tensor] = [u.bias for u in ups if u.bias is not None]
            parts.append(
                Part(
                    up=torch.cat(tuple(u.weight for u in ups)),
                    down=down.weight * gate,
                    up_bias=torch.cat(up_biases) if up_biases else None,
                    down_bias=None if down.bias is None else down.bias * gate,
                )
            )
    return parts


def _scale_after(twin: TwinLayer) -> float:
    """A constant that the block multiplies the experts' output by, which goes when the block goes."""
    source = inspect.getsource(type(twin.layer.block).forward)
    factor = getattr(twin.layer.block, "routed_scaling_factor", None)
    after = "* self.routed_scaling_factor" in source and not twin.keeps_block
    return float(factor) if after and factor is not None else 1.0


def _expert_part(twin: TwinLayer, e: int, weight: float) -> Part:
    experts: Any = twin.layer.experts
    if not hasattr(experts, "down_proj"):  # weights [E * I, d], see twin_mlp
        rows = slice(e * twin.kind.width, (e + 1) * twin.kind.width)
        up = torch.cat([experts.mlp.w1[rows], experts.mlp.v1[rows]])
        return Part(up=up, down=experts.mlp.w2[rows].T * weight)
    name = "gate_up_proj" if twin.kind.gated else "up_proj"
    up, down = getattr(experts, name)[e], experts.down_proj[e]
    up_bias = getattr(experts, f"{name}_bias", None)
    down_bias = getattr(experts, "down_proj_bias", None)
    return Part(
        up=up.T if twin.kind.transposed else up,
        down=(down.T if twin.kind.transposed else down) * weight,
        up_bias=None if up_bias is None else up_bias[e],
        down_bias=None if down_bias is None else down_bias[e] * weight,
    )


def _joined(parts: list[Part], twin: TwinLayer) -> Part:
    """Experts side by side; all gates first and then all ups where the activation expects them so."""
    halves = 2 if twin.kind.gated and getattr(twin.layer.experts, "is_concatenated", True) else 1

    def stack(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([r.chunk(halves)[half] for half in range(halves) for r in rows])

    up_biases = [p.up_bias for p in parts if p.up_bias is not None]
    down_biases = [p.down_bias for p in parts if p.down_bias is not None]
    return Part(
        up=stack([p.up for p in parts]),
        down=torch.cat([p.down for p in parts], dim=1),
        up_bias=stack(up_biases) if up_biases else None,
        down_bias=torch.stack(down_biases).sum(0) if down_biases else None,
    )
