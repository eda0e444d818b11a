"""From a summary to a Document: which figures stand where, and the sentence at the top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moeprof.analysis import report_charts as charts
from moeprof.analysis import report_facts as facts
from moeprof.analysis import report_gap
from moeprof.analysis.cards import CARDS, card_for
from moeprof.analysis.compare.claims import claim_notes
from moeprof.analysis.compare.ladder_page import ladder_section
from moeprof.analysis.compare.lockstep_page import lockstep_section
from moeprof.analysis.compare.roles import roles
from moeprof.analysis.compare.sweep_page import sweep_section
from moeprof.analysis.compare.verdict_sentence import answer
from moeprof.analysis.document import Document, MetricTable, ModelColumn, RatioTable, Row, Section
from moeprof.analysis.doubts import find_doubts
from moeprof.analysis.headline import banners, findings, headline, subtitle
from moeprof.analysis.pick import highest_percentile, pick
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.core import units
from moeprof.core.metric import Card
from moeprof.core.modelfacts import TwinFacts

# label -> metric and its labels; ``ttft+`` stands for the highest percentile that the sample supports
FIRST_SCREEN: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("price of 1M input tokens", "usd_per_1m_input_tokens", {}),
    ("price of 1M output tokens", "usd_per_1m_output_tokens", {}),
    ("price of 1M tokens", "usd_per_1m_total_tokens", {}),
    ("output speed", "output_tokens_per_s", {}),
    ("TTFT p50", "ttft_p50_s", {}),
    ("TTFT", "ttft+", {}),
    ("ITL p50", "itl_p50_s", {}),
    ("ITL", "itl+", {}),
    ("requests within the SLO", "goodput_ratio", {"own": "yes"}),
    ("busy at this traffic", "busy_ratio", {"own": "yes"}),
    ("router load in decode, max / mean", "router_load_max_over_mean", {"phase": "decode"}),
    ("experts touched per decode step", "distinct_experts_per_step", {"phase": "decode"}),
    ("router entropy in decode", "router_entropy_ratio", {"phase": "decode"}),
    ("active / total parameters", "active_params_ratio", {}),
    ("parameters touched per decode step", "touched_params_per_step", {"phase": "decode", "own": "yes"}),
    ("peak memory", "peak_memory_bytes", {}),
    ("energy / output token", "energy_j_per_output_token", {}),
    ("memory bandwidth used (MBU)", "mbu_ratio", {}),
)
APART = {"layer", "experts", "launch", "part"}  # too many for tables: they stay in summary.json and the heat map
SECTIONS = (
    ("cost", "Cost"),
    ("throughput", "Throughput"),
    ("latency", "Latency"),
    ("routing", "Router"),
    ("parameters", "Parameters"),
    ("memory", "Memory"),
    ("work", "Work and limits"),
    ("gap", "Where a step goes"),
    ("energy", "Energy"),
    ("quality", "Quality"),
    ("validity", "Validity"),
)


def build_document(summary: Summary) -> Document:
    """The whole report of one run."""
    record, models = summary.record, summary.models
    sections = [_section(name, title, summary) for name, title in SECTIONS]
    of_sparsity = (ladder_section(record, summary.pricing), lockstep_section(summary), sweep_section(summary))
    sections += [section for section in of_sparsity if section is not None]
    used = {row.card.name for section in sections for block in section.blocks
            if isinstance(block, MetricTable | RatioTable) for row in block.rows}  # fmt: skip
    return Document(
        title=str(record.workload.get("name", record.run)),
        run=record.run,
        status=record.status,
        started_at=str(record.experiment.get("started_at", "")),
        headline=_headline(summary),
        notes=(*claim_notes(summary), *findings(summary), *report_gap.findings(summary)),
        subtitle=subtitle(summary),
        banners=banners(summary),
        models=tuple(model_column(model) for model in models),
        first_screen=tuple(_first_rows(models)),
        sections=(*(s for s in sections if s.blocks), facts.machine_section(summary)),
        doubts=find_doubts(summary),
        cards=tuple(card for card in CARDS if card.name in used),
        workload_text=str(record.experiment.get("workload_text", "")),
    )


def _headline(summary: Summary) -> str:
    """Against its twins where the run has them: they are what sparsity is measured by."""
    parts = roles(summary)
    told = answer(parts) if parts.active is not None or parts.total is not None else None
    return headline(summary) if told is None else told.sentence


def model_column(model: ModelSummary) -> ModelColumn:
    """The head of a model's column: what it is, in a line."""
    known = model.facts
    if known is None:
        return ModelColumn(name=model.name, status=model.record.status, subtitle="", error=model.record.error)
    parts = [f"{units.count(known.total_params)} total"]
    if known.is_moe:
        layer = known.moe_layers[0]
        parts = [f"{units.count(known.active_params)} of {units.count(known.total_params)} active"]
        parts.append(f"top-{layer.top_k} of {layer.num_experts}")
    elif known.twin is not None:
        parts.append(f"dense twin of {known.twin.of}, {_width(known.twin)}")
    else:
        parts.append("dense")
    parts.append(str((model.launch.get("engine") or {}).get("dtype", known.dtype)))
    return ModelColumn(name=model.name, status=model.record.status, subtitle=", ".join(parts), error=model.record.error)


def _width(twin: TwinFacts) -> str:
    """Widths that equal the MoE's have a name; others are a multiple of its active one."""
    if twin.is_active_matched:
        return f"active width {twin.width}"
    if twin.is_total_matched:
        return f"total width {twin.width}"
    return f"width {twin.width} ({twin.width / twin.active_width:.3g}x the active one)"


def _first_rows(models: tuple[ModelSummary, ...]) -> list[Row]:
    rows = []
    for label, name, labels in FIRST_SCREEN:
        if name.endswith("+"):
            quantity, name = name[:-1], highest_percentile(models, name[:-1])
            label = f"{label} {name.removeprefix(quantity + '_').removesuffix('_s').replace('_', '.')}"
        row = _row(label, name, models, labels)
        if row is not None:
            rows.append(replace(row, label=row.label + _traffic_tag(row, models)))
    return rows


def _traffic_tag(row: Row, models: tuple[ModelSummary, ...]) -> str:
    """Says which passes a figure comes from, where a run has two kinds of them."""
    if not any(model.capacity for model in models):
        return ""
    traffics = {value.labels["traffic"] for value in row.values if value is not None and "traffic" in value.labels}
    return " *" if traffics == {"offline"} else ""


def _row(label: str, name: str, models: tuple[ModelSummary, ...], labels: dict[str, str]) -> Row | None:
    """A row, or None when no model has such a metric."""
    own = True if labels.get("own") else None
    rest = {key: value for key, value in labels.items() if key != "own"}
    values = tuple(pick(model, name, own_traffic=own, **rest) for model in models)
    if all(value is None for value in values):
        return None
    return Row(label=label, card=card_for(name), name=name, values=values)


def _section(name: str, title: str, summary: Summary) -> Section:
    """Charts of the section, then every metric of it, one table per traffic, window and cut."""
    tables = _tables(name, summary.models)
    return Section(name=name, title=title, blocks=(*charts.for_section(name, summary), *tables))


def _tables(section: str, models: tuple[ModelSummary, ...]) -> list[MetricTable]:
    """Every metric of a section in tables by its labels; per-layer values stay in summary.json and the heat map."""
    grouped: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], list[object]]] = {}
    cards: dict[str, Card] = {}
    for position, model in enumerate(models):
        for value in model.metrics:
            card = cards.setdefault(value.name, card_for(value.name))
            if card.section != section or APART & set(value.labels):
                continue
            heading = heading_of(value.labels)
            key = (value.name, tuple(sorted(value.labels.items())))
            cells = grouped.setdefault(heading, {}).setdefault(key, [None] * len(models))
            cells[position] = value
    return [
        MetricTable(
            title=heading,
            rows=tuple(
                Row(label=label_of(name, dict(labels)), card=cards[name], name=name, values=tuple(cells))  # type: ignore[arg-type]
                for (name, labels), cells in rows.items()
            ),
        )
        for heading, rows in grouped.items()
    ]


def heading_of(labels: Mapping[str, str]) -> str:
    """Which traffic, window, phase and class the labels speak of."""
    parts = []
    if "traffic" in labels:
        parts.append({"open": "open loop", "closed": "closed loop", "offline": "offline"}[labels["traffic"]])
    if labels.get("window") == "steady":
        parts.append("steady window")
    if "phase" in labels and labels["phase"] != "all":
        parts.append(labels["phase"])
    if "request_class" in labels:
        parts.append(f"class {labels['request_class']}")
    return ", ".join(parts) or "whole run"


def label_of(name: str, labels: Mapping[str, str]) -> str:
    """A metric's title with its statistic, and the labels that :func:`heading_of` does not say."""
    rest = [
        f"{key} {value}" for key, value in labels.items() if key not in ("traffic", "window", "phase", "request_class")
    ]
    card = card_for(name)
    head, star, tail = card.name.partition("*")
    statistic = name.removeprefix(head).removesuffix(tail).replace("_", ".") if star else ""
    text = f"{card.title}, {statistic}" if statistic else card.title
    return text + (f" ({', '.join(rest)})" if rest else "")
