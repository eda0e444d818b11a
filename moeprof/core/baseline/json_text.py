"""A baseline as JSON that people read in a diff, and back: a line per fact, per metric, per layer of routing load.

Equal baselines give equal bytes: the order of metrics is the run's own, everything else is sorted, floats keep every
digit. What is as usual (not exact, valid, no reasons...) is left out of a metric's line. Old formats are upgraded, and
damage is named by its key in one line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.core.baseline.baseline import FORMAT_VERSION, Baseline, BaselineModel, RoutingLoad
from moeprof.core.errors import RecordError
from moeprof.core.metric import MetricValue

AGAIN = "take it from version control again"  # what to do about a damaged file
# format -> what makes the next format of it
UPGRADERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def upgraded(file: Path, value: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The content in today's format, and the format that it was written in.

    Raises:
        RecordError: no format, or a newer one.
    """
    version = value.get("format_version")
    if type(version) is not int or not min(UPGRADERS, default=FORMAT_VERSION) <= version:
        raise RecordError(
            f"{file}: damaged, format_version is {version!r}; a whole number from 1 belongs there; {AGAIN}"
        )
    if version > FORMAT_VERSION:
        raise RecordError(
            f"{file}: a baseline of format {version}, this moeprof reads up to {FORMAT_VERSION}; upgrade moeprof"
        )
    for old in range(version, FORMAT_VERSION):
        value = {**UPGRADERS[old](value), "format_version": old + 1}
    return value, version


def baseline_of(file: Path, value: Mapping[str, Any], version: int) -> tuple[Baseline, str | None]:
    """The baseline without its arrays, and the sha256 of those (None where it never had any).

    Args:
        file: for messages.
        value: JSON of today's format.
        version: the format that the file was written in.

    Raises:
        RecordError: a key is missing or of the wrong kind; the message names it.
    """
    top = _Keys(file, "", value)
    usd_per_second = top.number("usd_per_second")
    if usd_per_second is None:
        raise top.wrong("usd_per_second", "a number")
    baseline = Baseline(
        name=top.text("name"),
        run=top.text("run"),
        created_at=top.text("created_at"),
        moeprof=top.text("moeprof"),
        workload=top.text("workload"),
        device=top.text("device"),
        device_kind=top.text("device_kind"),
        status=top.text("status"),
        facts=top.keys("facts").value,
        usd_per_second=usd_per_second,
        models=tuple(_model(model) for model in top.objects("models")),
        label=top.maybe_text("label"),
        format_version=version,
    )
    return baseline, top.maybe_text("arrays_sha256")


def _model(keys: _Keys) -> BaselineModel:
    return BaselineModel(
        name=keys.text("name"),
        facts=keys.keys("facts").value,
        metrics=tuple(value for line in keys.objects("metrics") for value in _metrics(line)),
        routing=None if keys.value.get("routing") is None else _routing(keys.keys("routing")),
        top_k=keys.whole_numbers("top_k"),
        num_experts=keys.whole_numbers("num_experts"),
        own_traffic=keys.maybe_text("own_traffic"),
        priced_traffic=keys.maybe_text("priced_traffic"),
    )


def _routing(keys: _Keys) -> RoutingLoad:
    tokens = keys.keys("tokens")
    layers = list(keys.objects("layers"))
    return RoutingLoad(
        layers=tuple(layer.text("layer") for layer in layers),
        counts={phase: tuple(layer.whole_numbers(phase) for layer in layers) for phase in tokens.value},
        tokens={phase: tokens.whole(phase) for phase in tokens.value},
    )


def _metrics(line: _Keys) -> Iterator[MetricValue]:
    """The value of all launches, then each launch's own."""
    interval = line.numbers("ci", default=[None, None])
    if len(interval) != 2:
        raise line.wrong("ci", "two numbers")
    labels = line.keys("labels", default={})
    null = line.keys("null", default={})
    value = MetricValue(
        name=line.text("name"),
        value=line.number("value"),
        n=line.whole("n") if "n" in line.value else None,
        ci_low=interval[0],
        ci_high=interval[1],
        exact=line.boolean("exact", default=False),
        labels={name: labels.text(name) for name in labels.value},
        valid=line.boolean("valid", default=True),
        reasons=line.items("reasons", "a list of texts", lambda item: isinstance(item, str), default=[]),
        null={name: float(number) for name in null.value if (number := null.number(name)) is not None},
        share=line.number("share") if "share" in line.value else None,
    )
    yield value
    for number, own in enumerate(line.numbers("launches", default=[])):
        if own is not None:
            yield MetricValue(name=value.name, value=own, labels={**value.labels, "launch": str(number)})


@dataclass(frozen=True, slots=True)
class _Keys:
    """An object of the file; every reader raises RecordError with the key's full place."""

    file: Path
    where: str
    value: Mapping[str, Any]

    def wrong(self, key: str, wanted: str) -> RecordError:
        """The error to raise."""
        place = f"{self.where}.{key}" if self.where else key
        if key not in self.value:
            return RecordError(f"{self.file}: damaged, without {place}; {wanted} belongs there; {AGAIN}")
        found = self.value[key]
        kinds: dict[type, str] = {dict: "keys and values", list: "a list"}
        said = kinds.get(type(found), repr(found)[:40])
        return RecordError(f"{self.file}: damaged, {place} is {said}; {wanted} belongs there; {AGAIN}")

    def read(self, key: str, wanted: str, fits: Callable[[Any], bool], default: Any = None) -> Any:
        """The value of a key, or ``default`` without one."""
        found = self.value.get(key, default)
        if not fits(found):
            raise self.wrong(key, wanted)
        return found

    def text(self, key: str) -> str:
        found: str = self.read(key, "a text", lambda found: isinstance(found, str))
        return found

    def maybe_text(self, key: str) -> str | None:
        return None if self.value.get(key) is None else self.text(key)

    def number(self, key: str) -> float | int | None:
        found: float | int | None = self.read(key, "a number or null", _is_number, default=...)
        return found

    def whole(self, key: str) -> int:
        found: int = self.read(key, "a whole number", _is_whole)
        return found

    def boolean(self, key: str, *, default: bool) -> bool:
        found: bool = self.read(key, "true or false", lambda found: isinstance(found, bool), default)
        return found

    def items(
        self, key: str, wanted: str, fits: Callable[[Any], bool] = lambda item: True, default: Any = None
    ) -> tuple[Any, ...]:
        return tuple(self.read(key, wanted, lambda found: isinstance(found, list) and all(map(fits, found)), default))

    def numbers(self, key: str, default: list[Any] | None = None) -> tuple[float | int | None, ...]:
        return self.items(key, "a list of numbers", _is_number, default)

    def whole_numbers(self, key: str) -> tuple[int, ...]:
        return self.items(key, "a list of whole numbers", _is_whole)

    def keys(self, key: str, default: Mapping[str, Any] | None = None) -> _Keys:
        found = self.read(key, "keys and values", lambda found: isinstance(found, dict), default)
        return _Keys(self.file, f"{self.where}.{key}" if self.where else key, found)

    def objects(self, key: str) -> Iterator[_Keys]:
        for number, item in enumerate(self.items(key, "a list")):
            place = f"{self.where}.{key}[{number}]" if self.where else f"{key}[{number}]"
            if not isinstance(item, dict):
                raise RecordError(f"{self.file}: damaged, {place} is {item!r}; keys and values belong there; {AGAIN}")
            yield _Keys(self.file, place, item)


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


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
    head = {"format_version": FORMAT_VERSION, **{name: getattr(baseline, name) for name in HEAD}}
    items = [_pair(key, _json(value)) for key, value in {**head, "arrays_sha256": arrays_sha256}.items()]
    items.append(_pair("facts", _facts(baseline.facts, depth=1)))
    items.append(_pair("models", _block("[]", [_model_data(model) for model in baseline.models], depth=1)))
    return _block("{}", items, depth=0) + "\n"


def _model_data(model: BaselineModel) -> str:
    items = [_pair("name", _json(model.name)), _pair("facts", _facts(model.facts, depth=3))]
    items += [_pair(key, _json(getattr(model, key))) for key in ("own_traffic", "priced_traffic")]
    items += [_pair(key, _json(list(getattr(model, key)))) for key in ("top_k", "num_experts")]
    items.append(_pair("routing", "null" if model.routing is None else _routing_data(model.routing)))
    items.append(_pair("metrics", _block("[]", [_json(line) for line in metric_lines(model.metrics)], depth=3)))
    return _block("{}", items, depth=2)


def _routing_data(routing: RoutingLoad) -> str:
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
    has_interval = (value.ci_low, value.ci_high) != (None, None)
    own = [launches.get(number) for number in range(max(launches) + 1)] if launches else None
    usual: dict[str, Any] = {"labels": {}, "ci": None, "n": None, "exact": False, "valid": True, "reasons": []}
    usual |= {"null": {}, "share": None, "launches": None}
    line = {
        "name": value.name,
        "labels": _sorted(value.labels),
        "value": value.value,
        "ci": [value.ci_low, value.ci_high] if has_interval else None,
        "n": value.n,
        "exact": value.exact,
        "valid": value.valid,
        "reasons": list(value.reasons),
        "null": _sorted(value.null),
        "share": value.share,
        "launches": own,
    }
    return {key: one for key, one in line.items() if key not in usual or one != usual[key]}


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
