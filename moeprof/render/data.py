"""Every metric as JSON and CSV, self-describing: name, unit, direction, n, interval, validity, reasons."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from moeprof.analysis.cards import card_for
from moeprof.analysis.summary import Summary
from moeprof.core.record import FORMAT_VERSION

COLUMNS = ("model", "name", "labels", "value", "unit", "better", "n", "ci_low", "ci_high", "exact", "valid", "reasons")


def summary_json(summary: Summary) -> dict[str, Any]:
    """The content of summary.json."""
    return {
        "format_version": FORMAT_VERSION,
        "run": summary.record.run,
        "status": summary.record.status,
        "pricing": summary.pricing.to_json(),
        "models": {
            model.name: {
                "status": model.record.status,
                "error": model.record.error,
                "metrics": [value.to_json(card_for(value.name)) for value in model.metrics],
            }
            for model in summary.models
        },
    }


def render_json(summary: Summary) -> str:
    """summary.json as text."""
    return json.dumps(summary_json(summary), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


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
