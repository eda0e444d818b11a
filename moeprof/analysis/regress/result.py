"""What a regression check found: nouns between judging (analysis/regress), the page, and the machine-read formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from moeprof.analysis.compare.comparable import Difference, classes_of
from moeprof.analysis.compare.runs import MetricComparison
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.regress.routing.change import GateFigure, RoutingChange
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Better, Card, MetricValue
from moeprof.core.workload.gates import Gate

GateClass = Literal["exact", "routing", "quality", "timed", "bound"]
Overall = Literal["better", "no difference shown", "worse", "cannot tell"]
Mode = Literal["stored", "pairs", "processes"]
EXIT_CODES: dict[Overall, int] = {"better": 0, "no difference shown": 0, "worse": 3, "cannot tell": 4}


SOURCE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenGate:
    """A gate on one model.

    Attributes:
        gate: as written.
        kind: how it is to be judged.
        model: name in the new run.
        card, better: of the metric; the gate's sign may decide the direction. ``neither``: any change is worse.
        key: name and labels of the value.
        reference, other: the values; None where a side has none.
        figure: what the comparison of routing says, for gates on it.
    """

    gate: Gate
    kind: GateClass
    model: str
    card: Card
    better: Better
    key: Key
    reference: MetricValue | None
    other: MetricValue | None
    figure: GateFigure | None = None

    @property
    def is_sample(self) -> bool:
        """A timed figure: a bare number of one launch says nothing about the next."""
        return "timed" in classes_of(self.gate.metric)

    @property
    def is_default(self) -> bool:
        """Nobody named it."""
        return self.gate.source == SOURCE

    def judged(
        self,
        ratio: Ratio,
        *,
        n: str,
        decide: str | None = None,
        launches: tuple[Sequence[float], Sequence[float]] = ((), ()),
    ) -> GateResult:
        """The gate with what was found."""
        own: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        reference, other = map(tuple, launches)
        return GateResult(**own, ratio=ratio, n=n, decide=decide, reference_launches=reference, other_launches=other)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult(ChosenGate):
    """One gate on one model, judged.

    Attributes:
        ratio: other / reference with interval, verdict and reason. A metric whose verdict is ``cannot tell`` may still
            have a value.
        n: samples in words: ``exact``, ``6 pairs``, ``6 against 6 launches``, ``2,048 tokens``.
        decide: what would decide an undecided gate: ``about 14 launch pairs (6 were measured)``; else None.
        reference_launches, other_launches: each launch's value; for lock-step pairs each pair's ratio stands in
            ``other_launches``.
        lag_1_correlation: of the ratios of launch pairs in a row; None without pairs, or with fewer than six.
    """

    ratio: Ratio
    n: str
    decide: str | None = None
    reference_launches: tuple[float, ...] = ()
    other_launches: tuple[float, ...] = ()
    lag_1_correlation: float | None = None

    @property
    def verdict(self) -> str:
        """One of better, worse, no difference shown, cannot tell, incomparable."""
        return self.ratio.verdict

    @property
    def label(self) -> str:
        """For people: ``Decode step, mean (moe)`` is the page's business; this is the stable identifier."""
        labels = ",".join(f"{name}={value}" for name, value in self.key[1])
        return f"{self.key[0]}{{{labels}}}" if labels else self.key[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What the machine did meanwhile. A fixed reference kernel is timed between rounds; it never corrects a figure.

    Attributes:
        drift_ratio: slowest over fastest reference timing of everything compared; None where not measured.
        shift: log(other / reference) of its mean: how much the machine itself differed between the two sides; None
            where both sides were measured in turn, or it was not timed.
        text: one sentence.
    """

    drift_ratio: float | None
    shift: float | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """The whole check.

    Attributes:
        verdict: of all gates: worse if one is; else cannot tell if one cannot; else better if one is.
        mode: ``stored`` (against a baseline), ``pairs`` (lock-step in one process), ``processes`` (in two).
        reference, other: names: of the baseline or base, of the new run.
        reference_at, other_at: ISO times.
        workload, device: of the new run.
        gates: most important first: worse, cannot tell, better, no difference shown; gates of a kind by size.
        changes: every figure of both runs.
        routing: per model, what moved; empty without picks or counts.
        differences: facts that differ.
        allow: names of facts that may differ.
        noise: what the machine did.
        doubts: reasons to distrust it.
        allow_undecided: cannot tell is no failure.
        notes: sentences for the page (models of one side only, ...).
    """

    verdict: Overall
    mode: Mode
    reference: str
    other: str
    reference_at: str
    other_at: str
    workload: str
    device: str
    gates: tuple[GateResult, ...]
    changes: tuple[MetricComparison, ...] = ()
    routing: tuple[RoutingChange, ...] = ()
    differences: tuple[Difference, ...] = ()
    allow: frozenset[str] = frozenset()
    noise: Noise | None = None
    doubts: tuple[Doubt, ...] = ()
    allow_undecided: bool = False
    notes: tuple[str, ...] = ()
    launches: Mapping[str, int] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 no regression, 3 regression, 4 cannot tell (0 where that is allowed, and both sides are whole)."""
        if self.verdict == "cannot tell" and self.allow_undecided and self.is_whole:
            return 0
        return EXIT_CODES[self.verdict]

    @property
    def is_whole(self) -> bool:
        """Nothing failed and nothing was cut: what is undecided is noise, not an error."""
        return not any(doubt.code == "run_not_done" for doubt in self.doubts)

    def with_verdict(self, verdict: str) -> tuple[GateResult, ...]:
        """The gates that ended so."""
        return tuple(gate for gate in self.gates if gate.verdict == verdict)
