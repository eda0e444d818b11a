"""Who is who in a run: the MoE, its active- and total-matched twins, its dense ladder, and other rivals."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.analysis.compare.comparable import why_incomparable
from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.summary import ModelSummary, Summary


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The parts that models of a run play.

    Attributes:
        moe: the first MoE, or None.
        active: its dense twin with the width that one token uses.
        total: its dense twin with the width of all experts.
        twins: all its dense twins, from narrow to wide.
        rivals: the dense models that are no twins, in the workload's order.
    """

    moe: ModelSummary | None
    active: ModelSummary | None
    total: ModelSummary | None
    twins: tuple[ModelSummary, ...]
    rivals: tuple[ModelSummary, ...]

    def called(self, model: ModelSummary) -> str:
        """What a sentence calls a dense model."""
        if model is self.total:
            return "the total-matched dense model"
        if model is self.active:
            return "the active-matched one" if self.total is not None else "the active-matched dense model"
        return model.name


def roles(summary: Summary, moe_name: str | None = None) -> Roles:
    """Find the roles among the models that were measured."""
    done = [m for m in summary.models if m.facts is not None and number(m, "usd_per_1m_total_tokens") is not None]
    moes = [m for m in done if m.facts is not None and m.facts.is_moe and moe_name in (None, m.name)]
    dense = [m for m in done if m.facts is not None and not m.facts.is_moe]
    moe = moes[0] if moes else None
    of_it = [m for m in dense if moe is not None and _twin_of(m) == moe.name]
    if moe is not None:
        of_it = [m for m in of_it if why_incomparable(moe, m) is None]
    twins = sorted(of_it, key=_width)
    return Roles(
        moe=moe,
        active=next((m for m in twins if m.facts and m.facts.twin and m.facts.twin.is_active_matched), None),
        total=next((m for m in twins if m.facts and m.facts.twin and m.facts.twin.is_total_matched), None),
        twins=tuple(twins),
        rivals=tuple(m for m in dense if _twin_of(m) is None),
    )


def _twin_of(model: ModelSummary) -> str | None:
    return model.facts.twin.of if model.facts is not None and model.facts.twin is not None else None


def _width(model: ModelSummary) -> int:
    assert model.facts is not None and model.facts.twin is not None
    return model.facts.twin.width
