"""Comparisons as GitHub tables: ratios under their values, waterfalls as bars of block characters."""

from __future__ import annotations

from moeprof.analysis.document import GateRow, GateTable, Ratio, RatioRow, RatioTable, Waterfall
from moeprof.render.cells import interval_text, short_text
from moeprof.render.cells_compare import (
    CANNOT_TELL,
    block_bars,
    block_character,
    ratio_interval,
    ratio_notes,
    ratio_text,
    shown_ratio,
    step_interval,
    step_text,
    tone,
)
from moeprof.render.cells_gates import HEADS, INTERVAL_HEAD, gate_cells, gate_notes
from moeprof.render.markdown_text import escape, html_text

BAR_WIDTH = 24
SPACE = "\u00a0"  # Markdown would run ordinary spaces together


def ratio_table(table: RatioTable) -> list[str]:
    """The table as lines; a folded one stands closed."""
    heads = [
        escape(name) + ("<br><sub>reference</sub>" if table.has_ratios and i == table.reference else "")
        for i, name in enumerate(table.columns)
    ]
    lines = ["|metric|" + "|".join(heads) + "|", "|:--|" + "--:|" * len(heads)]
    lines += [_row(row) for row in table.rows]
    lines += [f"\n<sub>{escape(note)}</sub>" for note in ratio_notes(table)]
    if table.folded:
        return [f"<details><summary><b>{html_text(table.title)}</b></summary>", "", *lines, "", "</details>", ""]
    return [*([f"**{escape(table.title)}**", ""] if table.title else []), *lines, ""]


def _row(row: RatioRow) -> str:
    cells = []
    for value, ratio in zip(row.values, row.ratios, strict=True):
        text = escape(short_text(value, row.card))
        kept = shown_ratio(value, ratio)
        if kept is None:
            interval = interval_text(value, row.card)
            cells.append(text + (f"<br><sub>{escape(interval)}</sub>" if interval else ""))
        else:
            cells.append("<br>".join(part for part in (text, _ratio(kept)) if part))
    return f"|{escape(row.label)}|" + "|".join(cells) + "|"


def _ratio(ratio: Ratio) -> str:
    """Number and verdict bold where a difference was shown, then the interval small."""
    parts = [escape(part) for part in (ratio_text(ratio), ratio.verdict) if part]
    text = " ".join(parts)
    if text and tone(ratio.verdict) != "open":
        text = f"**{text}**"
    interval = ratio_interval(ratio)
    return text + (f"<br><sub>{escape(interval)}</sub>" if interval else "")


def gate_table(table: GateTable) -> list[str]:
    """Gates as lines; a folded table stands closed."""
    lines = ["|" + "|".join(HEADS) + "|", "|:--|--:|--:|--:|:--|:--|:--|"]
    lines += [_gate(row) for row in table.rows]
    lines += [f"\n<sub>{escape(note)}</sub>" for note in gate_notes(table)]
    if table.folded:
        return [f"<details><summary><b>{html_text(table.title)}</b></summary>", "", *lines, "", "</details>", ""]
    return [*([f"**{escape(table.title)}**", ""] if table.title else []), *lines, ""]


def _gate(row: GateRow) -> str:
    cells = {name: escape(text) for name, text in gate_cells(row).items()}
    for name in ("change", "verdict"):
        if cells[name] and tone(row.ratio.verdict) != "open":
            cells[name] = f"**{cells[name]}**"
    if cells[INTERVAL_HEAD]:
        cells["change"] += f"<br><sub>{cells[INTERVAL_HEAD].replace(' ', SPACE)}</sub>"
    return "|" + "|".join(cells[name] for name in HEADS) + "|"


def waterfall_table(waterfall: Waterfall) -> list[str]:
    """Label, figure, interval and a bar per step; what the steps are stands under the table."""
    bars = block_bars(waterfall, BAR_WIDTH)
    lines = [f"**{escape(waterfall.title)}**", ""]
    lines += [escape(waterfall.caption), ""] if waterfall.caption else []
    lines += ["| | | |bar|", "|:--|--:|--:|:--|"]
    for step, (before, filled) in zip(waterfall.steps, bars, strict=True):
        label = escape(step.label) if step.kind == "change" else f"**{escape(step.label)}**"
        figure = escape(step_text(step, waterfall.unit)) + ("" if step.told else f"<br><sub>{CANNOT_TELL}</sub>")
        drawn = SPACE * before + block_character(step) * filled
        lines.append(f"|{label}|{figure}|{escape(step_interval(step, waterfall.unit))}|`{drawn}`|")
    lines.append("")
    lines += [f"- {escape(step.label)}: {escape(step.text)}" for step in waterfall.steps if step.text]
    return [*lines, ""]
