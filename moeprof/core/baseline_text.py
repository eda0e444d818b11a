"""A baseline as JSON that people read in a diff: one line per fact, per metric, and per layer of routing load.

Equal baselines give equal bytes: the order of metrics is the run's own, everything else is sorted, floats keep every
digit. What is as usual (not exact, valid, no reasons...) is left out of a metric's line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moeprof.core.baseline import Baseline, BaselineModel, RoutingLoad
from moeprof.core.metric import MetricValue

Labels = tuple[tuple[str, str], ...]
HEAD = (
    "name",
    "workload",
    "device",
    "device_kind",
    "created_at",
    "moeprof",
    "run",
    "status",
    "label",
    "usd_per_second",
)


def baseline_text(baseline: Baseline, arrays_sha256: str | None) -> str:
    """The content of NAME.json.

    Args:
        baseline: what to write; its format_version and notes are of the file it came from and are not written.
        arrays_sha256: of the npz beside it; None without one.
    """
    from moeprof.core.baseline import FORMAT_VERSION

    head = {"format_version": FORMAT_VERSION, **{name: getattr(baseline, name) for name in HEAD}}
    items = [_pair(key, _json(value)) for key, value in {**head, "arrays_sha256": arrays_sha256}.items()]
    items.append(_pair("facts", _facts(baseline.facts, depth=1)))
    items.append(_pair("models", _block("[]", [_model(model) for model in baseline.models], depth=1)))
    return _block("{}", items, depth=0) + "\n"


def _model(model: BaselineModel) -> str:
    items = [_pair("name", _json(model.name)), _pair("facts", _facts(model.facts, depth=3))]
    items += [_pair(key, _json(getattr(model, key))) for key in ("own_traffic", "priced_traffic")]
    items += [_pair(key, _json(list(getattr(model, key)))) for key in ("top_k", "num_experts")]
    items.append(_pair("routing", "null" if model.routing is None else _routing(model.routing)))
    items.append(_pair("metrics", _block("[]", [_json(line) for line in metric_lines(model.metrics)], depth=3)))
    return _block("{}", items, depth=2)


def _routing(routing: RoutingLoad) -> str:
    layers = [
        {"layer": name, **{phase: list(rows[number]) for phase, rows in sorted(routing.counts.items())}}
        for number, name in enumerate(routing.layers)
    ]
    return _block(
        "{}",
        [_pair("tokens", _json(_sorted(routing.tokens))), _pair("layers", _block("[]", map(_json, layers), depth=4))],
        depth=3,
    )


# -- metrics -----------------------------------------------------------------------------------------------------------


def metric_lines(metrics: Iterable[MetricValue]) -> Iterator[dict[str, Any]]:
    """Values as JSON, each with its launches' own in one list (index = number of the launch, null = not measured)."""
    values = list(metrics)
    launches: dict[tuple[str, Labels], dict[int, float | int | None]] = {}
    plain = {(value.name, _labels(value)) for value in values if "launch" not in value.labels}
    for value in values:
        if (number := launch_number(value)) is not None and (value.name, _labels(value)) in plain:
            launches.setdefault((value.name, _labels(value)), {})[number] = value.value
    for value in values:
        key = value.name, _labels(value)
        if launch_number(value) is None or key not in plain:
            yield _metric(value, launches.get(key, {}) if "launch" not in value.labels else {})


def launch_number(value: MetricValue) -> int | None:
    """Of a value of a single launch; None for all others."""
    label = value.labels.get("launch", "")
    return int(label) if label.isascii() and label.isdigit() and len(label) < 4 else None


def _labels(value: MetricValue) -> Labels:
    return tuple(sorted((name, label) for name, label in value.labels.items() if name != "launch"))


def _metric(value: MetricValue, launches: Mapping[int, float | int | None]) -> dict[str, Any]:
    line: dict[str, Any] = {"name": value.name}
    if value.labels:
        line["labels"] = _sorted(value.labels)
    line["value"] = value.value
    if (value.ci_low, value.ci_high) != (None, None):
        line["ci"] = [value.ci_low, value.ci_high]
    if value.n is not None:
        line["n"] = value.n
    if value.exact:
        line["exact"] = True
    if not value.valid:
        line["valid"] = False
    if value.reasons:
        line["reasons"] = list(value.reasons)
    if value.null:
        line["null"] = _sorted(value.null)
    if launches:
        line["launches"] = [launches.get(number) for number in range(max(launches) + 1)]
    return line


# -- JSON --------------------------------------------------------------------------------------------------------------


def _facts(facts: Mapping[str, Any], depth: int) -> str:
    return _block("{}", [_pair(name, _json(value)) for name, value in sorted(facts.items())], depth)


def _block(ends: str, items: Iterable[str], depth: int) -> str:
    """Each item on a line of its own, one space deeper."""
    inside = ",\n".join(" " * (depth + 1) + item for item in items)
    return f"{ends[0]}\n{inside}\n{' ' * depth}{ends[1]}" if inside else ends


def _pair(key: str, text: str) -> str:
    return f"{_json(key)}: {text}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _sorted(value: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(value.items()))
