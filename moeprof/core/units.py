"""The only number formatter. SI inside the house; display units are made here and nowhere else."""

from __future__ import annotations

import math

NOT_AVAILABLE = "n/a"


NEAR_ONE = 1.05  # ratios from 1 to this need a digit more, or 1.004 would read as 1


def times(value: float) -> str:
    """A ratio as people say it: ``0.612x``, ``1.004x``."""
    return f"{significant(value, 4 if 1 <= value < NEAR_ONE else 3)}x"


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, with thousands separators, without an exponent where readable."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10**digits:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.{digits - 1}e}"
    text = f"{value:.{digits}g}"
    return f"{float(text):.10f}".rstrip("0").rstrip(".") if "e" in text else text


def scaled(value: float, steps: list[tuple[float, str]]) -> str:
    """The value in the largest unit that makes it at least one."""
    for factor, unit in steps:
        if abs(value) >= factor:
            return f"{significant(value / factor)} {unit}"
    factor, unit = steps[-1]
    return f"{significant(value / factor)} {unit}"


_SECONDS = [(3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us")]
_BYTES = [(2.0**40, "TiB"), (2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")]
BYTE_UNITS = ("bytes", "B")
RATE_UNITS = {
    "B/s": [(1e12, "TB/s"), (1e9, "GB/s"), (1e6, "MB/s"), (1.0, "B/s")],
    "FLOP/s": [(1e15, "PFLOP/s"), (1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1.0, "FLOP/s")],
}
_COUNTS = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")]
SINGULARS = {"experts": "expert", "layers": "layer", "requests": "request"}
_PLURALS = {one: several for several, one in SINGULARS.items()}


def seconds(value: float) -> str:
    """``0.0123`` -> ``12.3 ms``."""
    return "0 s" if value == 0 else scaled(value, _SECONDS)


def num_bytes(value: float) -> str:
    """``1048576`` -> ``1 MiB``."""
    return scaled(value, _BYTES)


def count(value: float) -> str:
    """``46702792704`` -> ``46.7 B``; below a thousand the plain number."""
    return significant(value) if abs(value) < 1e3 else scaled(value, _COUNTS)


def usd(value: float) -> str:
    """``0.03124`` -> ``$0.0312``."""
    if value < 0:
        return f"-{usd(-value)}"
    if not 1e-9 <= value < 1e-4:
        return f"${significant(value)}"
    return f"${value:.{2 - math.floor(math.log10(value))}f}"  # a small bill without an exponent: $0.0000129


def percent(value: float) -> str:
    """A ratio as a percentage: ``0.123`` -> ``12.3 %``."""
    return f"{significant(100 * value)} %"


def rate(value: float, what: str) -> str:
    """``1234.5, "tok"`` -> ``1,234 tok/s``."""
    return f"{significant(value)} {what}/s"


def display(value: float | int | None, unit: str) -> str:
    """A metric's value in the unit of its card, for people."""
    if value is None:
        return NOT_AVAILABLE
    if unit == "s":
        return seconds(value)
    if unit in BYTE_UNITS:
        return num_bytes(value)
    if unit in RATE_UNITS:
        return scaled(value, RATE_UNITS[unit])
    if unit.startswith("USD"):
        return usd(value) + unit.removeprefix("USD")
    if unit in ("params", "parameters", "tokens", "FLOP"):
        return count(value)
    if unit == "ratio":
        return significant(value)
    if unit == "share":
        return percent(value)
    text = significant(value)
    if unit in SINGULARS and text in ("1", "-1"):
        return f"{text} {SINGULARS[unit]}"
    return f"{text} {unit}" if unit else text


def difference(value: float, unit: str) -> str:
    """A difference of two such values; between shares in points, as per cent would be taken for a ratio."""
    return f"{significant(100 * value)} points" if unit == "share" else short(value, unit)


def split(text: str) -> tuple[str, str]:
    """Number and unit of a shown value, units of counts in the plural: ``1 expert`` -> ``("1", "experts")``."""
    number, _, unit = text.partition(" ")
    return number, _PLURALS.get(unit, unit)


_LARGEST_SHOWN_IN = {"s": [(7200.0, 3600.0, "h"), (600.0, 60.0, "min"), *((f, f, u) for f, u in _SECONDS[2:])]}


def axis_scale(unit: str, largest: float) -> tuple[float, str]:
    """How one axis shows a unit: divide values by the factor, write the name beside the axis.

    ``("s", 0.2)`` -> ``(0.001, "ms")``; ``("bytes", 3e9)`` -> ``(2**30, "GiB")``; ``("ratio", 1)`` -> ``(1, "")``;
    ``("share", 1)`` -> ``(0.01, "%")``.
    """
    if unit == "s":
        steps = _LARGEST_SHOWN_IN["s"]
    elif unit in BYTE_UNITS:
        steps = [(factor, factor, name) for factor, name in _BYTES]
    elif unit in ("params", "parameters", "tokens", "FLOP"):
        steps = [(factor * 10, factor, f"{name} {unit}") for factor, name in _COUNTS]
        steps.append((0.0, 1.0, unit))
    elif unit.startswith("USD"):
        steps = [(0.01, 1.0, unit), (1e-3, 1e-3, f"thousandths of {unit}"), (0.0, 1e-6, f"millionths of {unit}")]
    elif unit == "share":
        return 0.01, "%"
    else:
        return 1.0, "" if unit == "ratio" else unit
    for least, factor, name in steps:
        if abs(largest) >= least:
            return factor, name
    return steps[-1][1], steps[-1][2]


def tick(value: float, step: float) -> str:
    """A tick of an axis with as many decimals as its step needs: ``(0.5, 0.25)`` -> ``0.50``."""
    if step >= 1e6 or abs(value) >= 1e9 or step < 1e-8:
        return "0" if value == 0 else f"{value:.3g}"
    decimals = 0
    while decimals < 9 and abs(step * 10**decimals - round(step * 10**decimals)) > 1e-6 * step * 10**decimals:
        decimals += 1
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def short(value: float | int | None, unit: str) -> str:
    """As :func:`display` without what a heading already says: ``$0.031``, not ``$0.031 / 1M tokens``."""
    return usd(value) if value is not None and unit.startswith("USD") else display(value, unit)


def interval(low: float, high: float, unit: str) -> str:
    """An interval in display units, the unit written once where both ends share it: ``1.2 - 1.4 ms``."""
    left, right = short(low, unit), short(high, unit)
    left_number, left_unit = split(left)
    if left_unit and left_unit == split(right)[1]:
        left = left_number
    return f"{left} \u2013 {right}"
