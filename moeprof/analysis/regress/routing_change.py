"""How routing changed between two runs on the same tokens: the nouns, and what tells collapse from noise."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.core.metric import MetricValue


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChange:
    """One MoE layer, before and after.

    Attributes:
        name: module path.
        agreement_ratio: mean |S & S'| / k over tokens; None without picks on the same tokens.
        drift_js: Jensen-Shannon divergence (base 2) of expert loads.
        drift_null: what chance alone would give (95th percentile of a permutation), None where it is not known.
        max_over_mean: load of the busiest expert over the mean, (reference, other).
        entropy_ratio: (reference, other).
        dead: experts without a token, (reference, other).
        newly_dead: ids of experts that had tokens and have none now, beyond what the sample size explains.
        chance_dead: how likely so many new dead experts were, were the loads unchanged; None where counts are exact.
        nearly_dead: experts below a tenth of the mean load, (reference, other).
        moved: the experts whose share changed most: (expert, share in the reference, share in the other).
        load: share of each expert, (reference, other), for charts.
    """

    name: str
    agreement_ratio: float | None
    drift_js: float
    drift_null: float | None
    max_over_mean: tuple[float, float]
    entropy_ratio: tuple[float, float]
    dead: tuple[int, int]
    newly_dead: tuple[int, ...]
    chance_dead: float | None
    nearly_dead: tuple[int, int]
    moved: tuple[tuple[int, float, float], ...]
    load: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingChange:
    """All MoE layers of one model.

    Attributes:
        model: its name.
        tokens: tokens behind it.
        same_tokens: both sides routed the same token ids.
        exact: both sides have the same weights, kernels, dtype and device: any difference is one.
        layers: in order.
        metrics: figures of the change for gates and tables (means or totals over layers, without labels, ``_worst``
            where they exist): routing_agreement_ratio, router_drift_js, ...
        sentences: what to say, most important first.
        verdict: ``unchanged``, ``noise`` (differs as finite samples or rounding do), ``changed``, ``collapsed``.
    """

    model: str
    tokens: int
    same_tokens: bool
    exact: bool
    layers: tuple[LayerChange, ...]
    metrics: tuple[MetricValue, ...]
    sentences: tuple[str, ...]
    verdict: str
