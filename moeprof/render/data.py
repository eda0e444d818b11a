"""Every metric as JSON and CSV, self-describing: name, unit, direction, n, interval, validity, reasons."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.summary import Summary
from moeprof.core.record.headers import FORMAT_VERSION, to_json

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
COLUMNS = ("model", "name", "labels", "value", "unit", "better", "n", "ci_low", "ci_high", "exact", "valid", "reasons")


def summary_json(summary: Summary, doubts: Sequence[Doubt]) -> dict[str, Any]:
    """The content of summary.json: every metric of every model, and validity flags with their reason codes."""
    return {
        "format_version": FORMAT_VERSION,
        "run": summary.record.run,
        "status": summary.record.status,
        "pricing": to_json(summary.pricing),
        "validity": _flags(doubts),
        "doubts": [asdict(doubt) for doubt in doubts],
        "models": {
            model.name: {
                "status": model.record.status,
                "error": model.record.error,
                "metrics": [value.to_json(card_for(value.name)) for value in model.metrics],
            }
            for model in summary.models
        },
    }


def _flags(doubts: Sequence[Doubt]) -> dict[str, Any]:
    """docs/metrics.md#validity: each flag, valid or not, and why; null where nothing was measured."""
    flags = {}
    for flag in FLAGS:
        own = [doubt for doubt in doubts if doubt.flag == flag]
        unknown = bool(own) and all(doubt.code.endswith("_unknown") for doubt in own)
        flags[flag] = {
            "valid": None if unknown else not any(doubt.severity == "error" for doubt in own),
            "reasons": sorted({doubt.code for doubt in own}),
        }
    return flags


def render_json(summary: Summary, doubts: Sequence[Doubt]) -> str:
    """summary.json as text."""
    return json.dumps(summary_json(summary, doubts), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def render_csv(summary: Summary) -> str:
    """summary.csv as text: one row per metric and model."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for model in summary.models:
        for value in model.metrics:
            card = card_for(value.name)
            labels = ";".join(f"{key}={label}" for key, label in value.labels.items())
            row = [model.name, value.name, labels, value.value, card.unit, card.better, value.n]
            row += [value.ci_low, value.ci_high, value.exact, value.valid, "; ".join(value.reasons)]
            writer.writerow(["" if cell is None else cell for cell in row])
    return out.getvalue()
