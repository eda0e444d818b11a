"""Replace a model's routing: the same weights and tokens, other experts. Reports say so on every page.

A pre-hook on each experts module changes the picks and keeps the model's own weights (their sum and scale belong to
the architecture). It must be put on before the tap, which then counts what is executed. Draws use a seeded generator
on the device and never synchronise.

Policies: ``balanced`` gives every expert the same number of tokens (round robin), ``concentrated`` sends every token to
experts 0..k-1, ``zipf`` draws experts with popularity ~ 1/rank^exponent (ranks shuffled per layer), ``profile`` draws
from measured popularity. Draws are without replacement by the Gumbel top-k trick: adding Gumbel noise to log
popularity and taking the k largest (Kool, van Hoof, Welling 2019, https://arxiv.org/abs/1903.06059).
Suffix legend: T tokens, L MoE layers, E experts, K top-k.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moeprof.capture.moe_structure import MoeLayer
from moeprof.capture.pick_table import check_overridable
from moeprof.capture.switchable_hooks import SwitchableHooks
from moeprof.core.errors import WorkloadError
from moeprof.core.routing_counts import Routing
from moeprof.core.workload import RoutingPolicy

FloatArray = npt.NDArray[np.float64]
Draw = Callable[[torch.Tensor], torch.Tensor]


class RoutingOverride(SwitchableHooks):
    """Hooks that replace picks; made by :func:`override_routing`."""

    def __init__(self, layers: Sequence[MoeLayer], policy: RoutingPolicy, popularity_LE: FloatArray | None) -> None:
        self.policy = policy
        super().__init__(
            [
                (
                    layer.experts,
                    _replace(_drawer(layer, i, policy, None if popularity_LE is None else popularity_LE[i])),
                )
                for i, layer in enumerate(layers)
            ]
        )
        self.enable()


def override_routing(layers: Sequence[MoeLayer], policy: RoutingPolicy) -> RoutingOverride | None:
    """Put the policy in force; None for ``native``.

    Raises:
        UnsupportedModelError: a layer does not take its picks as arguments.
        WorkloadError: the popularity file is missing, damaged, or does not fit the model.
    """
    if policy.policy == "native":
        return None
    check_overridable(layers, f"routing policy {policy.policy}")
    popularity = None
    if policy.policy == "profile":
        popularity = load_popularity(Path(str(policy.path)), layers)
    elif policy.policy == "zipf":
        popularity = _zipf(layers, policy)
    return RoutingOverride(layers, policy, popularity)


def load_popularity(path: Path, layers: Sequence[MoeLayer]) -> FloatArray:
    """Popularity [L, E] from a JSON list [E] or [L, E] (or ``{"counts": ...}``), or from a record's routing.npz.

    One list [E] stands for every layer.

    Raises:
        WorkloadError: not readable, of another shape than the model, or with fewer than k experts in use.
    """
    counts: FloatArray
    if path.suffix == ".npz":
        counts = Routing.load(path).counts_WPCLE.sum(axis=(0, 1, 2)).astype(np.float64)
    else:
        try:
            value: Any = json.loads(path.read_text(encoding="utf-8"))
            counts = np.array(value["counts"] if isinstance(value, dict) else value, dtype=np.float64)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorkloadError(
                f"{path}: cannot be read as popularity counts ({error}); give a JSON list [experts] or "
                "[layers, experts], or the routing.npz of a record"
            ) from error
    experts = max(layer.num_experts for layer in layers)
    if counts.shape == (experts,):
        counts = np.tile(counts, (len(layers), 1))
    if counts.shape != (len(layers), experts):
        raise WorkloadError(
            f"{path}: popularity of shape {list(counts.shape)}; this model needs [{experts}] or "
            f"[{len(layers)}, {experts}] (MoE layers, experts)"
        )
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise WorkloadError(f"{path}: popularity must be finite and not negative")
    for layer, row in zip(layers, counts, strict=True):
        if (row > 0).sum() < layer.top_k:
            raise WorkloadError(f"{path}: {layer.name} picks {layer.top_k} experts but fewer have popularity above 0")
    return counts


def _zipf(layers: Sequence[MoeLayer], policy: RoutingPolicy) -> FloatArray:
    random = np.random.default_rng(policy.seed)
    popularity = np.zeros((len(layers), max(layer.num_experts for layer in layers)))
    for row, layer in zip(popularity, layers, strict=True):
        row[: layer.num_experts] = random.permutation(
            np.arange(1, layer.num_experts + 1, dtype=np.float64) ** -policy.exponent
        )
    return popularity


def _replace(draw: Draw) -> Callable[..., tuple[Any, ...]]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0], draw(args[1]), *args[2:])

    return hook


def _drawer(layer: MoeLayer, index: int, policy: RoutingPolicy, popularity_E: FloatArray | None) -> Draw:
    if popularity_E is not None:
        return _popular(layer, index, policy.seed, popularity_E[: layer.num_experts])
    if policy.policy == "concentrated":
        return lambda picks: torch.arange(layer.top_k, device=picks.device, dtype=picks.dtype).expand_as(picks)
    return _round_robin(layer)


def _round_robin(layer: MoeLayer) -> Draw:
    start = 0

    def draw(picks: torch.Tensor) -> torch.Tensor:
        nonlocal start
        ids = torch.arange(start, start + picks.numel(), device=picks.device, dtype=picks.dtype) % layer.num_experts
        start = (start + picks.numel()) % layer.num_experts
        return ids.view_as(picks)

    return draw


def _popular(layer: MoeLayer, index: int, seed: int, popularity_E: FloatArray) -> Draw:
    device = next(layer.experts.parameters()).device
    generator = torch.Generator(device=device).manual_seed(seed + index)
    log_popularity = torch.from_numpy(popularity_E).log().to(device=device, dtype=torch.float32)

    def draw(picks: torch.Tensor) -> torch.Tensor:
        shape = (picks.shape[0], len(log_popularity))
        # -log of an exponential variable is a Gumbel variable.
        gumbel = -torch.empty(shape, device=device).exponential_(generator=generator).log()
        return (log_popularity + gumbel).topk(layer.top_k, dim=-1).indices.to(picks.dtype)

    return draw
