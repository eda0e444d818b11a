"""What a change of the router means, in sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moeprof.analysis.regress.routing.change import LayerChange
from moeprof.core import units
from moeprof.core.metric import MetricValue


def layer_labels(names: Sequence[str]) -> tuple[str, ...]:
    """``model.layers.2.mlp`` -> ``layer 2``; the whole names where their numbers do not tell them apart."""
    numbers = [_NUMBER.findall(name) for name in names]
    short = [f"layer {found[-1]}" if found else name for found, name in zip(numbers, names, strict=True)]
    return tuple(short) if len(set(short)) == len(names) else tuple(names)


def percent(share: float) -> str:
    """``0.989`` -> ``98.9 %``; what is not quite everything is never called 100 %."""
    if 0.9995 <= share < 1:
        return f"{min(100 * share, 99.9999):.4f} %"
    return units.percent(share)


def chance_text(chance: float | None) -> str:
    """`` (chance 1e-40)``; nothing where counts are exact."""
    if chance is None:
        return ""
    return " (chance below 1e-300)" if chance <= SMALLEST_CHANCE else f" (chance {chance:.0e})"


def change_sentences(
    layers: Sequence[LayerChange], agreement: MetricValue, verdict: str, *, exact: bool
) -> tuple[str, ...]:
    """At most six sentences."""
    labels = layer_labels([layer.name for layer in layers])
    if verdict == "unchanged":
        what = "Every expert has as many tokens as before" if agreement.value is None else "Every pick is the same"
        return (f"{what} in all {len(layers)} MoE layers.",)
    found = [
        *_dead(layers, labels),
        *_concentrated(layers, labels),
        *_agreement(layers, labels, agreement),
        *_drift_sentence(layers, labels, verdict, exact=exact),
        *_nearly_dead(layers, labels),
        *_specialisation(layers, labels),
        *_margins(layers),
    ]
    return tuple(found[:MOST])


def _dead(layers: Sequence[LayerChange], labels: Sequence[str]) -> list[str]:
    gone = sorted(
        ((layer.load[0][expert], i, expert) for i, layer in enumerate(layers) for expert in layer.newly_dead),
        key=lambda one: (-one[0], one[1:]),
    )
    if len(gone) > MOST_DEAD:
        share, i, expert = gone[0]
        where = _layers_sentence(sorted({i for _, i, _ in gone}), labels)
        first = f"the busiest of them expert {expert} of {labels[i]} ({percent(share)} of its picks)"
        return [f"{len(gone)} experts of {where} get no token any more, {first}."]
    said = []
    for share, i, expert in gone:
        alone = chance_text(layers[i].chance_dead) if len(layers[i].newly_dead) == 1 else ""
        who = f"{_capital(labels[i])}: expert {expert}"
        said.append(f"{who} got {percent(share)} of the picks and gets none now{alone}.")
    return said


def _concentrated(layers: Sequence[LayerChange], labels: Sequence[str]) -> list[str]:
    worst = [(i, layer) for i, layer in enumerate(layers) if {"entropy", "busiest"} & set(layer.collapse)]
    if not worst:
        return []
    i, layer = max(worst, key=lambda one: one[1].entropy_ratio[0] - one[1].entropy_ratio[1])
    more = f"; {len(worst)} of {len(layers)} layers concentrate so" if len(worst) > 1 else ""
    before, after = (units.significant(x) for x in layer.entropy_ratio)
    then, now = (units.significant(x) for x in layer.max_over_mean)
    return [
        f"{_capital(labels[i])}: load entropy falls from {before} to {after}, and the busiest expert gets {now} times "
        f"the mean ({then} before){more}."
    ]


def _agreement(layers: Sequence[LayerChange], labels: Sequence[str], agreement: MetricValue) -> list[str]:
    if agreement.value is None:
        return [f"Which picks are the same is not known: {'; '.join(agreement.reasons)}."]
    low, high = agreement.ci_low, agreement.ci_high
    interval = "" if low is None or high is None else f" (95 %: {percent(low)} to {percent(high)})"
    rows = [(layer.agreement_ratio, i) for i, layer in enumerate(layers) if layer.agreement_ratio is not None]
    worst, where = min(rows)
    least = f", fewest in {labels[where]} ({percent(worst)})" if len(layers) > 1 else ""
    return [f"{percent(float(agreement.value))} of the picks are the same{interval}{least}."]


def _drift_sentence(layers: Sequence[LayerChange], labels: Sequence[str], verdict: str, *, exact: bool) -> list[str]:
    if verdict == "noise":
        return ["The differences are as small as rounding" + ("." if exact else " or the sample explains.")]
    beyond = [i for i, layer in enumerate(layers) if layer.is_beyond_null]
    if not beyond:
        return ["No layer's load drifted further than chance explains."]
    most = max(beyond, key=lambda i: layers[i].moved_ratio)
    layer = layers[most]
    null = "" if layer.drift_null is None else f", by chance up to {units.significant(layer.drift_null)}"
    where = "One layer's load" if len(layers) == 1 else f"The load of {len(beyond)} of {len(layers)} layers"
    what = "moved" if layer.drift_null is None else "moved further than chance explains"
    return [
        f"{where} {what}, most in {labels[most]}: {percent(layer.moved_ratio)} of it went to other experts "
        f"(Jensen-Shannon {units.significant(layer.drift_js)}{null})."
    ]


def _nearly_dead(layers: Sequence[LayerChange], labels: Sequence[str]) -> list[str]:
    faint = [(i, set(layer.newly_nearly_dead) - set(layer.newly_dead)) for i, layer in enumerate(layers)]
    faint = [(i, experts) for i, experts in faint if experts]
    num = sum(len(experts) for _, experts in faint)
    if not num:
        return []
    where = _layers_sentence([i for i, _ in faint], labels)
    who = "expert falls" if num == 1 else "experts fall"
    return [f"{num} {who} below a tenth of the mean load, in {where}."]


def _specialisation(layers: Sequence[LayerChange], labels: Sequence[str]) -> list[str]:
    lost = []
    for i, layer in enumerate(layers):
        if layer.specialisation is not None and layer.specialisation_null is not None:
            fall = layer.specialisation[0] - layer.specialisation[1]
            if fall > max(layer.specialisation_null, 0.0):
                lost.append((fall, i, layer.specialisation))
    if not lost:
        return []
    _, i, (before, after) = max(lost)
    return [
        f"Request classes are routed more alike in {len(lost)} of {len(layers)} layers, most in {labels[i]}: they "
        f"differ in {percent(after)} of the load, {percent(before)} before."
    ]


def _margins(layers: Sequence[LayerChange]) -> list[str]:
    known = [layer.margin_p50 for layer in layers if layer.margin_p50 is not None]
    if not known:
        return []
    before, after = (sum(both[side] for both in known) / len(known) for side in (0, 1))
    if before <= 0 or 0.9 < after / before < 1.1:
        return []
    what = "closer" if after < before else "less close"
    return [
        f"Routing decisions are {what}: the median margin goes from {units.significant(before)} to "
        f"{units.significant(after)}."
    ]


def _layers_sentence(where: Sequence[int], labels: Sequence[str]) -> str:
    if len(where) == 1:
        return labels[where[0]]
    return f"{len(where)} layers"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("layer ") else text


MOST = 6


MOST_DEAD = 3


SMALLEST_CHANCE = 1e-300


_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
