"""Small bar charts that GitHub renders: block characters in code spans. For the comment on a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.document import Chart, FactTable, Section
from moeprof.analysis.regress.routing_change import LayerChange, RoutingChange
from moeprof.analysis.regress.routing_sentences import layer_labels
from moeprof.core import units
from moeprof.core.plaintext import one_line
from moeprof.render.markdown_text import escape

BAR = 16
MOST_LAYERS, MOST_EXPERTS, MOST_SENTENCES = 12, 8, 6
FULL, EMPTY = "\u2588", "\u2591"
SPARKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


def bar(value: float, largest: float, width: int = BAR) -> str:
    """A filled share of ``width`` places; what is not zero is never invisible."""
    share = 0.0 if largest <= 0 else min(max(value / largest, 0.0), 1.0)
    filled = max(round(share * width), 1 if value > 0 else 0)
    return FULL * filled + EMPTY * (width - filled)


def spark(values: Sequence[float]) -> str:
    """A line of blocks, the lowest value the lowest; equal values lie in the middle."""
    low, high = min(values), max(values)
    if low == high:
        return SPARKS[3] * len(values)
    return "".join(SPARKS[round((value - low) / (high - low) * (len(SPARKS) - 1))] for value in values)


def code(text: str) -> str:
    """Text in a code span inside a table."""
    clean = one_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{clean}`"


def routing_parts(changes: Sequence[RoutingChange]) -> list[tuple[str, list[str]]]:
    """(title, lines) per model whose routing was looked at."""
    several = len(changes) > 1
    return [_routing(change, f" of {change.model}" if several else "") for change in changes]


def _routing(change: RoutingChange, whose: str) -> tuple[str, list[str]]:
    title = f"Routing{whose}: {change.verdict}, {change.tokens:,} tokens"
    lines = [f"- {escape(sentence)}" for sentence in change.sentences[:MOST_SENTENCES]]
    if change.verdict == "unchanged" or not change.layers:
        return title, lines
    labels = layer_labels([layer.name for layer in change.layers])
    ranked = sorted(
        zip(labels, change.layers, strict=True),
        key=lambda pair: (not (pair[1].collapse or pair[1].newly_dead), -pair[1].drift_js),
    )
    shown = ranked[:MOST_LAYERS]
    lines += ["", "|layer|drift|same picks|busiest / mean|dead|", "|:--|:--|--:|--:|:--|"]
    largest = max(layer.drift_js for _, layer in shown)
    lines += [_layer(label, layer, largest) for label, layer in shown]
    if len(ranked) > len(shown):
        lines += ["", f"{len(ranked) - len(shown)} more layers drifted less."]
    return title, [*lines, "", *_experts(*ranked[0])]


def _layer(label: str, layer: LayerChange, largest: float) -> str:
    drift = f"{code(bar(layer.drift_js, largest))} {units.significant(layer.drift_js, 2)}"
    if layer.drift_null is not None:
        drift += f" <sub>chance {units.significant(layer.drift_null, 2)}</sub>"
    agreement = "" if layer.agreement_ratio is None else units.percent(layer.agreement_ratio)
    busiest = " \u2192 ".join(units.significant(load) for load in layer.max_over_mean)
    dead = " \u2192 ".join(str(num) for num in layer.dead)
    if layer.newly_dead:
        some = ", ".join(str(expert) for expert in layer.newly_dead[:MOST_EXPERTS])
        more = len(layer.newly_dead) - MOST_EXPERTS
        dead = f"**{dead}** (expert {some}{f' and {more} more' if more > 0 else ''})"
    return f"|{code(label)}|{drift}|{agreement}|{busiest}|{dead}|"


def _experts(label: str, layer: LayerChange) -> list[str]:
    """Shares of the experts that moved most in one layer, before and after."""
    moved = layer.moved[:MOST_EXPERTS]
    if not moved:
        return []
    largest = max(share for _, *shares in moved for share in shares)
    lines = [f"Experts of {code(label)} whose share of the tokens changed most:", ""]
    lines += ["|expert|reference|new|", "|--:|:--|:--|"]
    for expert, before, after in moved:
        cells = [f"{code(bar(share, largest))} {units.percent(share)}" for share in (before, after)]
        lines.append(f"|{expert}|{'|'.join(cells)}|")
    return lines


def trend_lines(section: Section) -> list[str]:
    """Each figure of the trend with a line of blocks and its sentence."""
    charts = {block.title: block for block in section.blocks if isinstance(block, Chart)}
    tables = [block for block in section.blocks if isinstance(block, FactTable)]
    lines = ["|figure|oldest to newest|what changed|", "|:--|:--|:--|"]
    for label, sentence in tables[0].rows if tables else ():
        drawn = code(spark(charts[label].series[0].y)) if label in charts else ""
        lines.append(f"|{escape(label)}|{drawn}|{escape(sentence)}|")
    return lines if tables else []
