"""Every result as plain data: one object for JSON, and a header with rows for tables of any format.

Numbers are in the unit of the metric's card; what was not measured is null. The form of regress.json is
moeprof/data/schemas/regress.schema.json.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from moeprof.analysis.compare.comparable import Difference
from moeprof.analysis.compare.runs import MetricComparison
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.analysis.regress.routing.change import GateFigure, LayerChange, RoutingChange
from moeprof.analysis.report.document import Document, Row, Table
from moeprof.analysis.report.doubts import SEVERITIES, VOIDS
from moeprof.analysis.report.result import Audit, Check, Comparison, Counted, Listing, Result, RunReport
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import VERSION
from moeprof.core.metric import Card, MetricValue
from moeprof.core.record.headers import FORMAT_VERSION, to_json


def as_json(result: Result) -> Any:
    """The result as JSON's own types."""
    return _JSON[type(result)](result)


def as_rows(result: Result) -> list[list[Any]]:
    """The result as a header and rows; None where nothing is known."""
    return _ROWS[type(result)](result)


# -- a run -------------------------------------------------------------------------------------------------------------

FLAGS = (
    "latency",
    "schedule",
    "steady_state",
    "energy",
    "memory",
    "routing",
    "realism",
    "isolation",
    "overhead",
    "cost",
)
NOTHING = ("no_steady_state",)  # doubts after which the flag's figures are n/a: neither valid nor not
RUN_COLUMNS = (
    "model", "name", "labels", "value", "unit", "better", "n", "ci_low", "ci_high", "exact", "valid", "reasons"
)  # fmt: skip


def summary_json(report: RunReport) -> dict[str, Any]:
    """The content of summary.json: every metric of every model, and validity flags with their reason codes."""
    summary, doubts = report.summary, report.document.doubts
    return {
        "format_version": FORMAT_VERSION,
        "run": summary.record.run,
        "status": summary.record.status,
        "pricing": to_json(summary.pricing),
        "answer": _answer(report.document),
        "validity": _flags(doubts),
        "doubts": [asdict(doubt) for doubt in doubts],
        "models": {
            model.name: {
                "status": model.record.status,
                "error": model.record.error,
                "set_aside": [{"pass": name, "lost_ratio": share} for name, share in model.set_aside],
                "metrics": [value.to_json(card_for(value.name)) for value in model.metrics],
            }
            for model in summary.models
        },
    }


def _answer(document: Document) -> dict[str, Any] | None:
    """The paragraph and each question with its outcome and the metrics that it rests on."""
    answer = document.answer
    return None if answer is None else {"paragraph": answer.paragraph, **asdict(answer)}


def _flags(doubts: Sequence[Doubt]) -> dict[str, Any]:
    """docs/metrics.md#validity: each flag, valid or not, and why; null where nothing was measured.

    Read off the doubts of the page, so that both say the same: an error is a figure not to be used, a warning weakens.
    """
    flags = {}
    for flag in FLAGS:
        own = [doubt for doubt in doubts if doubt.flag == flag or _voids(doubt, flag)]
        unknown = bool(own) and all(doubt.code.endswith("_unknown") or doubt.code in NOTHING for doubt in own)
        flags[flag] = {
            "valid": None if unknown else not any(doubt.severity == "error" for doubt in own),
            "severity": min((doubt.severity for doubt in own), key=SEVERITIES.index, default=None),
            "reasons": sorted({doubt.code for doubt in own}),
        }
    return flags


def _voids(doubt: Doubt, flag: str) -> bool:
    return doubt.severity == "error" and flag in VOIDS.get(doubt.code, ())


def summary_rows(report: RunReport) -> list[list[Any]]:
    """Header and rows of summary.csv: one row per metric and model."""
    rows: list[list[Any]] = [list(RUN_COLUMNS)]
    for model in report.summary.models:
        for value in model.metrics:
            card = card_for(value.name)
            rows.append([
                model.name, value.name, _labels(value.labels), value.value, card.unit, card.better, value.n,
                value.ci_low, value.ci_high, value.exact, value.valid, "; ".join(value.reasons),
            ])  # fmt: skip
    return rows


# -- an audit ----------------------------------------------------------------------------------------------------------


def audit_json(audit: Audit) -> dict[str, Any]:
    """The content of audit.json: the answer, and the facts beside it."""
    page = audit.document
    return {
        "format_version": FORMAT_VERSION,
        "run": page.run,
        "status": page.status,
        "answer": _answer(page),
        "facts": {
            section.name: {row.label: row.cells[0].text for row in table.rows}
            for section in page.sections
            for table in section.blocks
            if isinstance(table, Table)
        },
        "doubts": [asdict(doubt) for doubt in page.doubts],
    }


def audit_rows(audit: Audit) -> list[list[Any]]:
    """Header and rows of audit.csv: a row a question."""
    answer = audit.document.answer
    found = () if answer is None else answer.findings
    return [
        ["question", "outcome", "text", "figures"],
        *([one.question, one.outcome, one.text, ";".join(one.figures)] for one in found),
    ]


# -- a comparison ------------------------------------------------------------------------------------------------------

COLUMNS = ("table", "of", "name", "labels", "value", "unit", "better", "n", "ci_low", "ci_high", "reference",
           "ratio", "ratio_low", "ratio_high", "verdict", "reasons")  # fmt: skip


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """The content of compare.json."""
    page = comparison.document
    return {
        "format_version": FORMAT_VERSION,
        "run": page.run,
        "status": page.status,
        "reference": comparison.reference,
        "verdict": page.headline,
        "answer": _answer(page),
        "notes": list(page.notes),
        "banners": list(page.banners),
        "doubts": [asdict(doubt) for doubt in page.doubts],
        "comparison": [_table(table) for table in comparison.tables],
        "metrics": [{"of": owner, **value.to_json(card_for(value.name))} for owner, value in comparison.metrics],
    }


def comparison_rows(comparison: Comparison) -> list[list[Any]]:
    """Header and rows of compare.csv: the figures that only a comparison has, then every cell of every table."""
    rows: list[list[Any]] = [list(COLUMNS)]
    for owner, value in comparison.metrics:
        card = card_for(value.name)
        rows.append([
            "comparison", owner, value.name, _labels(value.labels), value.value, card.unit, card.better, value.n,
            value.ci_low, value.ci_high, None, None, None, None, None, "; ".join(value.reasons),
        ])  # fmt: skip
    for table in comparison.tables:
        for row in table.rows:
            rows += [_cell(table, row, i) for i in range(len(table.columns)) if row.values[i] is not None]
    return rows


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": list(table.columns),
        "reference": None if table.reference is None else table.columns[table.reference],
        "rows": [
            {
                "label": row.label,
                "name": row.name,
                "unit": row.unit,
                "better": card_for(row.name).better,
                "values": [None if value is None else value.to_json(card_for(row.name)) for value in row.values],
                "ratios": [_ratio(ratio) for ratio in row.ratios],
            }
            for row in table.rows
        ],
    }


def _ratio(ratio: Ratio | None) -> dict[str, Any] | None:
    if ratio is None:
        return None
    return {"value": ratio.value, "ci_low": ratio.low, "ci_high": ratio.high, "verdict": ratio.verdict,
            "by": ratio.by, "reason": ratio.reason}  # fmt: skip


def _cell(table: Table, row: Row, index: int) -> list[Any]:
    value, ratio = row.values[index], row.ratios[index]
    assert value is not None
    reasons = [*value.reasons, *([ratio.reason] if ratio is not None and ratio.reason else [])]
    told = [None] * 4 if ratio is None else [ratio.value, ratio.low, ratio.high, ratio.verdict]
    to = None if ratio is None or table.reference is None else table.columns[table.reference]
    return [
        table.title, table.columns[index], row.name, _labels(value.labels), value.value, row.unit,
        card_for(row.name).better, value.n, value.ci_low, value.ci_high, to, *told,
        "; ".join(reasons),
    ]  # fmt: skip


def _labels(labels: Mapping[str, str]) -> str:
    return ";".join(f"{key}={value}" for key, value in labels.items())


# -- a check for regressions -------------------------------------------------------------------------------------------

REGRESS_FORMAT_VERSION = 1
REGRESS_COLUMNS = ("table", "model", "name", "labels", "unit", "better", "reference", "other", "ratio", "ratio_low",
           "ratio_high", "verdict", "n", "gate", "source", "reason", "decide")  # fmt: skip
# fields of a layer that are (reference, other)
BOTH_SIDES = {"max_over_mean", "entropy_ratio", "dead", "nearly_dead", "load", "specialisation", "margin_p05",
              "margin_p50"}  # fmt: skip


def regression_json(regression: Regression) -> dict[str, Any]:
    """The content of regress.json."""
    noise = regression.noise
    whole = {
        "format_version": REGRESS_FORMAT_VERSION,
        "moeprof": VERSION,
        "verdict": regression.verdict,
        "exit_code": regression.exit_code,
        "mode": regression.mode,
        "reference": {"name": regression.reference, "at": regression.reference_at},
        "other": {"name": regression.other, "at": regression.other_at},
        "workload": regression.workload,
        "device": regression.device,
        "allow_undecided": regression.allow_undecided,
        "allow": sorted(regression.allow),
        "launches": dict(regression.launches),
        "gates": [_gate(gate) for gate in regression.gates],
        "changes": [_change(change) for change in regression.changes],
        "routing": [_routing(change) for change in regression.routing],
        "differences": [_difference(difference, regression) for difference in regression.differences],
        "noise": None if noise is None else asdict(noise),
        "doubts": [asdict(doubt) for doubt in regression.doubts],
        "notes": list(regression.notes),
    }
    found: dict[str, Any] = _plain(whole)
    return found


def regression_rows(regression: Regression) -> list[list[Any]]:
    """Header and rows of regress.csv: gates, then every other figure of both runs; None where nothing is known."""
    rows: list[list[Any]] = [list(REGRESS_COLUMNS)]
    for gate in regression.gates:
        start = _row("gate", gate.model, gate.card, gate.key, str(gate.better))
        told = [gate.n, gate.gate.text, gate.gate.source, gate.ratio.reason, gate.decide]
        rows.append([*start, *_sides(gate.reference, gate.other, gate.ratio), *told])
    for change in regression.changes:
        if not change.is_gate:
            start = _row("figure", change.model, change.card, change.key, str(change.card.better))
            told = [None, None, None, change.ratio.reason, None]
            rows.append([*start, *_sides(change.reference, change.other, change.ratio), *told])
    return [[_plain(cell) for cell in row] for row in rows]


def _gate(result: GateResult) -> dict[str, Any]:
    return {
        "model": result.model,
        "metric": result.key[0],
        "labels": dict(result.key[1]),
        "label": result.label,
        "title": result.card.title,
        "unit": result.card.unit,
        "kind": result.kind,
        "better": result.better,
        "gate": {
            "text": result.gate.text,
            "kind": result.gate.kind,
            "amount": result.gate.amount,
            "sign": result.gate.sign,
            "source": result.gate.source,
        },
        **_judged(result.reference, result.other, result.ratio),
        "n": result.n,
        "decide": result.decide,
        "reference_launches": list(result.reference_launches),
        "other_launches": list(result.other_launches),
        "lag_1_correlation": result.lag_1_correlation,
    }


def _change(change: MetricComparison) -> dict[str, Any]:
    return {
        "model": change.model,
        "metric": change.key[0],
        "labels": dict(change.key[1]),
        "title": change.card.title,
        "unit": change.card.unit,
        "better": change.card.better,
        "is_gate": change.is_gate,
        **_judged(change.reference, change.other, change.ratio),
    }


def _judged(reference: MetricValue | None, other: MetricValue | None, ratio: Ratio) -> dict[str, Any]:
    return {
        "reference": _value(reference),
        "other": _value(other),
        "ratio": {"value": ratio.value, "ci_low": ratio.low, "ci_high": ratio.high},
        "verdict": ratio.verdict,
        "reason": ratio.reason,
    }


def _value(side: MetricValue | None) -> dict[str, Any] | None:
    """One side; name, labels, unit and direction stand once, beside both."""
    if side is None:
        return None
    found = asdict(side)
    del found["name"], found["labels"]
    return found


def _routing(change: RoutingChange) -> dict[str, Any]:
    return {
        "model": change.model,
        "verdict": change.verdict,
        "tokens": change.tokens,
        "same_tokens": change.same_tokens,
        "exact": change.exact,
        "sentences": list(change.sentences),
        "metrics": [
            {"name": value.name, "labels": dict(value.labels), "value": value.value, "reasons": list(value.reasons)}
            for value in change.metrics
        ],
        "busiest": {phase: _figure(figure) for phase, figure in change.busiest.items()},
        "layers": [_layer(layer) for layer in change.layers],
    }


def _figure(figure: GateFigure) -> dict[str, Any]:
    return asdict(figure) | {"interval": None if figure.interval is None else list(figure.interval)}


def _layer(layer: LayerChange) -> dict[str, Any]:
    found = asdict(layer)
    for name in BOTH_SIDES & found.keys():
        pair = found[name]
        found[name] = None if pair is None else dict(zip(("reference", "other"), pair, strict=True))
    found["moved"] = [{"expert": expert, "reference": before, "other": now} for expert, before, now in layer.moved]
    return found


def _difference(difference: Difference, regression: Regression) -> dict[str, Any]:
    return {
        "name": difference.name,
        "model": difference.model,
        "reference": difference.first,
        "other": difference.second,
        "forbids": sorted(difference.forbids),
        "allowed": difference.name in regression.allow,
    }


def _row(table: str, model: str, card: Card, key: tuple[str, tuple[tuple[str, str], ...]], better: str) -> list[Any]:
    return [table, model, key[0], _labels(dict(key[1])), card.unit, better]


def _sides(reference: MetricValue | None, other: MetricValue | None, ratio: Ratio) -> list[Any]:
    values = [None if side is None else side.value for side in (reference, other)]
    return [*values, ratio.value, ratio.low, ratio.high, ratio.verdict]


def _plain(value: Any) -> Any:
    """Only what JSON knows: lists for tuples, null for NaN and infinities, Python's numbers for numpy's."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- counted models and lists ------------------------------------------------------------------------------------------

PARAMS_COLUMNS = ("model", "status", "name", "labels", "value", "unit", "remark")


def params_json(counted: Counted) -> dict[str, Any]:
    """The settings, and per model its status, notes and metrics with raw numbers."""
    question = counted.question
    return {
        "settings": {
            "batches": list(question.batches),
            "context": question.context,
            "dtype": question.dtype,
            "devices": [device.name for device in question.devices],
            "rules": list(question.rules),
        },
        "models": [
            {
                "name": column.name,
                "title": column.title,
                "status": column.status,
                "metrics": [
                    {"name": f.name, "value": f.value, "unit": f.unit, "labels": f.labels, "remark": f.remark}
                    for f in column.figures
                ],
                "notes": list(column.notes),
            }
            for column in counted.columns
        ],
    }


def params_rows(counted: Counted) -> list[list[Any]]:
    """One row per model and figure."""
    rows: list[list[Any]] = [list(PARAMS_COLUMNS)]
    for column in counted.columns:
        for f in column.figures:
            rows.append([column.name, column.status, f.name, _labels(f.labels), f.value, f.unit, f.remark])
    return rows


def _listing_json(listing: Listing) -> Any:
    return [dict(row) for row in listing.rows] if listing.whole is None else listing.whole


def _listing_rows(listing: Listing) -> list[list[Any]]:
    return [list(listing.rows[0]) if listing.rows else [], *(list(row.values()) for row in listing.rows)]


_JSON: dict[type, Callable[[Any], Any]] = {
    RunReport: summary_json,
    Audit: audit_json,
    Comparison: comparison_json,
    Check: lambda check: regression_json(check.regression),
    Counted: params_json,
    Listing: _listing_json,
}
_ROWS: dict[type, Callable[[Any], list[list[Any]]]] = {
    RunReport: summary_rows,
    Audit: audit_rows,
    Comparison: comparison_rows,
    Check: lambda check: regression_rows(check.regression),
    Counted: params_rows,
    Listing: _listing_rows,
}
