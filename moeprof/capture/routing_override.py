"""Replace a model's routing: the same weights and tokens, other experts. Reports say so on every page.

The picks are decided before a forward, by request and position (:mod:`moeprof.capture.pick_table`); the model's own
weights of the picks stay (their sum and scale belong to the architecture). The tap counts what is executed.

Policies: ``balanced`` gives every expert the same number of tokens of each forward, up to one (round robin);
``concentrated`` sends every token to experts 0..k-1; ``profile`` draws from measured popularity, and ``zipf`` from
popularity ~ 1/rank^exponent (ranks shuffled per layer), see :mod:`moeprof.capture.drawn_picks`.
Suffix legend: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeprof.capture.drawn_picks import FloatArray, balanced_table, concentrated_table, drawn_table
from moeprof.capture.drawn_rows import DrawnRows, RoundRobinRows
from moeprof.capture.moe_structure import MoeLayer
from moeprof.capture.pick_table import PickOverride, PickTable, check_overridable, layer_shapes
from moeprof.capture.popularity import load_popularity
from moeprof.capture.positions import RowsOfTokens
from moeprof.capture.rungs import LayerShape
from moeprof.core.modelspec import RoutingPolicy


def override_routing(layers: Sequence[MoeLayer], policy: RoutingPolicy) -> PickOverride | None:
    """Put the policy in force; None for ``native`` and ``replay``, which needs a schedule.

    What is returned must be a listener of every engine that runs the model, for as long as it is on.

    Raises:
        UnsupportedModelError: a layer does not take its picks as arguments.
        WorkloadError: the popularity file is missing, damaged, or does not fit the model.
    """
    if policy.policy in ("native", "replay"):
        return None
    check_overridable(layers, f"routing policy {policy.policy}")
    shapes = layer_shapes(layers)
    rows: RowsOfTokens
    if policy.policy == "balanced":
        table_LRK = balanced_table(shapes)
        rows = RoundRobinRows(num_rows=table_LRK.shape[1])
    elif policy.policy == "concentrated":
        table_LRK = concentrated_table(shapes)
        rows = RoundRobinRows(num_rows=1)
    else:
        popularity = load_popularity(policy, shapes).counts_LE if policy.policy == "profile" else zipf(shapes, policy)
        table_LRK = drawn_table(popularity, shapes, policy.seed)
        rows = DrawnRows(num_rows=table_LRK.shape[1], seed=policy.seed, correlation=policy.correlation)
    override = PickOverride(layers, PickTable(table_LRK, rows, next(layers[0].experts.parameters()).device))
    override.enable()
    return override


def zipf(shapes: Sequence[LayerShape], policy: RoutingPolicy) -> FloatArray:
    """Popularity [L, E] ~ 1/rank^exponent, ranks shuffled per layer; at most one pick of a token for each expert."""
    random = np.random.default_rng(policy.seed)
    popularity = np.zeros((len(shapes), max(shape.num_experts for shape in shapes)))
    for row, shape in zip(popularity, shapes, strict=True):
        ranks = np.arange(1, shape.num_experts + 1, dtype=np.float64)
        row[: shape.num_experts] = random.permutation(ranks**-policy.exponent)
    return popularity
