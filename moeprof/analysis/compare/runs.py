"""Run against run: every metric of every model that both runs hold, with ratio, interval and verdict.

The unit of repetition is the launch. Timed figures are judged by Welch's test on logarithms of five or more launches a
side, counted facts exactly; what the runs' facts forbid is incomparable, and a run against itself is the same run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from moeprof.analysis.compare.comparable import (
    Difference,
    classes_of,
    differences,
    facts_of,
    forbidden_by,
    price_difference,
)
from moeprof.analysis.compare.ratios import (
    STORED_FLOOR_RATIO,
    as_requests_tell,
    exact_ratio,
    interval_ratio,
    stored_ratios,
    untold,
)
from moeprof.analysis.compare.same_work import other_text
from moeprof.analysis.compare.split_prices import within_split
from moeprof.analysis.compare.tables import headline_keys
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.cost.bounds import bounds_by_figure
from moeprof.analysis.metrics.lookup import Key, by_key, by_launch, key_of, pick
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Card, MetricValue

GATES: tuple[tuple[str, dict[str, str]], ...] = (
    ("step_mean_s", {"phase": "decode"}),
    ("step_mean_s", {"phase": "prefill"}),
    ("energy_j_per_output_token", {}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricComparison:
    """One metric of one model in two runs.

    Attributes:
        model: its name.
        key: name and labels.
        reference, other: the values; None where a run has no such metric.
        ratio: other / reference, and the verdict.
        is_gate: one of the few figures that decide whether a run is worse; timed ones share their error (Holm).
    """

    model: str
    key: Key
    reference: MetricValue | None
    other: MetricValue | None
    ratio: Ratio
    is_gate: bool = False

    @property
    def name(self) -> str:
        """Full metric name."""
        return self.key[0]

    @property
    def card(self) -> Card:
        """Of the metric."""
        return card_for(self.name)

    @property
    def changed(self) -> bool:
        """Shown to differ."""
        return self.ratio.verdict in ("better", "worse")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelComparison:
    """One model in two runs; metrics in the order of the reference's summary.

    Attributes:
        name: of the model.
        metrics: all of them.
        headline: label -> which of them stand on the first screen.
    """

    name: str
    metrics: tuple[MetricComparison, ...]
    headline: Mapping[str, Key]

    @property
    def gates(self) -> tuple[MetricComparison, ...]:
        """The figures that decide."""
        return tuple(metric for metric in self.metrics if metric.is_gate)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsComparison:
    """Two runs.

    Attributes:
        reference, other: names of the runs.
        is_same_run: both are one and the same record.
        differences: facts that differ; see moeprof/analysis/compare/comparable.py.
        allow: names of facts that the user allows to differ.
        models: those that both runs hold.
        only_in_reference, only_in_other: models of one run only.
    """

    reference: str
    other: str
    is_same_run: bool
    differences: tuple[Difference, ...]
    allow: frozenset[str]
    models: tuple[ModelComparison, ...]
    only_in_reference: tuple[str, ...] = ()
    only_in_other: tuple[str, ...] = ()


def compare_runs(reference: Summary, other: Summary, allow: Collection[str] = ()) -> RunsComparison:
    """Compare every model that both runs hold, metric by metric; what differs forbids figures and raises nothing."""
    found = list(differences(facts_of(reference.record), facts_of(other.record)))
    price = price_difference(reference.pricing, other.pricing)
    found += [price] if price else []
    is_same = same_run(reference, other)
    names = [[model.name for model in summary.models] for summary in (reference, other)]
    pairs = [(reference.model(name), other.model(name)) for name in names[0] if name in names[1]]
    return RunsComparison(
        reference=reference.record.run,
        other=other.record.run,
        is_same_run=is_same,
        differences=tuple(found),
        allow=frozenset(allow),
        models=tuple(_model(first, second, found, allow, is_same) for first, second in pairs),
        only_in_reference=tuple(name for name in names[0] if name not in names[1]),
        only_in_other=tuple(name for name in names[1] if name not in names[0]),
    )


def same_run(first: Summary, second: Summary) -> bool:
    """One and the same record: the same folder, or a copy with the same header and the same steps."""
    one, other = first.record, second.record
    if one.path.resolve() == other.path.resolve():
        return True
    if one.experiment != other.experiment:
        return False
    passes = [[t for m in summary.models for t in (*m.rounds, *m.capacity)] for summary in (first, second)]
    return len(passes[0]) == len(passes[1]) and all(
        a.steps.equals(b.steps) and a.requests.equals(b.requests) for a, b in zip(*passes, strict=True)
    )


def gate_keys(model: ModelSummary) -> tuple[Key, ...]:
    """The timed figures that decide: mean decode and prefill step, energy per output token, of the priced passes."""
    picked = [pick(model, name, own_traffic=False, **labels) for name, labels in GATES]
    return tuple(key_of(value) for value in picked if value is not None and value.value is not None)


def _model(
    first: ModelSummary, second: ModelSummary, found: Sequence[Difference], allow: Collection[str], is_same: bool
) -> ModelComparison:
    sides = first.metrics, second.metrics
    metrics = compare_metrics(first.name, sides, found, allow, gates=gate_keys(first), is_same=is_same)
    return ModelComparison(name=first.name, metrics=metrics, headline=headline_keys((first, second)))


def compare_metrics(
    model: str,
    sides: tuple[Sequence[MetricValue], Sequence[MetricValue]],
    found: Sequence[Difference],
    allow: Collection[str],
    *,
    gates: Collection[Key],
    is_same: bool,
) -> tuple[MetricComparison, ...]:
    """Every figure of a model in two runs; ``sides`` hold values of single launches too, ``gates`` share one error."""
    values, others = by_key(sides[0]), by_key(sides[1])
    launches, other_launches = by_launch(sides[0]), by_launch(sides[1])
    samples = {
        key: (launch_samples(launches, value), launch_samples(other_launches, others[key]))
        for key, value in values.items()
        if key in others and "timed" in classes_of(key[0]) and not (value.exact and others[key].exact)
    }
    timed = stored_ratios({key: pair for key, pair in samples.items() if all(pair)}, gates)
    bounds = [bounds_by_figure(side) for side in sides]
    metrics = []
    for key in dict.fromkeys((*values, *others)):
        one, other = values.get(key), others.get(key)
        against = forbidden_by(found, classes_of(key[0]), model=model, allow=allow)
        ratio = _same(one, other) if is_same else _ratio(key, one, other, against, timed.get(key))
        ratio = within_split(ratio, bounds[0].get(key), bounds[1].get(key), floor_ratio=STORED_FLOOR_RATIO)
        metrics.append(
            MetricComparison(model=model, key=key, reference=one, other=other, ratio=ratio, is_gate=key in gates)
        )
    return tuple(metrics)


def launch_samples(launches: Mapping[Key, Mapping[int, float]], value: MetricValue) -> tuple[float, ...]:
    """Each launch's value; equal in all launches, or of a single one: the value itself, once."""
    own = launches.get(key_of(value))
    if own:
        return tuple(own.values())
    return () if value.value is None else (float(value.value),)


def _same(one: MetricValue | None, other: MetricValue | None) -> Ratio:
    known = one is not None and other is not None and one.value is not None
    return Ratio(value=1.0 if known else None, verdict="same run", reason=None if known else "not measured")


def _ratio(
    key: Key,
    one: MetricValue | None,
    other: MetricValue | None,
    against: Sequence[Difference],
    timed: Ratio | None,
) -> Ratio:
    better = card_for(key[0]).better
    if one is None or other is None:
        return Ratio(value=None, reason=f"the {'reference' if one is None else 'other'} run has no such figure")
    if against:
        names = ", ".join(dict.fromkeys(difference.name.replace("_", " ") for difference in against))
        flags = ",".join(dict.fromkeys(difference.name for difference in against))
        return Ratio(value=None, verdict="incomparable", reason=f"the runs differ in {names} (--allow {flags})")
    if one.value is None or other.value is None:
        return untold(one, other, better)
    if "quality" in classes_of(key[0]) and (unlike := other_text(one, other)) is not None:
        return Ratio(value=None, verdict="incomparable", reason=unlike)
    invalid = next((value.reasons[-1] for value in (one, other) if not value.valid and value.reasons), None)
    if timed is not None:
        timed = as_requests_tell(timed, one, other)
        return timed if invalid is None else replace(timed, verdict=timed.verdict and "cannot tell", reason=invalid)
    if "exact" in classes_of(key[0]) or (one.exact and other.exact) or one.value == other.value:
        return exact_ratio(one, other, better)
    return interval_ratio(one, other, better)
