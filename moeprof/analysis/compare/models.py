"""Models of one run side by side: every metric with its ratio to a reference, interval and verdict (docs/metrics.md).

Same schedule, interleaved rounds: samples are paired (see moeprof/analysis/compare/pairs.py). What may not be compared,
tokens of different tokenizers, dollars of machines that stood idle, unequal work, is incomparable, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moeprof.analysis.compare.comparable import classes_of
from moeprof.analysis.compare.pairs import (
    Repeats,
    paired_logs,
    ratio_of_pairs,
    ratio_of_requests,
    ratio_of_texts,
    repeats,
    wider,
)
from moeprof.analysis.compare.ratios import (
    PAIRED_FLOOR_RATIO,
    estimated_ratio,
    exact_ratio,
    interval_ratio,
    timed_pair_ratio,
    untold,
)
from moeprof.analysis.compare.same_work import Work, other_text, why_incomparable
from moeprof.analysis.compare.split_prices import within_split
from moeprof.analysis.compare.tables import Compared
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.cost.bounds import SplitBounds, bounds_by_figure
from moeprof.analysis.metrics.lookup import Key, by_key, key_of, pick
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.stats.estimate import ROUNDS, Ratio
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue

ONE_LAUNCH = "speaks for this launch"
OTHER_TOKENS = "different tokenizers"
COSTS = ("usd_per_1m_total_tokens", "usd_per_request")


def compare_models(summary: Summary, reference: str) -> dict[Key, Compared]:
    """Every metric of every model with ratios to the reference, in the order in which the models have them.

    Raises:
        InputError: the run has no such model.
    """
    index_of(summary, reference)
    found = summary.once(ModelRatios)
    names = [model.name for model in summary.models]
    return {
        key: Compared(
            values=tuple(found.sides[name].values.get(key) for name in names),
            ratios=tuple(None if name == reference else found.ratio(key, name, reference) for name in names),
        )
        for key in dict.fromkeys(key for name in names for key in found.sides[name].values)
    }


class ModelRatios:
    """The ratio, interval and verdict of a figure of one model over another's: one object, whichever page asks."""

    def __init__(self, summary: Summary) -> None:
        self.sides = {model.name: _Side.of(model, summary) for model in summary.models}
        self._found: dict[tuple[Key, str, str], Ratio] = {}

    def ratio(self, key: Key, of: str, against: str) -> Ratio:
        """Of two models by name; ``against`` is the denominator."""
        asked = (key, of, against)
        if asked not in self._found:
            self._found[asked] = _ratio(key, self.sides[against], self.sides[of])
        return self._found[asked]


def cost_ratio(summary: Summary, of: ModelSummary, against: ModelSummary) -> Ratio:
    """Dollars of two models for the same requests: per token, or per request where their tokens are not the same."""
    found = summary.once(ModelRatios)
    for name in COSTS:
        value = pick(against, name, own_traffic=False)
        ratio = None if value is None else found.ratio(key_of(value), of.name, against.name)
        if ratio is not None and ratio.reason != OTHER_TOKENS:
            return ratio
    return Ratio(value=None, verdict="cannot tell", reason="no dollars were measured of both")


def index_of(summary: Summary, reference: str) -> int:
    """Place of a model among those of the run.

    Raises:
        InputError: the run has no such model.
    """
    names = [model.name for model in summary.models]
    if reference not in names:
        raise InputError(f"reference: the run has no model {reference!r}; it has: {', '.join(names)}")
    return names.index(reference)


@dataclass(frozen=True, kw_only=True)
class _Side:
    """A model with everything that ratios need, computed once."""

    model: ModelSummary
    values: Mapping[Key, MetricValue]
    bounds: Mapping[Key, SplitBounds]
    repeats: Repeats
    tokenizer: str | None
    work: Work

    @staticmethod
    def of(model: ModelSummary, summary: Summary) -> _Side:
        return _Side(
            model=model,
            values=by_key(model.metrics),
            bounds=bounds_by_figure(model.metrics),
            repeats=repeats(model, summary.pricing, summary.record.slo),
            tokenizer=summary.record.schedule(model.name).tokenizer_hash,
            work=Work.of(model),
        )


def _ratio(key: Key, base: _Side, side: _Side) -> Ratio:
    """One cell."""
    ratio = _of_values(key, base, side)
    return within_split(ratio, base.bounds.get(key), side.bounds.get(key), floor_ratio=PAIRED_FLOOR_RATIO)


def _of_values(key: Key, base: _Side, side: _Side) -> Ratio:
    card, classes = card_for(key[0]), classes_of(key[0])
    first, second = base.values.get(key), side.values.get(key)
    if first is None or second is None:
        lacking = base.model.name if first is None else side.model.name
        return Ratio(value=None, reason=f"{lacking} has no such figure")
    if base.tokenizer != side.tokenizer and classes & {"tokens", "routing"}:
        return Ratio(value=None, verdict="incomparable", reason=OTHER_TOKENS)
    reason = why_incomparable(key, base.work, side.work)
    if reason is not None:
        return Ratio(value=None, verdict="incomparable", reason=reason)
    if first.value is None or second.value is None:
        return untold(first, second, card.better)
    if "exact" in classes or (first.exact and second.exact):
        return exact_ratio(first, second, card.better)
    if "quality" in classes and (unlike := other_text(first, second)) is not None:
        return Ratio(value=None, verdict="incomparable", reason=unlike)
    paired = ratio_of_texts(side.model, base.model) if "quality" in classes else None
    if paired is not None:
        return estimated_ratio(paired, card.better)
    if classes & {"routing", "quality"}:
        return interval_ratio(first, second, card.better)
    return _timed(key, base, side, first, second)


def _timed(key: Key, base: _Side, side: _Side, first: MetricValue, second: MetricValue) -> Ratio:
    logs = paired_logs(side.repeats.of(key), base.repeats.of(key))
    card = card_for(key[0])
    if not logs or card.of_requests:  # rounds and launches repeat the same requests: what repeats is no evidence
        return interval_ratio(first, second, card.better)
    estimate, better = ratio_of_pairs(logs, base.repeats.unit), card.better
    invalid = next((value.reasons[-1] for value in (first, second) if not value.valid and value.reasons), None)
    if base.repeats.unit == "launch":
        return timed_pair_ratio(estimate, better, logs=logs, invalid=invalid)
    estimate = wider(estimate, ratio_of_requests(key, side.model, base.model))
    return replace(timed_pair_ratio(estimate, better, reasons=(ONE_LAUNCH,), invalid=invalid), by=ROUNDS)
