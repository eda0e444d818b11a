"""A HeatMap: one small PNG per variant (one pixel per expert), drawn large by the browser, and what stands around it.

Colours diverge around the mean on a log2 scale: orange above, blue below, almost nothing at 1x, grey for experts that
got no token at all. Pixels carry transparency and not a background, so the same picture serves light and dark pages.
Beside each layer stands its busiest expert against what chance alone would give.
"""

from __future__ import annotations

import base64
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from moeprof.analysis.report.document import HeatMap, HeatMapVariant
from moeprof.core.units import significant
from moeprof.render.html.charts.svg import element, linear_axis, number

ABOVE, BELOW, DEAD, MEAN = (224, 98, 8), (36, 124, 214), (120, 126, 136), (128, 134, 144)
LEVELS = 16  # shades on each side of the mean
NUM_SHADES = 2 * LEVELS + 1
ABSENT, NO_TOKENS = NUM_SHADES, NUM_SHADES + 1
STRIP = 130.0
MAX_OCTAVES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MapDrawing:
    """One variant, drawn.

    Attributes:
        label: of the variant.
        image: data URI of the PNG.
        strip: busiest expert per layer beside the chance level, as SVG.
        counts: tokens per expert for the script: base 36, experts split by ",", layers by ";".
        loads: loads in hundredths in the same form, or "" where they follow from the counts.
        nulls: chance level per layer, or empty.
        summary: a sentence for those who cannot see the picture.
    """

    label: str
    image: str
    strip: Markup
    counts: str
    loads: str
    nulls: tuple[float | None, ...]
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMapDrawing:
    """A drawn heat map: variants, geometry in CSS pixels, layer labels and the scale."""

    variants: tuple[MapDrawing, ...]
    num_layers: int
    num_experts: int
    row_height: int
    labels: Markup
    expert_ticks: tuple[tuple[float, str], ...]
    scale_ticks: tuple[tuple[float, str], ...]
    gradient: str
    has_dead: bool


def draw_heatmap(heat: HeatMap) -> HeatMapDrawing | None:
    """The heat map, or None when it has no cells."""
    num_experts = max((len(row) for v in heat.variants for row in v.loads), default=0)
    num_layers = max((len(v.loads) for v in heat.variants), default=0)
    if not num_experts:
        return None
    loads = [load for v in heat.variants for row in v.loads for load in row if math.isfinite(load)]
    octaves = max(1, min(MAX_OCTAVES, math.ceil(math.log2(max([1.0, *loads])) - 1e-9)))
    height = 28 if num_layers <= 12 else 16 if num_layers <= 30 else 11
    highest = max([1.1, *loads, *(n for v in heat.variants for n in v.null_high if math.isfinite(n))])
    return HeatMapDrawing(
        variants=tuple(_variant(v, num_experts, octaves, height, highest) for v in heat.variants),
        num_layers=num_layers,
        num_experts=num_experts,
        row_height=height,
        labels=_layer_labels(heat.layers, height),
        expert_ticks=_expert_ticks(num_experts),
        scale_ticks=_scale_ticks(octaves, loads),
        gradient=", ".join(_css(_shade(level)) for level in range(-LEVELS, LEVELS + 1, 2)),
        has_dead=any(load == 0 for load in loads),
    )


def _variant(v: HeatMapVariant, num_experts: int, octaves: int, height: int, highest: float) -> MapDrawing:
    pixels = [[_index(load, octaves) for load in row] + [ABSENT] * (num_experts - len(row)) for row in v.loads]
    busiest = max((_busiest(row), i) for i, row in enumerate(v.loads))
    return MapDrawing(
        label=v.label,
        image="data:image/png;base64," + base64.b64encode(png(pixels, _palette())).decode(),
        strip=_strip(v, height, highest),
        counts=_packed(v.counts),
        loads="" if _follow_from_counts(v) else _packed(_hundredths(v)),
        nulls=tuple(round(n, 3) if math.isfinite(n) else None for n in v.null_high),
        summary=f"{v.label}: {len(v.loads)} layers by {num_experts} experts; the busiest expert, in row {busiest[1]}, "
        f"gets {significant(busiest[0])} times the mean of its layer",
    )


def _busiest(row: Sequence[float]) -> float:
    return max((load for load in row if math.isfinite(load)), default=0.0)


def _index(load: float, octaves: int) -> int:
    """Palette index of a load; loads beyond the scale take its last shade, and the scale says so."""
    if not math.isfinite(load):
        return ABSENT  # a layer that got no token in this cut has no mean
    if load <= 0:
        return NO_TOKENS
    level = round(max(-1.0, min(1.0, math.log2(load) / octaves)) * LEVELS)
    return level + LEVELS


def _shade(level: int) -> tuple[int, int, int, int]:
    strength = abs(level) / LEVELS
    if level == 0:
        return (*MEAN, 26)
    return (*(ABOVE if level > 0 else BELOW), round(255 * (0.1 + 0.9 * strength)))


def _palette() -> list[tuple[int, int, int, int]]:
    return [*(_shade(level) for level in range(-LEVELS, LEVELS + 1)), (0, 0, 0, 0), (*DEAD, 255)]


def _css(colour: tuple[int, int, int, int]) -> str:
    red, green, blue, alpha = colour
    return f"rgb({red} {green} {blue}/{alpha / 255:.2f})"


def png(rows: Sequence[Sequence[int]], palette: Sequence[tuple[int, int, int, int]]) -> bytes:
    """A PNG with a palette and transparency (https://www.w3.org/TR/png-3/, sections 10 and 11)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 3, 0, 0, 0)
    colours = b"".join(bytes(colour[:3]) for colour in palette)
    alphas = bytes(colour[3] for colour in palette)
    body = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows), 9)
    chunks = ((b"IHDR", header), (b"PLTE", colours), (b"tRNS", alphas), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in chunks)


def _follow_from_counts(v: HeatMapVariant) -> bool:
    """True when every load is its count over the layer's mean count, so that counts alone need to be written."""
    for loads, counts in zip(v.loads, v.counts, strict=False):
        total = sum(counts)
        if len(loads) != len(counts):
            return False
        if total and any(not abs(x - n * len(counts) / total) <= 0.005 for x, n in zip(loads, counts, strict=True)):
            return False
    return len(v.loads) == len(v.counts)


def _hundredths(v: HeatMapVariant) -> list[list[int]]:
    return [[round(100 * load) if math.isfinite(load) else 0 for load in row] for row in v.loads]


def _packed(rows: Sequence[Sequence[int]]) -> str:
    return ";".join(",".join(base36(n) for n in row) for row in rows)


def base36(value: int) -> str:
    """A count in base 36, as the script's ``parseInt(text, 36)`` reads it; 0 is written as nothing."""
    digits = ""
    while value > 0:
        value, digit = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


def _strip(v: HeatMapVariant, height: int, highest: float) -> Markup:
    """Per layer: a dot at the busiest expert's load (never under 1x), a bar to it, and a tick at the chance level."""
    axis = linear_axis([1.0, highest], "", 8.0, STRIP - 12, about=3, round_ends=False, from_zero=False)
    total = height * len(v.loads)
    one = number(axis.place(1.0))
    ticks = [(1.0, "1"), *((x, text) for x, text in axis.ticks if x - 1.0 > 0.2 * (axis.high - 1.0))]
    grid = "".join(f"M{number(axis.place(x))} 0V{total}" for x, _ in ticks)
    bars = dots = nulls = ""
    for i, row in enumerate(v.loads):
        if not _busiest(row):
            continue
        y, x = number((i + 0.5) * height), number(axis.place(max(1.0, _busiest(row))))
        bars += f"M{one} {y}H{x}"
        dots += f"M{x} {y}h0"
        if i < len(v.null_high) and math.isfinite(v.null_high[i]):
            nulls += f"M{number(axis.place(v.null_high[i]))} {number(i * height + 2.0)}v{height - 4}"
    parts = [element("path", class_=kind, d=d) for kind, d in (("grid", grid), ("bar", bars), ("null", nulls)) if d]
    parts.append(element("path", class_="dot", d=dots))
    parts += [element("text", f"{text}x", x=axis.place(x), y=total + 15, class_="c") for x, text in ticks]
    size = {"width": int(STRIP), "height": total + 20}
    return element("svg", Markup("").join(parts), class_="strip", aria_hidden="true", **size)


def short_names(names: Sequence[str]) -> list[str]:
    """Layer names by their number where that tells them apart: ``model.layers.3.mlp`` -> ``3``."""
    numbers = [re.findall(r"\d+", name) for name in names]
    told = [found[0] for found in numbers if found]
    return told if len(set(told)) == len(names) else list(names)


def _layer_labels(layers: Sequence[str], height: int) -> Markup:
    every = max(1, math.ceil(15 / height))
    names = [name if len(name) <= 14 else f"{name[:13]}\u2026" for name in short_names(layers)]
    width = 8 + 7 * max((len(name) for name in names), default=1)
    texts = [
        element("text", name, x=width - 6, y=(i + 0.5) * height + 4, class_="e")
        for i, name in enumerate(names)
        if i % every == 0
    ]
    size = {"width": width, "height": height * len(layers) + 20}
    return element("svg", Markup("").join(texts), class_="labels", aria_hidden="true", **size)


def _expert_ticks(num_experts: int) -> tuple[tuple[float, str], ...]:
    """(centre of the cell in percent, expert number): about eight, the last one included."""
    every = max(1, 2 ** math.ceil(math.log2(num_experts / 8))) if num_experts > 16 else 1
    shown = [e for e in range(0, num_experts, every) if num_experts - 1 - e >= every / 2]
    return tuple((round(100 * (e + 0.5) / num_experts, 2), str(e)) for e in [*shown, num_experts - 1])


def _scale_ticks(octaves: int, loads: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """(position in percent, text); an end beyond which loads lie says so."""
    texts = [f"1/{2**-o}x" if o < 0 else f"{2**o}x" for o in range(-octaves, octaves + 1)]
    if any(0 < load < 2.0**-octaves for load in loads):
        texts[0] = f"\u2264 {texts[0]}"
    if any(load > 2.0**octaves for load in loads):
        texts[-1] = f"\u2265 {texts[-1]}"
    return tuple((round(100 * i / (2 * octaves), 1), text) for i, text in enumerate(texts))
