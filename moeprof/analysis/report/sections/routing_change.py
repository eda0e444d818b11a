"""A change of routing on a page: what moved, how far beyond chance, and the load of every expert before and after.

A change of routing in sentences, most important first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.regress.routing.change import Both, LayerChange, RoutingChange
from moeprof.analysis.report.document import (
    Block,
    Chart,
    FactTable,
    HeatMap,
    HeatMapVariant,
    Paragraph,
    Section,
    Series,
)
from moeprof.core import units
from moeprof.core.metric import MetricValue

MOST = 6
MOST_DEAD = 3
SMALLEST_CHANCE = 1e-300
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


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
    """At most six sentences.

    Args:
        layers: every layer.
        agreement: ``routing_agreement_ratio``, or why there is none.
        verdict: of the change.
        exact: any difference is one.
    """
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


MOST_LAYERS = 12
MOST_EXPERTS = 12
ARROW = "\u2192"
MEANING = {
    "unchanged": "Unchanged.",
    "noise": "Noise: it differs as rounding and finite samples do.",
    "changed": "Changed, beyond rounding and chance; no layer collapsed.",
    "collapsed": "Collapsed: a layer lost experts, or sends nearly everything to few.",
}


def routing_section(changes: Sequence[RoutingChange]) -> Section | None:
    """What became of routing, per model; None where it was not looked at."""
    blocks = [block for change in changes for block in _blocks(change, f", {change.model}" * (len(changes) > 1))]
    return Section(name="routing", title="Routing before and after", blocks=tuple(blocks)) if blocks else None


def _blocks(change: RoutingChange, whose: str) -> list[Block]:
    said = f"{change.model}: " * bool(whose) + f"{MEANING[change.verdict]} {' '.join(change.sentences)}"
    blocks: list[Block] = [Paragraph(text=f"{said} {_sample(change)}")]
    if change.verdict == "unchanged":
        return blocks
    labels = layer_labels([layer.name for layer in change.layers])
    blocks.append(_layers(change, labels, whose))
    experts = _experts(change, labels, whose)
    figures = [_drift(change, whose)] if len(change.layers) > 1 else []
    return [*blocks, *([experts] if experts else []), *figures, _heat_map(change, whose), _figures(change, whose)]


def _sample(change: RoutingChange) -> str:
    """What was compared."""
    what = "the same tokens on both sides" if change.same_tokens else "loads alone, of tokens that may differ"
    how = "; nothing that decides routing differs, so any difference is one" if change.exact else ""
    return f"Compared: {change.tokens:,} tokens, {what}{how}."


def _layers(change: RoutingChange, labels: Sequence[str], whose: str) -> FactTable:
    """The layers that moved most, collapsed ones first; those that did not are only counted."""
    order = sorted(
        (i for i, layer in enumerate(change.layers) if layer.moved_ratio > 0 or layer.agreement_ratio not in (None, 1)),
        key=lambda i: (not change.layers[i].collapse, -change.layers[i].moved_ratio, i),
    )
    rows = [(labels[i], _layer(change.layers[i])) for i in order[:MOST_LAYERS]]
    for num, what in ((len(order) - MOST_LAYERS, "moved less"), (len(change.layers) - len(order), "unchanged")):
        if num > 0:
            rows.append((f"{num} other layer{'s' * (num > 1)}", what))
    return FactTable(title=f"Layers, the most moved first{whose}", rows=tuple(rows))


def _layer(layer: LayerChange) -> str:
    parts = []
    if layer.agreement_ratio is not None:
        parts.append(f"{percent(layer.agreement_ratio)} of the picks are the same")
    beyond = "beyond chance" if layer.is_beyond_null else "not beyond chance"
    parts.append(f"{percent(layer.moved_ratio)} of the load moved ({beyond})")
    parts.append(f"busiest over mean {_both(layer.max_over_mean)}")
    parts.append(f"entropy {_both(layer.entropy_ratio)}")
    if max(layer.dead):
        parts.append(f"dead experts {layer.dead[0]} {ARROW} {layer.dead[1]}{_ids(layer.newly_dead)}")
    if max(layer.nearly_dead) > max(layer.dead):
        parts.append(f"below a tenth of the mean {layer.nearly_dead[0]} {ARROW} {layer.nearly_dead[1]}")
    if layer.specialisation is not None:
        parts.append(f"difference of classes {_both(layer.specialisation)}")
    if layer.margin_p05 is not None:
        parts.append(f"margin (5th percentile) {_both(layer.margin_p05)}")
    return ", ".join(parts)


def _ids(experts: Sequence[int], most: int = 8) -> str:
    if not experts:
        return ""
    some = ", ".join(str(expert) for expert in experts[:most])
    more = f" and {len(experts) - most} more" if len(experts) > most else ""
    return f" (newly: {some}{more})"


def _both(values: Both) -> str:
    return f"{units.significant(values[0])} {ARROW} {units.significant(values[1])}"


def _experts(change: RoutingChange, labels: Sequence[str], whose: str) -> FactTable | None:
    """Single experts whose share of their layer changed most, over all layers."""
    moved = [(i, *one) for i, layer in enumerate(change.layers) for one in layer.moved]
    moved.sort(key=lambda one: (-abs(one[3] - one[2]), one[:2]))
    rows = tuple(
        (f"{labels[i]}, expert {expert}", f"{percent(before)} {ARROW} {percent(after)} of the layer's picks")
        for i, expert, before, after in moved[:MOST_EXPERTS]
    )
    return FactTable(title=f"Experts that moved most{whose}", rows=rows) if rows else None


def _drift(change: RoutingChange, whose: str) -> Chart:
    places = tuple(float(i) for i in range(len(change.layers)))
    series = [Series(name="drift", x=places, y=tuple(layer.drift_js for layer in change.layers))]
    null = tuple(layer.drift_null for layer in change.layers if layer.drift_null is not None)
    caption = "Jensen-Shannon divergence (base 2) of the loads before and after; 0: the same, 1: no expert in common."
    if len(null) == len(places):
        series.append(Series(name="by chance", x=places, y=null, style="dashed"))
        caption += " Dashed: what chance alone exceeds one time in twenty."
    return Chart(
        name=f"routing-drift-{change.model}",
        title=f"Drift per layer{whose}",
        caption=caption,
        x_label="MoE layer, in order",
        x_unit="",
        y_label="drift",
        y_unit="ratio",
        series=tuple(series),
    )


def _heat_map(change: RoutingChange, whose: str) -> HeatMap:
    """Now first; counts are not kept, so a cell says its load only."""
    return HeatMap(
        name=f"routing-load-{change.model}",
        title=f"Expert load before and after{whose}",
        caption="Tokens of each expert over the mean of its layer; 1 is balanced.",
        layers=tuple(layer.name for layer in change.layers),
        variants=tuple(
            HeatMapVariant(label=label, loads=tuple(_loads(layer.load[side]) for layer in change.layers), counts=())
            for side, label in ((1, "new run"), (0, "reference"))
        ),
    )


def _loads(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(share * len(shares), 4) for share in shares)


def _figures(change: RoutingChange, whose: str) -> FactTable:
    """All figures of the change: those that gates can name, and their totals over layers."""
    rows = tuple((card_for(value.name).title, _figure(value)) for value in change.metrics)
    return FactTable(title=f"All layers together{whose}", rows=rows)


def _figure(value: MetricValue) -> str:
    unit = card_for(value.name).unit
    if value.value is None:
        return f"{units.NOT_AVAILABLE} ({'; '.join(value.reasons)})"
    text = units.display(value.value, "" if unit == "experts" else unit)
    if value.ci_low is not None and value.ci_high is not None:
        text += f" (95 %: {units.interval(value.ci_low, value.ci_high, unit)})"
    if value.null:
        text += f" (by chance {', '.join(units.display(null, unit) for null in value.null.values())})"
    return text
