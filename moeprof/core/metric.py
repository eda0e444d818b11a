"""A metric's card (what it is) and a metric's value (what was measured). docs/metrics.md lists every card."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

Better = Literal["lower", "higher", "neither"]
Kind = Literal["exact", "routing", "quality", "timed"]
MetricClass = Literal[Kind, "tokens"]
Need = Literal["steps", "memory", "module", "energy"]


NOT_FINITE = "what it is worked out from is not there, or is no number that can be measured"


@dataclass(frozen=True, slots=True)
class Place:
    """A figure's place among chosen ones: the first screen, the default gates, the headline of a baseline.

    Attributes:
        rank: smaller ones stand first; no two of a list are equal.
        text: its label on the first screen, or what a gate allows.
        of: which of a family: ``p50``; ``+`` is the highest percentile that the sample supports.
        phase: ``prefill`` or ``decode``, where the figure has several.
        own: of the workload's own traffic, whatever passes the metric is priced by.
    """

    rank: int
    text: str = ""
    of: str = ""
    phase: str = ""
    own: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """As :func:`moeprof.analysis.metrics.lookup.pick` takes them, ``own`` apart."""
        return {"phase": self.phase} if self.phase else {}


@dataclass(frozen=True, slots=True)
class Card:
    """What a metric is: all that pages, gates and comparisons need to know of it.

    Attributes:
        name: stable identifier; ``*`` stands for the statistic in families such as ``ttft_*_s``.
        title: short, for tables.
        unit: SI unit or ``ratio``, ``share`` (0 to 1, per cent on pages), ``tokens``, ``experts``, ``USD``,
            ``USD / 1M tokens``...
        better: which direction is better.
        formula: one line.
        section: of the report; one of moeprof.analysis.metrics.cards.SECTION_TITLES.
        source: where the definition comes from.
        kind: what must be equal before two runs may be set against each other. ``exact``: the model. ``routing``:
            where tokens went and what that implies, a fact of model, tokens and kernel. ``quality``: model and text.
            ``timed``: seconds, dollars, joules, resident memory: machine, engine and schedule as well.
        counts_tokens: stated of timed metrics alone: the figure means nothing across tokenizers.
        from_routing: worked out from the router's counts, so void where the tap failed its checks.
        of_batches: depends on which requests met in a step, and so on time.
        bounded: a share that cannot leave [0, 1].
        needs: what a deployment must tell of itself for the figure to be worked out; what it does not tell stands in
            ``lacks`` of launch.json.
        of_requests: a share of requests, or of what requests consist of: the interval of one launch is binomial over
            distinct requests, joined with that over rounds.
        screen: places on the first screen of a report.
        gates: default gates of ``moeprof regress``.
        baseline: places among the headline figures of a baseline.
    """

    name: str
    title: str
    unit: str
    better: Better
    formula: str
    _: KW_ONLY
    section: str
    source: str
    kind: Kind
    counts_tokens: bool | None = None
    from_routing: bool = False
    of_batches: bool = False
    bounded: bool = False
    needs: Need | None = None
    of_requests: bool = False
    screen: tuple[Place, ...] = ()
    gates: tuple[Place, ...] = ()
    baseline: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "timed") is (self.counts_tokens is None):
            raise ValueError(f"{self.name}: counts_tokens is stated of timed metrics, and of these alone")

    @property
    def classes(self) -> frozenset[MetricClass]:
        """The kind, and ``tokens`` beside it where the figure counts tokens."""
        return frozenset({self.kind, "tokens"} if self.counts_tokens else {self.kind})

    @property
    def kind_text(self) -> str:
        """``timed, tokens``."""
        return f"{self.kind}, tokens" if self.counts_tokens else self.kind

    def gate(self, place: Place) -> str:
        """A default gate as one would write it: ``router_load_max_over_mean{phase=decode}:+0.2``."""
        labels = f"{{phase={place.phase}}}" if place.phase else ""
        return f"{self.name.replace('*', place.of)}{labels}:{place.text}"

    @property
    def reference(self) -> str:
        """Where the metric stands in the documentation."""
        return f"docs/metrics.md#{self.name.replace('_*', '')}"


LEAST_SHARE = 0.2  # of a phase's tokens: with less behind it, a figure is no headline of the phase


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """One measured number, or the reason why there is none.

    Attributes:
        name: the metric's identifier, statistic included.
        value: None when not measured; then ``reasons`` is not empty.
        n: independent samples behind it, or None for counted facts.
        ci_low, ci_high: 95 % interval, or None with the reason in ``reasons`` or because the value is exact.
        exact: True for counted facts that need no interval.
        labels: phase, layer, request_class, window (total | steady), traffic (open | closed | offline), launch.
        valid: False when a check failed; the value is then shown with its reasons.
        reasons: sentences or reason codes.
        null: expectation under the null models, by name (for example {"uniform": 51.6, "marginal": 40.2}).
        share: of the tokens of its phase that its steps hold, where not all; the first reason then says it in words.
    """

    name: str
    value: float | int | None
    n: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    exact: bool = False
    labels: dict[str, str] = field(default_factory=dict)
    valid: bool = True
    reasons: tuple[str, ...] = ()
    null: dict[str, float] = field(default_factory=dict)
    share: float | None = None

    @property
    def as_headline(self) -> MetricValue:
        """As headlines and first screens show it: n/a where its steps speak for too little of their phase."""
        if self.value is None or self.share is None or self.share >= LEAST_SHARE:
            return self
        too_few = f"{self.reasons[0]}: too few to speak for it"
        return missing(self.name, too_few, **self.labels)

    def __post_init__(self) -> None:
        """No figure is NaN or infinite, whatever a damaged record says: there is none then, and why."""
        given = (self.value, self.ci_low, self.ci_high, *self.null.values())
        if all(number is None or math.isfinite(number) for number in given):
            return
        for name in ("value", "ci_low", "ci_high"):
            number = getattr(self, name)
            object.__setattr__(self, name, number if number is not None and math.isfinite(number) else None)
        object.__setattr__(self, "null", {name: null for name, null in self.null.items() if math.isfinite(null)})
        object.__setattr__(self, "reasons", (*self.reasons, NOT_FINITE))

    def to_json(self, card: Card) -> dict[str, Any]:
        """The self-describing entry of summary.json."""
        return {
            "name": self.name,
            "title": card.title,
            "unit": card.unit,
            "value": self.value,
            "better": card.better,
            "n": self.n,
            "ci_low": self.ci_low,
            "ci_high": self.ci_high,
            "exact": self.exact,
            "valid": self.valid,
            "reasons": list(self.reasons),
            "labels": dict(self.labels),
            "null": dict(self.null),
        } | ({} if self.share is None else {"share": self.share})


def missing(name: str, reason: str, **labels: str) -> MetricValue:
    """A metric that was not measured, and why."""
    return MetricValue(name=name, value=None, reasons=(reason,), labels=labels)


def measured(
    name: str, value: float | int | None, reason: str, labels: dict[str, str] | None = None, *, exact: bool = False
) -> MetricValue:
    """A value without an interval, or why there is none."""
    if value is None:
        return missing(name, reason, **(labels or {}))
    return MetricValue(name=name, value=value, exact=exact, labels=labels or {})


def estimated(
    name: str,
    value: float,
    interval: tuple[float, float] | None,
    otherwise: str,
    *,
    n: int,
    labels: dict[str, str],
    null: dict[str, float] | None = None,
    notes: tuple[str, ...] = (),
    share: float | None = None,
) -> MetricValue:
    """A value with its interval; ``otherwise`` is the reason that stands where there is none."""
    low, high = interval or (None, None)
    reasons = notes if interval else (*notes, otherwise)
    return MetricValue(
        name=name, value=value, n=n, ci_low=low, ci_high=high, labels=labels, null=null or {}, reasons=reasons,
        share=share,
    )  # fmt: skip
