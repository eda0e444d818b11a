"""Memory against active parameters: what a sparse model holds, what a token uses of it, and what the rest rents for.

What stands beside cost: how well each model predicts the text that all of them were fed.

Latency variance of the models side by side: how much there is, what routing explains of it, and the controls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.lookup import pick
from moeprof.analysis.metrics.summary import Summary
from moeprof.analysis.report.document import Block, Paragraph, Row, Section, StackedBars, Table
from moeprof.analysis.report.tables import compared, metric_row
from moeprof.analysis.sparsity.ladder import LadderResult
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.core.metric import MetricValue, missing
from moeprof.core.model_facts import ModelFacts

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import ModelSummary, Summary

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
    ("memory, predicted before loading", "predicted_memory_bytes"),
    ("predicted over measured, less 1", "predicted_memory_error_ratio"),
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


def forecast_words(model: ModelSummary) -> str | None:
    """``634 MiB predicted before loading, 655 MiB taken at its worst: 3 % too little``; None without a forecast."""
    predicted, error = pick(model, "predicted_memory_bytes"), pick(model, "predicted_memory_error_ratio")
    if predicted is None or predicted.value is None:
        return None
    told = f"{units.num_bytes(float(predicted.value))} predicted before loading"
    if error is None or error.value is None:
        return f"{told}; what was taken is not known"
    taken, apart = float(predicted.value) / (1 + float(error.value)), round(100 * abs(float(error.value)))
    how = f"{apart} % too {'little' if error.value < 0 else 'much'}" if apart else "as predicted"
    return f"{told}, {units.num_bytes(taken)} taken at its worst: {how}"


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


def _table(models: list[ModelSummary]) -> Table:
    reference = next(i for i, m in enumerate(models) if m.facts is not None and m.facts.is_moe)
    rows = []
    for label, name in ROWS:
        values = tuple(_value(model, name) for model in models)
        base = values[reference]
        ratios = tuple(None if i == reference else _ratio(value, base) for i, value in enumerate(values))
        rows.append(metric_row(label, name, values, ratios))
    return compared("Memory", [model.name for model in models], rows, reference=reference)


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


NAME = "bits_per_byte"


def quality_section(summary: Summary) -> Section | None:
    """Bits per byte of the schedule's true continuations, per model; None when it was measured for none."""
    values = tuple(_quality_value(summary, i) for i in range(len(summary.models)))
    if all(value is None for value in values):
        return None
    names = tuple(model.name for model in summary.models)
    table = Table(title="Quality", columns=names, rows=(metric_row(card_for(NAME).title, NAME, values),))
    return Section(name="quality", title="Quality", blocks=(Paragraph(text=_sentence(summary, values)), table))


def _quality_value(summary: Summary, index: int) -> MetricValue | None:
    model = summary.models[index]
    return pick(model, NAME) or next((v for v in model.metrics if v.name == NAME and "launch" not in v.labels), None)


def _sentence(summary: Summary, values: tuple[MetricValue | None, ...]) -> str:
    """What each model's figure is, whether all are of the same text, and why others have none."""
    said, counted = [], set()
    lacking: dict[str, list[str]] = {}
    for model, value in zip(summary.models, values, strict=True):
        if value is not None and value.value is not None:
            said.append(f"{model.name} {units.significant(float(value.value))}")
            counted.add(value.n)
        else:
            reason = "; ".join(value.reasons) if value is not None else ""
            lacking.setdefault(reason or "not measured", []).append(model.name)
    rest = "".join(f" Without a figure: {', '.join(names)} ({reason})." for reason, names in lacking.items())
    if not said:
        return f"Cost stands here without quality.{rest}"
    which = (
        "the same text" if len(counted) == 1 else "the first requests that each had time for, which are not the same"
    )
    return f"Bits per byte of {which}, fewer is better: {', '.join(said)}.{rest}"


UNTOLD = "cannot tell: "  # how a share begins that is not above what this run could have shown
# metric, phase ("" = all)
VARIANCE_ROWS = (
    ("step_cv_at_fixed_tokens", "decode"),
    ("itl_p99_over_p50_ratio", ""),
    ("ttft_p99_over_p50_ratio", ""),
    ("itl_tail_prefill_ratio", ""),
    ("variance_explained_by_routing_ratio", "decode"),
    ("variance_explained_by_routing_p", "decode"),
    ("variance_explained_by_routing_min_detectable_ratio", "decode"),
    ("placebo_variance_explained_by_routing_ratio", "decode"),
    ("placebo_variance_explained_by_routing_p", "decode"),
)


def variance_section(summary: Summary, ladders: Sequence[LadderResult] = ()) -> Section | None:
    """Spread of step times and gaps, the share that routing explains, its p-value, and its controls.

    Figures come from the passes that dollars come from, where those exist. None when nothing of it was measured.

    Args:
        summary: the run.
        ladders: with routing overridden to several numbers of distinct experts they give the intervention control.
    """
    rows = [row for name, phase in VARIANCE_ROWS if (row := _row(summary, name, phase)) is not None]
    if not rows:
        return None
    texts = [_variance_sentence(summary), *(text for result in ladders if (text := _intervention(result)))]
    names = tuple(model.name for model in summary.models)
    table = Table(title="Latency variance", columns=names, rows=tuple(rows))
    return Section(name="variance", title="Latency variance", blocks=(*(Paragraph(text=text) for text in texts), table))


def _intervention(result: LadderResult) -> str | None:
    """What one more expert costs when routing is set by hand: not a correlation."""
    slope = result.coverage.slope
    if result.phase != "decode" or slope.value is None or slope.low is None or slope.high is None:
        return None
    load = "all at once" if result.concurrency is None else f"{result.concurrency} in flight"
    return (
        f"Control by intervention, decode, {load}: with routing set by hand, one more distinct expert in every layer "
        f"takes {units.display(slope.value, 's')} a step [{units.interval(slope.low, slope.high, 's')}]."
    )


def _row(summary: Summary, name: str, phase: str) -> Row | None:
    labels = {"phase": phase} if phase else {}
    values = tuple(
        pick(model, name, own_traffic=False, **labels) or pick(model, name, own_traffic=True, **labels)
        for model in summary.models
    )
    if all(value is None for value in values):
        return None
    title = card_for(name).title
    return metric_row(f"{title}, {phase}" if phase else title, name, values)


def _variance_sentence(summary: Summary) -> str:
    """What routing explains of the first MoE's decode steps, in words."""
    moe = next((m for m in summary.models if m.facts is not None and m.facts.is_moe), None)
    if moe is None:
        return "No model of this run has a router."
    shares = [
        pick(moe, "variance_explained_by_routing_ratio", own_traffic=own, phase="decode") for own in (False, True)
    ]
    share = next((value for value in shares if value is not None), None)
    if share is None:
        return f"How much of the spread of {moe.name}'s decode steps its routing explains was not measured."
    if share.value is None or not share.valid:
        untold = [text.removeprefix(UNTOLD) for text in share.reasons if text.startswith(UNTOLD)]
        reason = (*untold, *share.reasons, "too few steps")[0]
        return f"Whether routing explains any of the spread of {moe.name}'s decode steps cannot be said: {reason}."
    text = f"Routing explains {units.significant(100 * share.value)} % of the spread of {moe.name}'s decode steps"
    return f"{text} among steps with equal tokens, beyond what permuted routing explains."
