"""How routing changed between two runs on the same tokens: the nouns. ``router_health.routing_change`` makes them.

Which figure answers which gate, see :func:`gate_figure` (a gate fails where ``worse_by`` exceeds its amount):

    gate                          reference, other                                       worse_by
    dead_experts                  dead before, dead before + newly dead, over all layers  newly dead beyond chance
    nearly_dead_experts           the same for experts below a tenth of the mean load     newly so beyond chance
    routing_agreement_ratio       1, mean share of the same picks                         1 - agreement
    router_load_max_over_mean     mean over layers, before and after; also by phase       the rise
    router_entropy_ratio          mean over layers, before and after                      the fall
    domain_total_variation        distance between classes, before and after              the fall
    router_margin_p05             mean over layers, before and after                      the fall
    any of RoutingChange.metrics  1 for agreement, else 0; the figure                     how far it is from that

They are figures of the forced tokens. Where both sides route alike by their facts, gates with a label ``phase`` are for
the runs' own metrics; where they do not, a run's own metric is one sample, and the forced tokens are a pair of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moeprof.core.metric import MetricValue

Both = tuple[float, float]


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
        nearly_dead: experts below a tenth of the mean load, the dead among them, (reference, other).
        moved: the experts whose share changed most: (expert, share in the reference, share in the other).
        load: share of each expert, (reference, other), for charts.
        newly_nearly_dead: ids of experts that fell below a tenth of the mean load, beyond what the sample explains.
        drift_null_mean: mean of the same null.
        is_beyond_null: the drift of this layer exceeds what chance gives to the worst of all layers.
        collapse: which of the rules of a collapse this layer breaks: ``dead``, ``entropy``, ``busiest``.
        specialisation: total variation of expert loads between request classes, mean over pairs, (reference, other);
            None with fewer than two classes.
        specialisation_null: what its change exceeds by chance in any layer at all one time in twenty.
        margin_p05, margin_p50: quantiles of p_(k) - p_(k+1), (reference, other); None where a side has no margins.
    """

    name: str
    agreement_ratio: float | None
    drift_js: float
    drift_null: float | None
    max_over_mean: Both
    entropy_ratio: Both
    dead: tuple[int, int]
    newly_dead: tuple[int, ...]
    chance_dead: float | None
    nearly_dead: tuple[int, int]
    moved: tuple[tuple[int, float, float], ...]
    load: tuple[tuple[float, ...], tuple[float, ...]]
    newly_nearly_dead: tuple[int, ...] = ()
    drift_null_mean: float | None = None
    is_beyond_null: bool = False
    collapse: tuple[str, ...] = ()
    specialisation: Both | None = None
    specialisation_null: float | None = None
    margin_p05: Both | None = None
    margin_p50: Both | None = None

    @property
    def moved_ratio(self) -> float:
        """Share of the layer's load that went elsewhere: total variation of the two loads, 0..1."""
        return sum(abs(before - after) for before, after in zip(*self.load, strict=True)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GateFigure:
    """What a gate is judged by.

    Attributes:
        reference, other: the values that a table shows.
        worse_by: how much worse it got, in the metric's unit; 0 or less: not worse.
        interval: of ``other``, 95 %, or None.
        n: samples in words.
    """

    reference: float
    other: float
    worse_by: float
    interval: Both | None = None
    n: str


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
        busiest: ``router_load_max_over_mean`` (mean over layers) by phase: ``all``, ``prefill``, ``decode``; phases
            without tokens are left out.
    """

    model: str
    tokens: int
    same_tokens: bool
    exact: bool
    layers: tuple[LayerChange, ...]
    metrics: tuple[MetricValue, ...]
    sentences: tuple[str, ...]
    verdict: str
    busiest: Mapping[str, GateFigure] = field(default_factory=dict)

    def metric(self, name: str) -> MetricValue | None:
        """By name."""
        return next((value for value in self.metrics if value.name == name), None)


def gate_figure(change: RoutingChange, metric: str, phase: str = "all") -> GateFigure | None:
    """The figure of a gate; None for a metric that this change says nothing about, or could not measure.

    Args:
        change: of the model.
        metric: the gate's.
        phase: of ``router_load_max_over_mean``; other figures are of both phases together. None for a phase where both
            sides route alike by their facts: the runs' own metrics are then exact, and of more tokens.
    """
    n = f"{change.tokens:,} tokens"
    if metric == "router_load_max_over_mean":
        return None if change.exact and phase != "all" else change.busiest.get(phase)
    if phase != "all":
        return None
    if metric in ("dead_experts", "nearly_dead_experts"):
        before, gained = _dead(change, nearly=metric != "dead_experts")
        return GateFigure(reference=before, other=before + gained, worse_by=gained, n=n)
    if change.metric(metric) is not None:
        return _of_change(change, metric, n)
    pairs = [_MEASURES[metric](layer) for layer in change.layers] if metric in _MEASURES else []
    known = [pair for pair in pairs if pair is not None]
    if not known or len(known) < len(pairs):
        return None
    before, after = (sum(pair[side] for pair in known) / len(known) for side in (0, 1))
    return GateFigure(reference=before, other=after, worse_by=before - after, n=n)


_MEASURES = {
    "router_entropy_ratio": lambda layer: layer.entropy_ratio,
    "domain_total_variation": lambda layer: layer.specialisation,
    "router_margin_p05": lambda layer: layer.margin_p05,
}


def _dead(change: RoutingChange, *, nearly: bool) -> tuple[int, int]:
    if nearly:
        return sum(layer.nearly_dead[0] for layer in change.layers), sum(
            len(layer.newly_nearly_dead) for layer in change.layers
        )
    return sum(layer.dead[0] for layer in change.layers), sum(len(layer.newly_dead) for layer in change.layers)


def _of_change(change: RoutingChange, metric: str, n: str) -> GateFigure | None:
    """A figure that is itself a comparison: agreement is 1, anything else 0, where nothing changed."""
    value = change.metric(metric)
    if value is None or value.value is None:
        return None
    is_agreement = metric.startswith("routing_agreement_ratio")
    reference, now = float(is_agreement), float(value.value)
    interval = None if value.ci_low is None or value.ci_high is None else (value.ci_low, value.ci_high)
    return GateFigure(
        reference=reference, other=now, worse_by=reference - now if is_agreement else now, interval=interval, n=n
    )
