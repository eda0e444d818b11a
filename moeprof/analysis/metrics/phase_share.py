"""How much of a phase its pure steps speak for: said by every figure that is worked out from them alone.

A step's time and work are not known by phase, so a figure of one phase is of its pure steps, which hold no token of the
other. In continuous batching these may be few: where they hold less than LEAST_SHARE of the phase's tokens, the figure
stays with its share beside it, and is no headline (MetricValue.as_headline).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moeprof.analysis.metrics.tables import BoolArray, PassTables, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core import units
from moeprof.core.metric import LEAST_SHARE, MetricValue
from moeprof.core.record.layout import PHASES


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseShare:
    """Tokens and steps of one phase.

    Attributes:
        phase: its name.
        pure_tokens: of the phase, in steps that hold nothing else.
        tokens: of the phase in all steps.
        pure_steps, steps: those that hold nothing else, and all that hold a token of it.
    """

    phase: str
    pure_tokens: float
    tokens: float
    pure_steps: int
    steps: int

    @classmethod
    def of(cls, phase: str, tokens_S: FloatArray, pure_S: BoolArray) -> PhaseShare:
        """From the phase's tokens of each step, and which steps are pure."""
        return cls(
            phase=phase,
            pure_tokens=float(tokens_S[pure_S].sum()),
            tokens=float(tokens_S.sum()),
            pure_steps=int((tokens_S[pure_S] > 0).sum()),
            steps=int((tokens_S > 0).sum()),
        )

    @property
    def ratio(self) -> float | None:
        """Pure tokens over all; None without tokens."""
        return self.pure_tokens / self.tokens if self.tokens else None

    @property
    def is_enough(self) -> bool:
        """Whether they may speak for the phase in a headline."""
        return self.ratio is not None and self.ratio >= LEAST_SHARE

    @property
    def text(self) -> str:
        """``speaks for 50 % of the decode tokens: 30 of 60 steps hold nothing else``."""
        share = units.percent(self.ratio or 0.0)
        return (
            f"speaks for {share} of the {self.phase} tokens: {self.pure_steps} of {self.steps} steps hold nothing else"
        )

    def said_by(self, values: Iterable[MetricValue]) -> list[MetricValue]:
        """The values with their share, and the sentence before their other reasons; as they are where it is all."""
        ratio = self.ratio
        if not ratio or ratio == 1:
            return list(values)
        return [
            value if value.value is None else replace(value, share=ratio, reasons=(self.text, *value.reasons))
            for value in values
        ]


def phase_share(phase: str, parts: Sequence[tuple[PassTables, tuple[float, float] | None]]) -> PhaseShare | None:
    """Of passes, each in its window (None: the whole pass); None for what is no single phase."""
    if phase not in PHASES or not parts:
        return None
    tokens, pure = [], []
    for tables, window in parts:
        ends = column(tables.steps, "end_s")
        keep = np.isfinite(ends) if window is None else (ends > window[0]) & (ends <= window[1])
        tokens.append(np.nan_to_num(column(tables.steps, f"{phase}_tokens"))[keep])
        pure.append(is_phase(tables.steps, phase)[keep])
    return PhaseShare.of(phase, np.concatenate(tokens), np.concatenate(pure))


def with_phase_share(
    values: Sequence[MetricValue], phase: str, parts: Sequence[tuple[PassTables, tuple[float, float] | None]]
) -> list[MetricValue]:
    """Figures of pure steps of these passes, which say what they speak for."""
    share = phase_share(phase, parts)
    return list(values) if share is None else share.said_by(values)
