"""From a summary to a Document: which figures stand where, and the sentence at the top.

Tables of plain facts: the machine, the traffic, the models and their engine.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.labels import FIRST_SCREEN, SECTIONS, heading_of, label_of
from moeprof.analysis.metrics.lookup import Key, highest_percentile, pick
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.report import charts
from moeprof.analysis.report.answer import answer_of
from moeprof.analysis.report.document import Document, ModelColumn, Row, Section, Table
from moeprof.analysis.report.doubts import find_doubts
from moeprof.analysis.report.headline import banners, findings, headline, subtitle, with_reservations
from moeprof.analysis.report.saving import saving
from moeprof.analysis.report.sections import breakdown
from moeprof.analysis.report.sections.cost import other_splits
from moeprof.analysis.report.sections.ladder import ladder_section
from moeprof.analysis.report.sections.lockstep import lockstep_section
from moeprof.analysis.report.sections.memory import forecast_words
from moeprof.analysis.report.sections.sweep import sweep_section
from moeprof.analysis.report.tables import facts, metric_row
from moeprof.analysis.sparsity.claims import claim_notes
from moeprof.analysis.sparsity.roles import roles
from moeprof.core import units
from moeprof.core.hardware import find_datasheet
from moeprof.core.metric import MetricValue
from moeprof.core.model_facts import TwinFacts
from moeprof.core.record.experiment import DeviceAtStart
from moeprof.core.record.launch import LaunchHeader, RanksHeader, WarmupHeader


def machine_section(summary: Summary) -> Section:
    """Everything needed to judge whether another run is comparable."""
    blocks = [
        _machine(summary),
        _traffic(summary),
        *(_engine(model) for model in summary.models if model.launch != LaunchHeader()),
    ]
    return Section(name="machine", title="Machine, traffic and engine", blocks=tuple(blocks))


def _machine(summary: Summary) -> Table:
    environment = summary.record.environment
    packages = ", ".join(f"{k} {v}" for k, v in environment.packages.items() if v)
    rows = {
        "device": environment.device_name,
        "driver": environment.gpu and environment.gpu.driver,
        "chosen because": summary.record.experiment.device_why,
        "before the run": _before(summary.record.experiment.device_at_start or DeviceAtStart()),
        "processor": f"{environment.cpu}, {environment.cpu_cores} logical",
        "instruction sets": ", ".join(environment.cpu_flags),
        "memory": units.num_bytes(environment.memory_bytes) if environment.memory_bytes else None,
        "threads": environment.threads,
        "system": f"{environment.system}, Python {environment.python}",
        "packages": packages,
        "moeprof": environment.moeprof,
        "datasheet": _datasheet(str(environment.device_name)),
        "measured peaks": _peaks(summary),
        "price": f"{units.usd(summary.pricing.usd_per_second * 3600)} per hour: {summary.pricing.source}",
    }
    return _facts("Machine", rows)


def _before(seen: DeviceAtStart) -> str | None:
    """What the device did and was allowed to do before anything of ours was on it; None without a look at it."""
    parts = []
    if seen.idle_power_w is not None:
        how = {"instant": " (readings of the moment)", "usage": " (averages of the driver)"}
        parts.append(f"{seen.idle_power_w:.0f} W{how.get(str(seen.power_source), '')}")
    if seen.memory_used_bytes is not None:
        parts.append(f"{units.num_bytes(seen.memory_used_bytes)} in use")
    if seen.num_other_processes is not None:
        parts.append(f"{seen.num_other_processes} other processes")
    if seen.power_limit_w is not None:
        parts.append(f"power limit {seen.power_limit_w:.0f} W")
    return ", ".join(parts) or None


def _datasheet(device_name: str) -> str | None:
    """Dense figures, beside what was measured; None for devices without a row."""
    found = find_datasheet(device_name)
    if found is None:
        return None
    return (
        f"{found.bf16_flops_per_s / 1e12:.0f} TFLOP/s dense bf16, {found.bandwidth_bytes_per_s / 1e12:.2f} TB/s "
        f"({found.source}, {found.date})"
    )


def _peaks(summary: Summary) -> str | None:
    peaks = next((model.launch.peaks for model in summary.models if model.launch.peaks is not None), None)
    if peaks is None:
        return None
    parts = []
    if peaks.bandwidth_bytes_per_s:
        method = str(peaks.bandwidth_method).replace("_", " ")
        parts.append(f"{peaks.bandwidth_bytes_per_s / 1e9:.1f} GB/s ({method})")
    parts += [f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in peaks.flops_per_s.items()]
    return ", ".join(parts) + f", {peaks.threads} threads"


def _traffic(summary: Summary) -> Table:
    schedules = list(summary.record.experiment.schedules.values())
    rows: dict[str, Any] = {}
    for schedule in schedules[:1]:
        rows = {
            "pattern": schedule.pattern,
            "concurrency": schedule.concurrency,
            "requests": f"{schedule.num_requests or 0:,}"
            + (f" over {units.seconds(schedule.span_s)}" if schedule.span_s else ""),
            "input tokens": f"{schedule.input_tokens or 0:,}",
            "output tokens": f"{schedule.output_tokens or 0:,} ({str(schedule.outputs).replace('_', ' ')})",
            "classes": ", ".join(schedule.classes),
            "prompts": str(schedule.realism).replace("_", " "),
            "schedule sha256": schedule.sha256,
        }
    rows["rounds"] = summary.record.workload.rounds
    rows["launches"] = summary.record.workload.launches
    return _facts("Traffic", rows)


def _engine(model: ModelSummary) -> Table:
    engine, warmup = model.launch.engine, model.launch.warmup or WarmupHeader()
    check = model.launch.self_check
    rows = {
        "source": None if model.facts is None else f"{model.facts.source} ({model.facts.architecture})",
        "ranks": _ranks(model.launch.ranks),
        "batching": engine.batching,
        "attention": engine.attention,
        "experts": engine.experts if model.facts is not None and model.facts.is_moe else None,
        "dtype": f"{engine.dtype} ({model.launch.dtype_reason})",
        "KV cache": f"{engine.kv_tokens:,} tokens" if engine.kv_tokens else None,
        "memory": forecast_words(model),
        "tokens per step": f"at most {engine.max_batch_tokens}",
        "notes": "; ".join(engine.notes),
        "warm-up": f"{warmup.num_requests} requests, {units.seconds(warmup.seconds)}, "
        + ("settled" if warmup.settled else "not settled"),
        "tap self-check": {True: "passed", False: "FAILED", None: "; ".join(check.notes)}[check.passed],
    }
    return _facts(f"Engine: {model.name}", rows)


def _ranks(ranks: RanksHeader | None) -> str | None:
    """Of a model that several processes share: how, and what each of them holds at most."""
    if ranks is None:
        return None
    largest = ranks.memory_largest
    peak = largest.get("peak_reserved_bytes") or largest.get("host_rss_peak_bytes")
    text = f"{ranks.ranks}, {ranks.plan} parallel ({ranks.backend})"
    return text if peak is None else f"{text}; the fullest holds {units.num_bytes(peak)} at its peak"


def _facts(title: str, rows: dict[str, Any]) -> Table:
    return facts(title, [(key, str(value)) for key, value in rows.items() if value not in (None, "")])


APART = {"layer", "experts", "launch", "part"}  # too many for tables: they stay in summary.json and the heat map


def build_document(summary: Summary) -> Document:
    """The whole report of one run."""
    record, models = summary.record, summary.models
    sections = [_section(name, title, summary) for name, title in SECTIONS]
    of_sparsity = (ladder_section(record, summary.pricing), lockstep_section(summary), sweep_section(summary))
    sections += [section for section in of_sparsity if section is not None]
    return Document(
        title=record.workload.name or record.run,
        run=record.run,
        status=record.status,
        started_at=record.experiment.started_at or "",
        headline=_headline(summary),
        answer=answer_of(summary),
        notes=(*claim_notes(summary), *findings(summary), *breakdown.findings(summary)),
        subtitle=subtitle(summary),
        banners=banners(summary),
        models=tuple(model_column(model) for model in models),
        first_screen=tuple(_first_rows(models)),
        sections=(*(s for s in sections if s.blocks), machine_section(summary)),
        doubts=find_doubts(summary),
        workload_text=record.experiment.workload_text or "",
    )


def _headline(summary: Summary) -> str:
    """Against its twins where the run has them: they are what sparsity is measured by. Overload stands beside."""
    parts = roles(summary)
    told = saving(summary, parts) if parts.active is not None or parts.total is not None else None
    return with_reservations(headline(summary) if told is None else told.sentence, summary)


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
    parts.append(model.launch.engine.dtype or known.dtype)
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
    return metric_row(label, name, values)


def _section(name: str, title: str, summary: Summary) -> Section:
    """Charts of the section, then every metric of it, one table per traffic, window and cut."""
    tables = _tables(name, summary.models)
    beside = other_splits(summary) if name == "cost" and tables else ()
    return Section(name=name, title=title, blocks=(*charts.for_section(name, summary), *beside, *tables))


def _tables(section: str, models: tuple[ModelSummary, ...]) -> list[Table]:
    """Every metric of a section in tables by its labels; per-layer values stay in summary.json and the heat map."""
    grouped: dict[str, dict[Key, list[MetricValue | None]]] = {}
    for position, model in enumerate(models):
        for value in model.metrics:
            if card_for(value.name).section == section and not APART & set(value.labels):
                key = (value.name, tuple(sorted(value.labels.items())))
                rows = grouped.setdefault(heading_of(value.labels), {})
                rows.setdefault(key, [None] * len(models))[position] = value
    return [
        Table(
            title=heading,
            columns=tuple(model.name for model in models),
            rows=tuple(metric_row(label_of(key[0], dict(key[1])), key[0], values) for key, values in rows.items()),
        )
        for heading, rows in grouped.items()
    ]
