"""Memory against active parameters: what a sparse model holds, what a token uses of it, and what the rest rents for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeprof.analysis.cards import card_for
from moeprof.analysis.document import Block, Paragraph, Ratio, RatioRow, RatioTable, Section, StackedBars
from moeprof.analysis.pick import pick
from moeprof.core import units
from moeprof.core.metric import MetricValue, missing
from moeprof.core.modelfacts import ModelFacts

if TYPE_CHECKING:
    from moeprof.analysis.summary import ModelSummary, Summary

HELD = "weights_over_used_bytes_ratio"
ROWS = (
    ("weights", "weights_bytes"),
    ("weights that one token uses", "used_bytes_per_token"),
    ("weights held / used by a token", HELD),
    ("experts that serve 90 % of picks", "hot_set_bytes_90"),
    ("experts that serve 99 % of picks", "hot_set_bytes_99"),
    ("cold experts (not one token)", "cold_expert_bytes"),
    ("rent of cold experts per hour", "cold_expert_usd_per_hour"),
    ("peak memory", "peak_memory_bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBytes:
    """Weights by what one token does with them, bytes.

    Attributes:
        shared: everything that every token uses, embeddings included.
        used: routed experts of one token, k of E in each layer.
        idle: the other routed experts.
    """

    shared: int
    used: int
    idle: int

    @property
    def total(self) -> int:
        """All weights."""
        return self.shared + self.used + self.idle

    @property
    def held_over_used(self) -> float:
        """Bytes held per byte that one token uses."""
        return self.total / (self.shared + self.used)


def held_bytes(facts: ModelFacts) -> HeldBytes:
    """Count weights by use. Code that runs all experts on every token leaves none idle."""
    total = sum(facts.bytes_by_group.values())
    routed = sum(layer.num_experts * layer.expert_bytes for layer in facts.moe_layers)
    used = sum(
        (layer.num_experts if layer.executes_all_experts else layer.top_k) * layer.expert_bytes
        for layer in facts.moe_layers
    )
    return HeldBytes(shared=total - routed, used=used, idle=routed - used)


def memory_section(summary: Summary) -> Section | None:
    """What each model holds against what it uses; None when no model loaded or none is sparse."""
    models = [m for m in summary.models if m.facts is not None]
    if not any(m.facts is not None and m.facts.is_moe for m in models):
        return None
    blocks: list[Block] = [Paragraph(text=text) for model in models if (text := sentence(model)) is not None]
    blocks += [_bars(models), _table(models)]
    return Section(name="memory", title="Memory against active parameters", blocks=tuple(blocks))


def sentence(model: ModelSummary) -> str | None:
    """``moe holds 3.7x the bytes that a token uses (...)``; None for a dense model."""
    if model.facts is None or not model.facts.is_moe:
        return None
    held = held_bytes(model.facts)
    text = f"{model.name} holds {units.num_bytes(held.total)} of weights, "
    text += f"{held.held_over_used:.3g}x the bytes that a token uses"
    hot = pick(model, "hot_set_bytes_90")
    if hot is not None and hot.value is not None:
        share = 100 * float(hot.value) / (held.used + held.idle)
        text += f"; {share:.0f} % of its expert bytes served 90 % of the picks"
    cold, rent = pick(model, "cold_expert_bytes"), pick(model, "cold_expert_usd_per_hour")
    if cold is None or cold.value is None:
        return f"{text}."
    if not cold.value:
        return f"{text}; no expert was cold: each served a token."
    text += f"; experts without a single token hold {units.num_bytes(float(cold.value))}"
    if rent is not None and rent.value is not None:
        text += f", which rent for at most {units.usd(float(rent.value))} per hour"
    return f"{text}."


def _bars(models: list[ModelSummary]) -> StackedBars:
    held = [held_bytes(model.facts) for model in models if model.facts is not None]
    parts: tuple[tuple[str, Callable[[HeldBytes], int]], ...] = (
        ("used by every token", lambda h: h.shared),
        ("experts of one token", lambda h: h.used),
        ("experts that one token leaves idle", lambda h: h.idle),
    )
    return StackedBars(
        name="memory-used",
        title="Weights by what one token uses",
        caption="A batch uses more: see distinct experts per step.",
        bars=tuple(model.name for model in models),
        parts=tuple((label, tuple(float(of(h)) for h in held)) for label, of in parts),
        unit="B",
    )


def _table(models: list[ModelSummary]) -> RatioTable:
    reference = next(i for i, m in enumerate(models) if m.facts is not None and m.facts.is_moe)
    rows = []
    for label, name in ROWS:
        values = tuple(_value(model, name) for model in models)
        base = values[reference]
        ratios = tuple(None if i == reference else _ratio(value, base) for i, value in enumerate(values))
        rows.append(RatioRow(label=label, card=card_for(name), name=name, values=values, ratios=ratios))
    return RatioTable(
        title="Memory", columns=tuple(model.name for model in models), rows=tuple(rows), reference=reference
    )


def _value(model: ModelSummary, name: str) -> MetricValue:
    assert model.facts is not None, "only models that loaded"
    held = held_bytes(model.facts)
    if name == HELD:
        return MetricValue(name=name, value=held.held_over_used, exact=True)
    if name == "used_bytes_per_token":
        return MetricValue(name=name, value=held.shared + held.used, exact=True)
    found = pick(model, name)
    return missing(name, "not measured") if found is None else found


def _ratio(value: MetricValue, base: MetricValue) -> Ratio:
    if value.value is None or not base.value:
        reasons = value.reasons if value.value is None else base.reasons
        return Ratio(value=None, reason="; ".join(reasons) or "the denominator is 0")
    return Ratio(value=float(value.value) / float(base.value))
