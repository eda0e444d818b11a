"""What machine-read files say of a gate, in the same words in each of them."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue
from moeprof.core.units import display

_PLACE = re.compile(r"(?P<file>.+?):(?P<line>[1-9][0-9]*)(:.*)?|(?P<whole>.+\.ya?ml)", re.DOTALL)
_BOUNDS = {"at_most": "<=", "at_least": ">="}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a trend draws of a gate: the new run's value; a lock-step pair has none, so its ratio.

    Attributes:
        value: in ``unit``; whole numbers stay whole.
        low, high: 95 % interval, both or neither.
        unit: of the metric's card; ``ratio`` for a ratio.
        is_ratio: True where it is new over base.
    """

    value: float | int
    low: float | None
    high: float | None
    unit: str
    is_ratio: bool


def point(result: GateResult) -> Point | None:
    """What to draw; None where nothing was measured."""
    value = finite(result.other.value) if result.other is not None else None
    if result.other is not None and value is not None:
        low, high = _both(result.other.ci_low, result.other.ci_high)
        return Point(value=value, low=low, high=high, unit=result.card.unit, is_ratio=False)
    ratio = finite(result.ratio.value)
    if ratio is None or result.reference is not None or result.other is not None:
        return None
    low, high = _both(result.ratio.low, result.ratio.high)
    return Point(value=ratio, low=low, high=high, unit="ratio", is_ratio=True)


def finite(value: float | int | None) -> float | int | None:
    """The number as Python's own, or None for what JSON has no word for."""
    if value is None or not math.isfinite(value):
        return None
    return int(value) if not isinstance(value, float) and value == int(value) else float(value)


def case_names(gates: Sequence[GateResult]) -> tuple[str, ...]:
    """A name per gate that no other gate of its model has, and that stays the same from run to run.

    The metric with its labels; a bound says which. A figure with two thresholds gets each threshold's text.
    """
    short = [_name(gate) for gate in gates]
    times = Counter((gate.model, name) for gate, name in zip(gates, short, strict=True))
    full = [
        name if times[gate.model, name] == 1 else f"{name} [{gate.gate.text}]"
        for gate, name in zip(gates, short, strict=True)
    ]
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for gate, name in zip(gates, full, strict=True):
        seen[gate.model, name] += 1
        turn = seen[gate.model, name]
        names.append(name if turn == 1 else f"{name} ({turn})")
    return tuple(names)


def figures(result: GateResult) -> str:
    """``$0.500 -> $0.550 / 1M tokens, ratio 1.100 [1.040, 1.160], 6 pairs``, without what is not known."""
    parts = (_values(result), _ratio(result.ratio), result.n)
    return ", ".join(part for part in parts if part)


def sentence(result: GateResult) -> str:
    """Verdict, figures, reason, threshold, and what would decide it."""
    parts = [f"{result.verdict}: {figures(result)}"]
    if result.ratio.reason:
        parts.append(result.ratio.reason)
    parts.append(f"Gate: {result.gate.text} ({result.gate.source})")
    if result.decide:
        parts.append(f"To decide it: {result.decide}")
    return ". ".join(part.rstrip(".") for part in parts) + "."


def headline(regression: Regression) -> str:
    """What was compared, the verdict, and how many gates ended how."""
    counts = [(verdict, len(regression.with_verdict(verdict))) for verdict in ("worse", "cannot tell", "better")]
    said = "; ".join(f"{verdict}: {count}" for verdict, count in counts if count)
    whole = f"{regression.workload}: {regression.verdict}, {regression.other} against {regression.reference}"
    return f"{whole} ({said} of {len(regression.gates)} gates)." if said else f"{whole}."


def place(source: str) -> tuple[str, int] | None:
    """``workloads/ci.yaml:14`` -> that file, seen from the working directory, and the line; None for anything else.

    A file without a line is its first line. A file outside the working directory means nothing to the reader.
    """
    found = _PLACE.fullmatch(source)
    if found is None:
        return None
    file = Path(found["whole"] or found["file"])
    if file.is_absolute():
        if not file.is_relative_to(Path.cwd()):
            return None
        file = file.relative_to(Path.cwd())
    return None if ".." in file.parts else (file.as_posix(), int(found["line"] or 1))


def workload_file(workload: str) -> str:
    """Where the workload of this name stands, seen from the working directory, by the names that files usually have."""
    usual = f"workloads/{workload}.yaml"
    return usual if os.path.isfile(usual) else f"{workload}.yaml"  # Path.is_file raises for long names


def _name(result: GateResult) -> str:
    sign = _BOUNDS.get(result.gate.kind)
    return f"{result.label}{sign}{result.gate.amount:g}" if sign else result.label


def _values(result: GateResult) -> str:
    shown = [_value(side, result) for side in (result.reference, result.other)]
    return " -> ".join(text for text in shown if text)


def _value(side: MetricValue | None, result: GateResult) -> str:
    value = finite(side.value) if side is not None else None
    return "" if value is None else display(value, result.card.unit)


def _ratio(ratio: Ratio) -> str:
    value = finite(ratio.value)
    if value is None:
        return ""
    low, high = _both(ratio.low, ratio.high)
    return f"ratio {value:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")


def _both(low: float | None, high: float | None) -> tuple[float | None, float | None]:
    ends = finite(low), finite(high)
    return (None, None) if None in ends else ends
