"""From gates as written to the values they mean: which of a metric's values, in which direction, of which models.

A gate without labels means the plain value: the total window, all phases together. Dollars, throughput, work, energy
and step times mean the priced passes (the capacity pass of an open-loop run), latencies the workload's own traffic.

The gates in force where nobody names any: few, and each for a reason.

Exact ones count what every token costs. Timed ones are few because they share one error (Holm, METRICS section 9); no
threshold is written for them: theirs is the floor of how they were measured (see pairs.py and compare/ratios.py).

What a gate's metric is, and which direction of it is worse: by its card, or by the gate's sign.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from moeprof.analysis.compare.comparable import classes_of
from moeprof.analysis.metrics.cards import STATISTIC, all_cards, card_for
from moeprof.analysis.metrics.lookup import DETAIL, PRICED_SECTIONS, PROVENANCE, Key, key_of
from moeprof.analysis.regress.result import SOURCE, ChosenGate, GateClass
from moeprof.analysis.regress.routing.change import RoutingChange, gate_figure
from moeprof.core.baseline.baseline import Baseline, BaselineModel
from moeprof.core.errors import InputError
from moeprof.core.metric import Better, Card, MetricValue, missing
from moeprof.core.workload.gates import Gate, parse_gate

FLOOR = "floor"  # on a card: stands for the threshold of a default timed gate


def default_gates(group: str = "default", *, floor_ratio: float) -> tuple[Gate, ...]:
    """The gates of a group; ``default``: of all groups.

    Args:
        group: one of :data:`moeprof.core.workload.gates.GROUPS`.
        floor_ratio: what a default timed gate allows: 0.10 against a stored run, 0.015 in lock-step, 0.05 between two
            processes.
    """
    chosen = [(place, card) for card in all_cards() for place in card.gates if group == "default" or card.kind == group]
    return tuple(_gate(card.gate(place), floor_ratio) for place, card in sorted(chosen, key=lambda one: one[0].rank))


def _gate(text: str, floor_ratio: float) -> Gate:
    gate = parse_gate(text.replace(FLOOR, f"{100 * floor_ratio:g}%"), SOURCE)
    assert isinstance(gate, Gate), "no default is a word"
    return replace(gate, source=SOURCE)


BETWEEN_RUNS_FROM_0 = {"router_drift_js"}  # 0 where nothing changed, so no share of it can be allowed


def named(gate: Gate) -> str:
    """Where a gate was written, and what: how messages about it begin."""
    return f"{gate.source + ': ' if gate.source else ''}gate {gate.text!r}: "


def card_of(gate: Gate, names: Collection[str] = ()) -> Card:
    """The card of the gate's metric.

    Raises:
        InputError: there is no such metric; the nearest names are said.
    """
    try:
        return card_for(gate.metric)
    except KeyError as error:
        found = re.search(STATISTIC, gate.metric)
        statistic = found[0] if found else "mean"
        known = sorted({*names, *(card.name.replace("*", statistic) for card in all_cards())})
        close = difflib.get_close_matches(gate.metric, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "`moeprof explain` lists them"
        raise InputError(f"{named(gate)}there is no metric {gate.metric!r}; {hint}") from error


def direction(gate: Gate, card: Card) -> Better:
    """Which direction is better here; ``neither``: any change is worse.

    Raises:
        InputError: the card knows none and no sign was written; the sign contradicts the card; a threshold that
            cannot be passed.
    """
    start = named(gate)
    if gate.kind in ("at_most", "at_least"):
        return "lower" if gate.kind == "at_most" else "higher"
    if gate.kind == "ratio" and gate.metric in BETWEEN_RUNS_FROM_0:
        raise InputError(f"{start}it is 0 where nothing changed, so a share of it says nothing; give a number: "
                         f"{gate.metric}:+0.02")  # fmt: skip
    if gate.sign is None:
        if card.better == "neither":
            raise InputError(f"{start}neither direction of this figure is better by itself; write a sign: + (a rise "
                             "is worse), - (a fall is worse) or +- (both)")  # fmt: skip
        better: Better = card.better
    elif gate.sign == "+-":
        better = "neither"
    else:
        better = "lower" if gate.sign == "+" else "higher"
        if card.better not in ("neither", better):
            worse = {"lower": ("a fall", "+"), "higher": ("a rise", "-")}[card.better]
            raise InputError(f"{start}{worse[0]} is better here ({card.better} is better); leave the sign out, or "
                             f"write {worse[1]}")  # fmt: skip
    if better == "higher" and gate.kind == "ratio" and gate.amount >= 1:
        raise InputError(f"{start}nothing falls by {gate.amount:.0%}; less than 100 % is allowed")
    return better


IMPLIED = {"window": "total", "phase": "all"}  # what a gate that does not say means
ONLY_BETWEEN_RUNS = {"routing_agreement_ratio"}  # a run alone has another figure of this name
OF_TWO_RUNS = {*ONLY_BETWEEN_RUNS, "router_drift_js"}  # figures that are themselves a comparison
ModelPair = tuple[BaselineModel, BaselineModel]


def model_pairs(reference: Baseline, other: Baseline) -> tuple[ModelPair, ...]:
    """Models by name; the only model of each side is a pair whatever the names."""
    if len(reference.models) == len(other.models) == 1:
        return ((reference.models[0], other.models[0]),)
    found = ((reference.model(model.name), model) for model in other.models)
    return tuple((one, model) for one, model in found if one is not None)


def resolve(
    gates: Sequence[Gate | str] | None,
    pairs: Sequence[ModelPair],
    *,
    floor_ratio: float,
    routing: Iterable[RoutingChange] = (),
) -> tuple[ChosenGate, ...]:
    """Which values the gates mean. A default gate that neither side can answer does not apply.

    Args:
        gates: as written, with words for groups; None or empty: the defaults. A gate that was named stands for a
            default one on the same value.
        pairs: each model in the reference and in the new run.
        floor_ratio: threshold of default timed gates.
        routing: how routing changed, per model.

    Raises:
        InputError: no such metric or label, no direction, or nothing that a named gate could be judged by.
    """
    changes = {change.model: change for change in routing}
    chosen: dict[tuple[str, Key, str], ChosenGate] = {}
    for gate in _spread(gates or ("default",), floor_ratio):
        card = card_of(gate, _names(pairs))
        better = direction(gate, card)
        own = [pair for pair in pairs if dict(gate.labels).get("model") in (None, pair[1].name)]
        found = [_of_model(gate, card, better, pair, changes.get(pair[1].name)) for pair in own]
        applies = [one for one in found if one is not None]
        if gate.source != SOURCE and not any(map(_is_known, applies)):
            raise InputError(_nothing(gate, pairs, applies))
        for one in filter(_is_known, applies):  # a dense model has no router: that is no failure of the gate
            # both bounds of a figure may be in force, and a threshold beside them
            key = (one.model, one.key, gate.kind if one.kind == "bound" else "threshold")
            chosen[key] = _stronger(chosen[key], one) if key in chosen else one
    if not chosen:
        raise InputError(f"no gate applies: neither side has a figure of {', '.join(map(str, gates or ('default',)))}")
    return tuple(chosen.values())


def check_gates(gates: Iterable[Gate | str]) -> None:
    """What can be wrong with gates before anything is measured.

    Raises:
        InputError: no such metric, no direction, a sign against the card.
    """
    for gate in gates:
        if isinstance(gate, Gate):
            direction(gate, card_of(gate))


def _spread(gates: Sequence[Gate | str], floor_ratio: float) -> list[Gate]:
    """Words become gates; named ones first, so that they win over defaults."""
    named = [gate for gate in gates if isinstance(gate, Gate)]
    groups = [group for group in gates if isinstance(group, str)]
    return named + [gate for group in groups for gate in default_gates(group, floor_ratio=floor_ratio)]


def _stronger(first: ChosenGate, second: ChosenGate) -> ChosenGate:
    """Of two gates on one value: a named one before a default one, and that of one model before that of all.

    Raises:
        InputError: neither comes before the other; none may be dropped in silence.
    """
    ranks = [(not one.is_default, "model" in dict(one.gate.labels)) for one in (first, second)]
    if ranks[0] == ranks[1] and (first.gate.amount, first.gate.sign) != (second.gate.amount, second.gate.sign):
        raise InputError(f"{named(second.gate)}the same value of {second.model} has the gate {first.gate.text!r} too; "
                         "one of them is allowed")  # fmt: skip
    return second if ranks[1] > ranks[0] else first


def _is_known(chosen: ChosenGate) -> bool:
    values = (chosen.other,) if chosen.kind == "bound" else (chosen.reference, chosen.other)
    return chosen.figure is not None or any(value is not None and value.value is not None for value in values)


def _of_model(
    gate: Gate, card: Card, better: Better, pair: ModelPair, change: RoutingChange | None
) -> ChosenGate | None:
    """The gate on one model; None where the model has no value of this name and labels at all."""
    given, is_bound = _given(gate), gate.kind in ("at_most", "at_least")
    found = ChosenGate(
        gate=gate, kind="bound" if is_bound else "routing", model=pair[1].name, card=card, better=better,
        key=(gate.metric, tuple(given.items())), reference=None, other=None,
    )  # fmt: skip
    if change is not None and not set(given) - {"phase"} and (gate.metric in OF_TWO_RUNS or not is_bound):
        figure = gate_figure(change, gate.metric, given.get("phase", "all"))
        if figure is not None:
            low, high = figure.interval or (None, None)
            before = MetricValue(name=gate.metric, value=figure.reference)
            now = MetricValue(name=gate.metric, value=figure.other, ci_low=low, ci_high=high)
            return replace(found, reference=before, other=now, figure=figure)
    if gate.metric in ONLY_BETWEEN_RUNS:
        return _lost(found, pair, change)
    key = _key(gate, card, pair)
    if key is None:
        return None
    sides = [next((v for v in _plain_values(m.metrics) if key_of(v) == key), None) for m in pair]
    kind: GateClass = "bound" if is_bound else _kind(key[0], sides)
    return replace(found, kind=kind, key=key, reference=sides[0], other=sides[1])


def _lost(chosen: ChosenGate, pair: ModelPair, change: RoutingChange | None) -> ChosenGate | None:
    """Agreement that nobody can tell: one side has picks, the other none of the same tokens."""
    name = chosen.gate.metric
    if (pair[0].picks is None and pair[1].picks is None) or _given(chosen.gate):  # neither recorded any
        return None
    found = None if change is None else change.metric(name)
    side = "the new run" if pair[1].picks is None else "the baseline"
    without = f"{side} has no picks of forced tokens" + ("" if pair[1].picks is None else ": is its .npz there?")
    reasons = (*(found.reasons if found is not None and None not in (pair[0].picks, pair[1].picks) else ()), without)
    return replace(chosen, reference=MetricValue(name=name, value=1.0), other=missing(name, reasons[0]))


def _plain_values(values: Iterable[MetricValue]) -> list[MetricValue]:
    """Of all launches together, without the finest cuts."""
    return [value for value in values if not DETAIL & set(value.labels)]


def _kind(name: str, sides: Sequence[MetricValue | None]) -> GateClass:
    """How it is judged: what is counted exactly on both sides is exact, whatever its section."""
    classes = classes_of(name)
    known = [value for value in sides if value is not None and value.value is not None]
    if "exact" in classes or ("timed" in classes and known and all(value.exact for value in known)):
        return "exact"
    return "routing" if "routing" in classes else "quality" if "quality" in classes else "timed"


def _key(gate: Gate, card: Card, pair: ModelPair) -> Key | None:
    """The value that is meant: of the reference, where the new run has it too; else of the one that has it."""
    picked = [_pick(gate, card, model) for model in pair]
    keys = [key_of(value) for value in picked if value is not None]
    both = [key for key in keys if all(any(key_of(v) == key for v in model.metrics) for model in pair)]
    return next(iter((*both, *keys)), None)


def _pick(gate: Gate, card: Card, model: BaselineModel) -> MetricValue | None:
    fitting = _fitting(gate, model)
    plain = [value for value in fitting if not _unsaid(value, gate)]
    traffic = _traffic(gate.metric, card, model)
    ours = [value for value in plain if value.labels.get("traffic", traffic) == traffic]
    return next(iter((*ours, *plain)), None)


def _given(gate: Gate) -> dict[str, str]:
    return {name: value for name, value in gate.labels if name != "model"}


def _fitting(gate: Gate, model: BaselineModel) -> list[MetricValue]:
    """Values of the metric that carry the labels that were written."""
    given = _given(gate).items()
    return [v for v in _plain_values(model.metrics) if v.name == gate.metric and given <= v.labels.items()]


def _unsaid(value: MetricValue, gate: Gate) -> dict[str, str]:
    """Labels that would have had to be written."""
    known = {*_given(gate), *PROVENANCE}
    return {name: label for name, label in value.labels.items() if name not in known and IMPLIED.get(name) != label}


def _traffic(metric: str, card: Card, model: BaselineModel) -> str | None:
    """Of the passes that are meant; a baseline that does not know guesses from what it holds."""
    is_priced = card.section in PRICED_SECTIONS or metric.startswith("step_")
    known = model.priced_traffic if is_priced else model.own_traffic
    if known is not None:
        return known
    held = {value.labels["traffic"] for value in model.metrics if "traffic" in value.labels}
    own = next((traffic for traffic in ("open", "closed", "offline") if traffic in held), None)
    return "offline" if is_priced and "offline" in held else own


def _names(pairs: Sequence[ModelPair]) -> frozenset[str]:
    return frozenset(value.name for pair in pairs for model in pair for value in model.metrics)


def _nothing(gate: Gate, pairs: Sequence[ModelPair], applies: Sequence[ChosenGate]) -> str:
    """Why a gate that was named has nothing to be judged by."""
    start = named(gate)
    names = [pair[1].name for pair in pairs]
    model = dict(gate.labels).get("model")
    if model is not None and model not in names:
        return f"{start}no model {model!r} on both sides; there is {', '.join(names)}"
    pairs = [pair for pair in pairs if model in (None, pair[1].name)]
    held = [
        v for pair in pairs for m in pair for v in m.metrics if v.name == gate.metric and not DETAIL & set(v.labels)
    ]
    if not held and gate.metric not in ONLY_BETWEEN_RUNS:
        return f"{start}neither side has this figure"
    if gate.metric in ONLY_BETWEEN_RUNS:
        needs = "the picks of the same forced tokens on both sides"
        return f"{start}it needs {needs}, which a dense model and a baseline without its .npz do not have"
    if applies:
        reasons = [value.reasons[0] for one in applies for value in (one.reference, one.other) if value is not None
                   and value.reasons]  # fmt: skip
        return f"{start}not measured on {'the new' if gate.kind in ('at_most', 'at_least') else 'either'} side" + (
            f" ({reasons[0]})" if reasons else ""
        )
    wanted = ", ".join(f"{name}={value}" for name, value in _given(gate).items())
    which = (
        f"no value with {wanted}" if not any(_fitting(gate, m) for pair in pairs for m in pair) else "several values"
    )
    return f"{start}{which}; there is {_label_lists(held)}"


def _label_lists(values: Iterable[MetricValue]) -> str:
    found: dict[str, dict[str, None]] = {}
    for value in values:
        for name, label in value.labels.items():
            found.setdefault(name, {})[label] = None
    return "; ".join(f"{name}: {', '.join(labels)}" for name, labels in found.items()) or "only the plain value"
