"""Who is who in a run: the MoE, its active- and total-matched twins, its dense ladder, and other rivals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moeprof.analysis.compare.comparable import why_incomparable
from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.metrics.resources.work import limits_of
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.core.model_facts import ModelFacts
from moeprof.core.units import num_bytes


@dataclass(frozen=True, kw_only=True)
class Roles:
    """The parts that models of a run play.

    Attributes:
        moe: the first MoE, or None.
        active: its dense twin with the width that one token uses.
        total: its dense twin with the width of all experts.
        twins: all its dense twins, from narrow to wide.
        rivals: the dense models that are no twins, in the workload's order.
        load: what the headline dollars come from: ``8 in flight``, ``all at once`` or ``open loop``.
    """

    moe: ModelSummary | None
    active: ModelSummary | None
    total: ModelSummary | None
    twins: tuple[ModelSummary, ...]
    rivals: tuple[ModelSummary, ...]
    load: str = ""

    @property
    def cache_note(self) -> str | None:
        """That a twin by which the saving is measured fits the cache and the MoE does not; None where it is not so."""
        if self.moe is None or self.moe.facts is None:
            return None
        twins = {m.name: m.facts for m in (self.active, self.total) if m is not None and m.facts is not None}
        return cache_note(limits_of(self.moe.launch, self.moe.facts).cache_bytes, self.moe.name, self.moe.facts, twins)

    def called(self, model: ModelSummary) -> str:
        """What a sentence calls a dense model."""
        if model is self.total:
            return "the total-matched dense model"
        if model is self.active:
            return "the active-matched one" if self.total is not None else "the active-matched dense model"
        return model.name


def cache_note(cache: float | None, name: str, moe: ModelFacts, twins: Mapping[str, ModelFacts]) -> str | None:
    """Which of the twins' weights fit the last-level cache while the MoE's do not, and what that means."""
    held = {twin: sum(facts.bytes_by_group.values()) for twin, facts in twins.items()}
    own = sum(moe.bytes_by_group.values())
    fit = [f"{twin} ({num_bytes(size)})" for twin, size in held.items() if cache is not None and size <= cache]
    if cache is None or own <= cache or not fit:
        return None
    verb = "fits" if len(fit) == 1 else "fit"
    return (
        f"{' and '.join(fit)} {verb} the last-level cache ({num_bytes(cache)}) and {name} ({num_bytes(own)}) does "
        "not, so a part of what is missing may be the cache's and not sparsity's"
    )


def load_text(concurrency: int | None) -> str:
    """``8 in flight`` or ``all at once``."""
    return "all at once" if concurrency is None else f"{concurrency} in flight"


def own_load_text(summary: Summary, model: ModelSummary) -> str:
    """The load of the passes that a model's headline dollars come from."""
    traffic = model.priced[0].traffic if model.priced else None
    own = summary.record.schedule(model.name).concurrency
    return {"closed": load_text(own) if own else "closed loop", "open": "open loop"}.get(str(traffic), load_text(None))


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
        load="" if moe is None else own_load_text(summary, moe),
    )


def _twin_of(model: ModelSummary) -> str | None:
    return model.facts.twin.of if model.facts is not None and model.facts.twin is not None else None


def _width(model: ModelSummary) -> int:
    assert model.facts is not None and model.facts.twin is not None
    return model.facts.twin.width
