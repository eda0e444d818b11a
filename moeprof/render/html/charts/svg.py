"""What every chart stands on: axes with readable ticks, in SVG user units.

An axis maps SI values to positions. Ticks fall on 1, 2, 2.5 or 5 times a power of ten of the *shown* unit (ms, GiB),
so that a reader can count in the head. Markup is made only with ``Markup.format``, which escapes what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moeprof.core.units import axis_scale, tick

STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
ZERO_BELOW = 0.6  # an axis starts at zero when its smallest value is under this share of its largest

MAX_LOG_TICKS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis.

    Attributes:
        low, high: ends of the axis in SI.
        start, end: positions of the ends in user units.
        factor: SI value of one shown unit.
        unit: the shown unit.
        ticks: (SI value, text) in order.
        log: logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    factor: float
    unit: str
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def place(self, value: float) -> float:
        """The position of an SI value, in user units."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def for_script(self) -> list[float | int | str]:
        """What the page's script needs to turn a position back into a shown value."""
        ends = (float(f"{self.low / self.factor:.6g}"), float(f"{self.high / self.factor:.6g}"))
        return [self.start, self.end, *ends, int(self.log), self.unit]


def nice_step(span: float, about: int) -> float:
    """The step of 1, 2, 2.5, 5 times a power of ten that cuts ``span`` into at most ``about`` + 1 parts."""
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in STEPS if step * power >= raw * (1 - 1e-9))


def linear_axis(
    values: Sequence[float],
    unit: str,
    start: float,
    end: float,
    *,
    about: int = 5,
    round_ends: bool = True,
    from_zero: bool = True,
) -> Axis:
    """A linear axis over the values; it starts at zero unless all of them lie far from it.

    Args:
        values: what must fit, SI; may be empty.
        unit: of the values.
        start: position of the low end.
        end: position of the high end.
        about: number of ticks aimed at.
        round_ends: move the ends out to ticks.
        from_zero: False for quantities whose natural origin is their smallest value.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if from_zero and (low < ZERO_BELOW * high or low == high):
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = low + 1.0
    factor, shown = axis_scale(unit, max(abs(low), abs(high)))
    step = nice_step((high - low) / factor, about) * factor
    if round_ends:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = tuple((i * step, tick(i * step / factor, step / factor)) for i in range(first, last + 1))
    return Axis(low=low, high=high, start=start, end=end, factor=factor, unit=shown, ticks=ticks)


def log_axis(values: Sequence[float], unit: str, start: float, end: float) -> Axis:
    """A logarithmic axis over positive values, with ticks at 1, 2, 5 or at powers of ten where they are many."""
    low, high = (min(values), max(values)) if values else (1.0, 10.0)
    if high / low < 1.5:
        low, high = low / 2, high * 2
    factor, shown = axis_scale(unit, high)
    decades = range(math.floor(math.log10(low / factor)), math.ceil(math.log10(high / factor)) + 1)
    inside = [m for power in decades for m in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)]
    inside = [m for m in inside if low / factor <= m * 1.0001 and m <= high / factor * 1.0001]
    every = max(1, len(decades) // 6)
    powers = [m for m in inside if _is_power_of_ten(m) and round(math.log10(m)) % every == 0]
    marks = inside if len(inside) <= MAX_LOG_TICKS else powers
    ticks = tuple((m * factor, tick(m, m)) for m in marks)
    return Axis(low=low, high=high, start=start, end=end, factor=factor, unit=shown, ticks=ticks, log=True)


def _is_power_of_ten(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-9


def number(value: float) -> str:
    """A position with one decimal, as short as it can be: ``12.0`` -> ``12``."""
    text = f"{value:.1f}"
    return text.removesuffix(".0").replace("-0", "0") if text in ("-0.0", "0.0") else text.removesuffix(".0")


def element(name: str, text: str | Markup | None = None, **attributes: object) -> Markup:
    """An SVG element; attribute names take ``_`` for ``-`` and a trailing ``_`` for reserved words."""
    pairs = (
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), number(v) if isinstance(v, float) else v)
        for key, v in attributes.items()
        if v is not None
    )
    opening = Markup("<{}{}").format(name, Markup("").join(pairs))
    return opening + Markup("/>") if text is None else opening + Markup(">{}</{}>").format(text, name)


def axis_title(label: str, unit: str) -> str:
    """``Step time``, ``ms`` -> ``Step time, ms``; a label that says a long unit itself stays as it is."""
    said = len(unit) > 2 and unit.casefold() in label.casefold()
    return label if said or not unit else f"{label}, {unit}"
