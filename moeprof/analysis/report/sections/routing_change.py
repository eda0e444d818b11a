"""A change of routing on a page: what moved, how far beyond chance, and the load of every expert before and after.

A change of routing in sentences, most important first.
"""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.regress.routing.change import Both, LayerChange, RoutingChange
from moeprof.analysis.regress.routing.sentences import layer_labels, percent
from moeprof.analysis.report.document import (
    Block,
    Chart,
    HeatMap,
    HeatMapVariant,
    Paragraph,
    Section,
    Series,
    Table,
)
from moeprof.analysis.report.tables import facts
from moeprof.core import units
from moeprof.core.metric import MetricValue

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


def _layers(change: RoutingChange, labels: Sequence[str], whose: str) -> Table:
    """The layers that moved most, collapsed ones first; those that did not are only counted."""
    order = sorted(
        (i for i, layer in enumerate(change.layers) if layer.moved_ratio > 0 or layer.agreement_ratio not in (None, 1)),
        key=lambda i: (not change.layers[i].collapse, -change.layers[i].moved_ratio, i),
    )
    rows = [(labels[i], _layer(change.layers[i])) for i in order[:MOST_LAYERS]]
    for num, what in ((len(order) - MOST_LAYERS, "moved less"), (len(change.layers) - len(order), "unchanged")):
        if num > 0:
            rows.append((f"{num} other layer{'s' * (num > 1)}", what))
    return facts(f"Layers, the most moved first{whose}", rows)


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


def _experts(change: RoutingChange, labels: Sequence[str], whose: str) -> Table | None:
    """Single experts whose share of their layer changed most, over all layers."""
    moved = [(i, *one) for i, layer in enumerate(change.layers) for one in layer.moved]
    moved.sort(key=lambda one: (-abs(one[3] - one[2]), one[:2]))
    rows = tuple(
        (f"{labels[i]}, expert {expert}", f"{percent(before)} {ARROW} {percent(after)} of the layer's picks")
        for i, expert, before, after in moved[:MOST_EXPERTS]
    )
    return facts(f"Experts that moved most{whose}", rows) if rows else None


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


def _figures(change: RoutingChange, whose: str) -> Table:
    """All figures of the change: those that gates can name, and their totals over layers."""
    rows = tuple((card_for(value.name).title, _figure(value)) for value in change.metrics)
    return facts(f"All layers together{whose}", rows)


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
