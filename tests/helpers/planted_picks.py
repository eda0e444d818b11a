"""Forced picks with known loads, for tests of routing changes. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moeprof.core.baseline.baseline import BaselineModel, RoutingLoad
from moeprof.core.record.picks import ForcedPicks

Ids = npt.NDArray[np.int64]


def draw_picks(tokens: int, popularity: npt.ArrayLike, top_k: int, rng: np.random.Generator) -> Ids:
    """k different experts for each token, by Gumbel top-k: popular ones more often. Shape [T, k]."""
    scores = np.log(np.asarray(popularity, dtype=np.float64)) + rng.gumbel(size=(tokens, np.size(popularity)))
    return np.argsort(-scores, axis=1)[:, :top_k]


def balanced_picks(tokens: int, experts: int, top_k: int) -> Ids:
    """Token t takes experts t*k, t*k + 1... modulo E: every expert has as many tokens, where they divide. [T, k]."""
    return (np.arange(tokens * top_k) % experts).reshape(tokens, top_k)


def forced(
    layers: Sequence[Ids],
    *,
    requests: int = 20,
    classes: Sequence[str] = ("all",),
    class_of_request: Sequence[int] | None = None,
    margin: float = 0.1,
    tokens_sha256: str = "text",
) -> ForcedPicks:
    """Tokens cut into equal requests, in order; layers with fewer picks than the widest are filled with -1."""
    tokens, widest = len(layers[0]), max(layer.shape[1] for layer in layers)
    picks = np.full((tokens, len(layers), widest), -1, dtype=np.int16)
    for i, layer in enumerate(layers):
        picks[:, i, : layer.shape[1]] = layer
    request_T = np.arange(tokens) * requests // tokens
    position_T = np.arange(tokens) - np.searchsorted(request_T, request_T)
    numbers = np.asarray(class_of_request if class_of_request is not None else [0] * requests)
    return ForcedPicks(
        picks_TLK=picks,
        request_T=request_T,
        position_T=position_T,
        class_T=numbers[request_T],
        is_output_T=position_T > 3,
        margin_TL=np.full((tokens, len(layers)), margin),
        layers=tuple(f"model.layers.{i}.mlp" for i in range(len(layers))),
        classes=tuple(classes),
        tokens_sha256=tokens_sha256,
    )


def with_picks(picks: ForcedPicks | None, num_experts: Sequence[int], top_k: Sequence[int]) -> BaselineModel:
    """A model of a baseline that has only these."""
    return BaselineModel(
        name="moe", facts={}, metrics=(), picks=picks, num_experts=tuple(num_experts), top_k=tuple(top_k)
    )


def with_loads(counts: Mapping[str, Sequence[Sequence[int]]], top_k: int) -> BaselineModel:
    """A model of a baseline that has only loads, per phase and layer."""
    first = next(iter(counts.values()))
    load = RoutingLoad(
        layers=tuple(f"model.layers.{i}.mlp" for i in range(len(first))),
        counts={phase: tuple(tuple(int(n) for n in row) for row in rows) for phase, rows in counts.items()},
        tokens={phase: sum(int(n) for n in rows[0]) // top_k for phase, rows in counts.items()},
    )
    model = with_picks(None, [len(row) for row in first], [top_k] * len(first))
    return replace(model, routing=load)
