"""Does routing move: over time (drift), and between request classes (specialisation)? docs/metrics.md#nulls.

Distances between two samples are never zero by chance (JS of 64 tokens over 128 experts is about 0.1), so each stands
beside what shuffled requests or shuffled class labels give, and beside the multinomial law of as many picks. What is
shuffled are the units of :mod:`moeprof.analysis.metrics.routing.units`.
Legend: P phases, C classes, G units, L layers, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from moeprof.analysis.metrics.routing.measures import Counts, max_over_mean, shares
from moeprof.analysis.metrics.routing.nulls import uniform_expectation
from moeprof.analysis.metrics.routing.units import LEAST_UNITS, Units, cell, exchangeable_units, too_few
from moeprof.analysis.metrics.tables import ALL, PassTables
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.metric import Card, MetricValue, missing
from moeprof.core.record.layout import PHASES
from moeprof.core.record.routing import Routing

PERMUTATIONS = 199
DRAWS = 50

_LARGER_P = "larger p of the two nulls; requests are shuffled, 12 groups of them at least"
_NULLS = "beside permutation and multinomial nulls"
_card = partial(Card, section="routing", source="docs/metrics.md#router", kind="routing", from_routing=True)
SHIFT_CARDS: tuple[Card, ...] = (
    _card("router_drift_js", "Router drift", "ratio", "neither",
          "Jensen-Shannon divergence (base 2) of q, first against second half of a run's requests, or one run against "
          f"another, mean over layers; {_NULLS}",
          source="Lin 1991", of_batches=True),
    _card("router_drift_js_p", "Router drift, p", "ratio", "neither", _LARGER_P,
          source="docs/metrics.md#nulls"),
    _card("domain_specialisation", "Specialisation of a class", "ratio", "neither",
          f"total variation of the class's q against all classes together, mean over layers; {_NULLS}"),
    _card("domain_specialisation_p", "Specialisation, p", "ratio", "neither", _LARGER_P,
          source="docs/metrics.md#nulls"),
    _card("domain_total_variation", "Distance between classes", "ratio", "neither",
          f"total variation of q between two classes, mean over pairs and layers; {_NULLS}"),
    _card("domain_total_variation_p", "Distance between classes, p", "ratio", "neither", _LARGER_P,
          source="docs/metrics.md#nulls"),
)  # fmt: skip


def js_divergence(first: Counts, second: Counts) -> FloatArray:
    """Jensen-Shannon divergence, base 2 (0..1), of two vectors of counts or shares along the last axis; NaN if empty.

    Source: Lin 1991, equal weights.
    """
    p, q = shares(first), shares(second)
    middle = (p + q) / 2

    def relative(a: FloatArray) -> FloatArray:
        ratio = np.where(a > 0, a / np.where(middle > 0, middle, 1.0), 1.0)
        return cast(FloatArray, (a * np.log2(ratio)).sum(axis=-1))

    return (relative(p) + relative(q)) / 2


def total_variation(first: Counts, second: Counts) -> FloatArray:
    """Half the sum of absolute differences of shares, 0..1, along the last axis; NaN if one side is empty."""
    return cast(FloatArray, np.abs(shares(first) - shares(second)).sum(axis=-1) / 2)


def _p_value(observed: float, chance: FloatArray) -> float:
    return (1 + int((chance >= observed).sum())) / (1 + len(chance))


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How routing moved during a pass, one phase, mean over layers.

    Attributes:
        phase: ``all``, ``prefill`` or ``decode``.
        num_units: units with tokens in every layer.
        halves_js: JS between the first and the second half of the units; None with fewer than two.
        null_js: what it is by chance: random halves (``permutation``), random picks (``multinomial``).
        p_value: the larger of the two tests' p-values; None with fewer than twelve units, since picks of one request
            are alike and the multinomial law alone would call that drift.
    """

    phase: str
    num_units: int
    halves_js: float | None
    null_js: dict[str, float]
    p_value: float | None


def drift(phase: str, units: Units, seed: int = 0) -> Drift:
    """Measure drift over units in time order. Units in which a layer routed nothing are left out."""
    groups = units.counts_GLE[(units.counts_GLE.sum(axis=2) > 0).all(axis=1)].astype(np.float64)
    rng = np.random.default_rng(seed)
    halves, p_value = None, None
    null_js: dict[str, float] = {}
    if len(groups) >= 2:
        early = np.arange(len(groups)) < len(groups) // 2
        first, second = groups[early].sum(axis=0), groups[~early].sum(axis=0)
        halves = float(_over_layers(js_divergence(first, second)))
        chance = _chance_js(first, second, rng)
        null_js["multinomial"] = float(chance.mean())
        if units.why_not is None and len(groups) >= LEAST_UNITS:
            shuffled = _shuffled_halves(groups, rng)
            null_js["permutation"] = float(shuffled.mean())
            p_value = max(_p_value(halves, chance), _p_value(halves, shuffled))
    return Drift(phase=phase, num_units=len(groups), halves_js=halves, null_js=null_js, p_value=p_value)


def _over_layers(values_xL: FloatArray) -> FloatArray:
    return cast(FloatArray, values_xL.mean(axis=-1))


def _chance_js(first_LE: FloatArray, second_LE: FloatArray, rng: np.random.Generator, draws: int = DRAWS) -> FloatArray:
    """JS (mean over layers) of two draws from the pooled shares with the same numbers of picks, shape [draws]."""
    pooled = shares(first_LE + second_LE)
    own = _draw(first_LE.sum(axis=1).astype(np.int64), pooled, rng, draws)
    other = _draw(second_LE.sum(axis=1).astype(np.int64), pooled, rng, draws)
    return _over_layers(js_divergence(own, other))


def _draw(num_L: IntArray, shares_LE: FloatArray, rng: np.random.Generator, draws: int = DRAWS) -> FloatArray:
    """Multinomial counts, shape [draws, L, E]."""
    return rng.multinomial(num_L, np.nan_to_num(shares_LE), size=(draws, len(num_L))).astype(np.float64)


def _shuffled_halves(groups_GLE: FloatArray, rng: np.random.Generator) -> FloatArray:
    num = len(groups_GLE)
    order = np.argsort(rng.random((PERMUTATIONS, num)), axis=1)
    first = np.tensordot((order < num // 2).astype(np.float64), groups_GLE, axes=1)
    return _over_layers(js_divergence(first, groups_GLE.sum(axis=0) - first))


@dataclass(frozen=True, slots=True, kw_only=True)
class Specialisation:
    """How differently request classes are routed, one phase, mean over layers.

    Attributes:
        phase: ``prefill``, ``decode`` or ``all``.
        class_names: classes with tokens.
        against_pool_C: total variation of each class's shares against all classes together.
        between_CC: total variation between each two classes.
        null_against_pool_C, null_between_CC: name of the null -> the same by chance.
        p_against_pool_C, p_between: larger p-value of the nulls, per class, and of the mean over pairs; None with
            fewer than twelve units, where labels cannot be shuffled.
        num_units: units whose labels are shuffled.
    """

    phase: str
    num_units: int
    class_names: tuple[str, ...]
    against_pool_C: FloatArray
    between_CC: FloatArray
    null_against_pool_C: dict[str, FloatArray]
    null_between_CC: dict[str, FloatArray]
    p_against_pool_C: FloatArray | None
    p_between: float | None


def specialisation(phase: str, class_names: tuple[str, ...], units: Units, seed: int = 0) -> Specialisation | None:
    """Measure specialisation; None when fewer than two classes have tokens.

    The permutation swaps class labels between units (requests; where blocks of time stand in, within each block), so
    tokens that belong together stay together; the multinomial law keeps each class's number of picks. Both must be
    beaten.
    """
    counts_CLE = _by_class(units.counts_GLE, units.class_G, len(class_names))
    used = np.flatnonzero((counts_CLE.sum(axis=2) > 0).all(axis=1))
    if len(used) < 2:
        return None
    rng = np.random.default_rng(seed)
    pool, between = _distances(counts_CLE[used])
    chances = {"multinomial": _multinomial_classes(counts_CLE[used], rng)}
    if units.why_not is None:
        chances["permutation"] = _shuffled_classes(units, len(class_names), rng)[:, used]
    found = {name: _distances(counts) for name, counts in chances.items()}
    pairs = np.triu_indices(len(used), k=1)
    observed = float(between[pairs].mean())
    p_pool, p_between = None, None
    if "permutation" in found:
        per_null = [[_p_value(float(pool[i]), one[:, i]) for i in range(len(used))] for one, _ in found.values()]
        p_pool = np.max(per_null, axis=0)
        p_between = max(_p_value(observed, two[:, pairs[0], pairs[1]].mean(axis=1)) for _, two in found.values())
    return Specialisation(
        phase=phase,
        num_units=units.num,
        class_names=tuple(class_names[i] for i in used),
        against_pool_C=pool,
        between_CC=between,
        null_against_pool_C={name: np.nanmean(one, axis=0) for name, (one, _) in found.items()},
        null_between_CC={name: np.nanmean(two, axis=0) for name, (_, two) in found.items()},
        p_against_pool_C=p_pool,
        p_between=p_between,
    )


def _distances(counts_CLE: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Total variation against the pool [..., C] and between classes [..., C, C], mean over layers."""
    pool = _over_layers(total_variation(counts_CLE, counts_CLE.sum(axis=-3, keepdims=True)))
    columns = [
        _over_layers(total_variation(counts_CLE, counts_CLE[..., i : i + 1, :, :])) for i in range(counts_CLE.shape[-3])
    ]
    return pool, np.stack(columns, axis=-1)


def _multinomial_classes(counts_CLE: FloatArray, rng: np.random.Generator) -> FloatArray:
    pooled = shares(counts_CLE.sum(axis=0))
    drawn = [_draw(own.sum(axis=1).astype(np.int64), pooled, rng) for own in counts_CLE]
    return np.stack(drawn, axis=1)


def _by_class(counts_GLE: FloatArray | IntArray, class_G: IntArray, num: int) -> FloatArray:
    is_of_CG = class_G == np.arange(num)[:, None]
    return np.tensordot(is_of_CG.astype(np.float64), counts_GLE.astype(np.float64), axes=1)


def _shuffled_classes(units: Units, num_classes: int, rng: np.random.Generator) -> FloatArray:
    """Counts by class, shape [PERMUTATIONS, C, L, E], after class labels changed places within each block."""
    labels = units.class_G[np.argsort(units.block_G, kind="stable")]
    found = []
    for _ in range(PERMUTATIONS):
        order = np.lexsort((rng.random(len(labels)), units.block_G))
        found.append(_by_class(units.counts_GLE[order], labels, num_classes))
    return np.stack(found)


def first_with_routing(rounds: Sequence[PassTables]) -> tuple[PassTables, Routing] | None:
    """The first round that has routing counts with windows, layers and experts."""
    for tables in rounds:
        if tables.routing is not None and tables.routing.counts_WPCLE.size:
            return tables, tables.routing
    return None


NO_INTERVAL = "no interval: judged against its nulls, see its p"


def drift_by_phase(tables: PassTables, routing: Routing, seed: int = 0) -> tuple[tuple[Drift, Units], ...]:
    """Drift of all tokens, of prefill, and of decode, each with the units that it is judged by."""
    units = {phase: exchangeable_units(tables, routing, phase) for phase in (ALL, *PHASES)}
    return tuple((drift(phase, of, seed), of) for phase, of in units.items())


def specialisation_by_phase(
    tables: PassTables, routing: Routing, seed: int = 0
) -> tuple[tuple[Specialisation, Units], ...]:
    """Specialisation in prefill and in decode, where at least two classes have tokens."""
    found = []
    for phase in PHASES:
        units = exchangeable_units(tables, routing, phase, by_class=True)
        result = specialisation(phase, routing.class_names, units, seed)
        if result is not None:
            found.append((result, units))
    return tuple(found)


def shift_metrics(tables: PassTables, routing: Routing, labels: dict[str, str], seed: int = 0) -> list[MetricValue]:
    """``router_drift_js``, ``domain_specialisation`` and ``domain_total_variation``, each with its p."""
    values: list[MetricValue] = []
    for moved, units in drift_by_phase(tables, routing, seed):
        where, num = {**labels, "phase": moved.phase}, moved.num_units
        if moved.halves_js is None:
            names = ("router_drift_js", "router_drift_js_p")
            values += [missing(name, f"{num} {units.what} with tokens; drift needs two", **where) for name in names]
            continue
        why = units.why_not or too_few(num, units.what)
        values += _pair("router_drift_js", moved.halves_js, moved.p_value, moved.null_js, num, where, why)
    for found, units in specialisation_by_phase(tables, routing, seed):
        where, num, why = {**labels, "phase": found.phase}, found.num_units, units.why_not or ""
        for i, name in enumerate(found.class_names):
            null = {key: float(chance[i]) for key, chance in found.null_against_pool_C.items()}
            value = float(found.against_pool_C[i])
            p_value = None if found.p_against_pool_C is None else float(found.p_against_pool_C[i])
            values += _pair("domain_specialisation", value, p_value, null, num, {**where, "request_class": name}, why)
        pairs = np.triu_indices(len(found.class_names), k=1)
        null = {key: float(chance[pairs].mean()) for key, chance in found.null_between_CC.items()}
        mean = float(found.between_CC[pairs].mean())
        values += _pair("domain_total_variation", mean, found.p_between, null, num, where, why)
    return values


def _pair(
    name: str, value: float, p_value: float | None, null: dict[str, float], n: int, labels: dict[str, str], why: str
) -> list[MetricValue]:
    """A distance and its p; without a p the distance stands, and says why nothing can be claimed from it."""
    if p_value is None:
        alone = MetricValue(name=name, value=value, n=n, labels=labels, null=null, reasons=(f"cannot tell: {why}",))
        return [alone, missing(f"{name}_p", f"cannot tell: {why}", **labels)]
    return [
        MetricValue(name=name, value=value, n=n, labels=labels, null=null, reasons=(NO_INTERVAL,)),
        MetricValue(name=f"{name}_p", value=p_value, n=n, exact=True, labels=labels),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShares:
    """One heat map: the share of each layer's assignments that each expert took.

    Attributes:
        phase: ``all``, ``prefill`` or ``decode``.
        request_class: ``all`` or one class.
        layer_names: rows.
        counts_LE: assignments.
        shares_LE: counts over the layer's sum; NaN in a layer without any.
        tokens: tokens behind them.
        uniform_share: 1/E.
        uniform_max_over_mean_L: max/mean of each layer by chance, for as many tokens.
    """

    phase: str
    request_class: str
    layer_names: tuple[str, ...]
    counts_LE: IntArray
    shares_LE: FloatArray
    tokens: int
    uniform_share: float
    uniform_max_over_mean_L: FloatArray


def load_shares(rounds: Sequence[PassTables]) -> tuple[LoadShares, ...]:
    """Heat maps of the first round with routing: each phase with all classes, then each phase and class."""
    found = first_with_routing(rounds)
    if found is None:
        return ()
    routing = found[1]
    classes = (ALL, *routing.class_names) if len(routing.class_names) > 1 else (ALL,)
    maps = []
    for request_class in classes:
        for phase in (ALL, *PHASES):
            own = cell(routing, phase, request_class)
            if own.tokens:
                maps.append(_heat_map(routing, phase, request_class, own.counts_LE, own.tokens))
    return tuple(maps)


def _heat_map(routing: Routing, phase: str, request_class: str, counts_LE: IntArray, tokens: int) -> LoadShares:
    experts = routing.num_experts
    chance = [uniform_expectation(max_over_mean, experts, k, tokens) for k in routing.top_k_L.tolist()]
    return LoadShares(
        phase=phase,
        request_class=request_class,
        layer_names=routing.layer_names,
        counts_LE=counts_LE,
        shares_LE=shares(counts_LE),
        tokens=tokens,
        uniform_share=1 / experts,
        uniform_max_over_mean_L=np.array(chance),
    )
