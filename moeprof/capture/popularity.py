"""Popularity of experts for ``routing.policy: profile``: read, fitted to a model's layers, and said in words.

Suffix legend: L MoE layers of the model, F layers of the file, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from moeprof.capture.popularity_files import Counts, read_counts
from moeprof.capture.rungs import LayerShape
from moeprof.core.errors import WorkloadError
from moeprof.core.modelspec import RoutingPolicy

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Popularity:
    """How often each expert is picked, relative to the others of its layer.

    Attributes:
        counts_LE: one row per MoE layer.
        words: where it comes from, and what was filled in.
    """

    counts_LE: FloatArray
    words: str


def load_popularity(policy: RoutingPolicy, shapes: Sequence[LayerShape]) -> Popularity:
    """Popularity of every MoE layer, from the file or folder that the policy names.

    One list of counts stands for every layer. Layers that the file lacks take those of the nearest layer that it has.

    Raises:
        WorkloadError: not readable, of other experts than the model, or with fewer than k experts in use.
    """
    path = Path(str(policy.path))
    found = read_counts(path, policy.select)
    experts = max(shape.num_experts for shape in shapes)
    if found.counts_FE.shape[1] != experts:
        raise WorkloadError(
            f"{path}: counts of shape {list(found.counts_FE.shape)} (layers, experts); this model has {experts} experts"
        )
    if not np.isfinite(found.counts_FE).all() or (found.counts_FE < 0).any():
        raise WorkloadError(f"{path}: popularity must be finite and not negative")
    layers = _layers(path, found, policy, len(shapes))
    nearest_L = np.array([min(range(len(layers)), key=lambda i: abs(layers[i] - n)) for n in range(len(shapes))])
    counts_LE = found.counts_FE[nearest_L]
    for number, (shape, row) in enumerate(zip(shapes, counts_LE, strict=True)):
        if (row[: shape.num_experts] > 0).sum() < shape.top_k:
            raise WorkloadError(
                f"{path}: MoE layer {number} picks {shape.top_k} experts but fewer have popularity above 0"
            )
    filled = "" if set(range(len(shapes))) == set(layers) else _filled(layers, len(shapes))
    return Popularity(counts_LE=counts_LE, words=found.words + filled)


def _filled(layers: Sequence[int], num_layers: int) -> str:
    if len(layers) == 1:
        return f"; one list of counts stands for all {num_layers} MoE layers"
    if set(range(num_layers)) < set(layers):
        return f"; the first {num_layers} of its {len(layers)} layers"
    known = ", ".join(map(str, layers))
    return f"; it knows layers {known}; each of the {num_layers} MoE layers takes the nearest of them"


def _layers(path: Path, found: Counts, policy: RoutingPolicy, num_layers: int) -> tuple[int, ...]:
    """Which MoE layers of the model the rows of the file stand for."""
    rows = len(found.counts_FE)
    layers = policy.layers or found.layers
    if not layers and (rows == 1 or rows >= num_layers):
        layers = tuple(range(rows))
    if not layers:
        raise WorkloadError(
            f"{path}: popularity of {rows} layers, of shape {list(found.counts_FE.shape)}; this model has {num_layers} "
            "MoE layers; say which of them these are with routing.layers, for example `layers: [0, 7, 15]`"
        )
    if len(layers) != rows or len(set(layers)) < rows:
        raise WorkloadError(
            f"routing.layers: found {len(layers)} numbers for {rows} layers of {path}; one each is needed"
        )
    if policy.layers and max(layers) >= num_layers:
        raise WorkloadError(
            f"routing.layers: found {max(layers)}; this model has {num_layers} MoE layers, 0 to {num_layers - 1}"
        )
    return layers


def routing_words(policy: RoutingPolicy, shapes: Sequence[LayerShape]) -> str | None:
    """One sentence for the record and the report, or None where the model routes itself (or is dense).

    Raises:
        WorkloadError: see :func:`load_popularity`.
    """
    if policy.policy == "native" or not shapes:
        return None
    how = {
        "balanced": "a round robin over the tokens of each forward",
        "concentrated": "every token goes to the first k experts",
        "zipf": f"drawn from popularity 1/rank^{policy.exponent:g}, ranks shuffled per layer, seed {policy.seed}",
        "replay": f"picks recorded in {policy.path}",
    }.get(policy.policy)
    if policy.policy == "profile":
        how = f"drawn from {load_popularity(policy, shapes).words}, seed {policy.seed}"
    if policy.policy in ("profile", "zipf"):
        kept = "keeps the experts of the token before it" if policy.correlation else "is drawn by itself"
        how = f"{how}; correlation {policy.correlation:g}: each token {kept}"
        if policy.correlation:
            how = f"{how} with that chance"
    return f"routing is not the model's own: policy {policy.policy}, {how}"
