"""A regression check as a pull-request comment, and as ``$GITHUB_STEP_SUMMARY``: GitHub's Markdown, within its limits.

The verdict and what changed stand open, everything else is folded. Where the whole would be too long, the last parts
go first, a table is cut between two rows, and a sentence says what is missing.

Small bar charts that GitHub renders: block characters in code spans. For the comment on a pull request.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moeprof.analysis.regress.result import Regression
from moeprof.analysis.regress.routing.change import LayerChange, RoutingChange
from moeprof.analysis.regress.routing.sentences import layer_labels
from moeprof.analysis.report.document import Block, Chart, Document, Section, Table
from moeprof.analysis.report.result import Check
from moeprof.core import units
from moeprof.core.text import one_line
from moeprof.render.markdown import block_lines, escape, html_text

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
    tables = [block for block in section.blocks if isinstance(block, Table)]
    lines = ["|figure|oldest to newest|what changed|", "|:--|:--|:--|"]
    for row in tables[0].rows if tables else ():
        drawn = code(spark(charts[row.label].series[0].y)) if row.label in charts else ""
        lines.append(f"|{escape(row.label)}|{drawn}|{escape(row.cells[0].text or '')}|")
    return lines if tables else []


LIMIT_BYTES = 65_000  # GitHub takes 65,536 characters; bytes are counted, so that block characters are safe too
ROOM = 600  # for the sentence about what was left out
ENTITY = "\0"  # an ampersand of ours: text from a record has no control characters
MARKER = "<!-- moeprof-regress:"
CUT = "The rest of this table is left out for length."
_CODE = re.compile(r"((?<!\\)`[^`]*`)")
_MENTION = re.compile(r"(?<![\w`])@(?=[A-Za-z0-9])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece that can be left out whole, or cut after a line.

    Attributes:
        title: its summary; empty: it stands open.
        lines: of Markdown, each row of a table on one.
    """

    title: str
    lines: tuple[str, ...]


def marker(workload: str, device: str) -> str:
    """The hidden first line, by which a bot finds its own comment: the same for every check of a workload on a device.

    The two names as they stand in the record, with double dashes apart and angle brackets gone: a comment ends there.
    """
    name = one_line(f"{workload} {device}").replace("<", "").replace(">", "")
    while "--" in name:
        name = name.replace("--", "- -")
    return f"{MARKER} {name} -->"


def render(check: Check, *, limit_bytes: int = LIMIT_BYTES) -> str:
    """The check as Markdown, of at most so many bytes of UTF-8 (4,000 at least)."""
    regression, page = check.regression, check.document
    verdict, _, rest = page.headline.partition(": ")
    head = [marker(regression.workload, regression.device)]
    head += [f"### {escape(verdict)}: {escape(page.title)}", "", f"**{escape(rest)}**", ""]
    head += [f"- {escape(note)}" for note in page.notes]
    head += ["", *(f"> {escape(banner)}\n" for banner in page.banners)]
    foot = ["", f"<sub>{escape(page.subtitle)}</sub>"]
    room = limit_bytes - ROOM - _size(head) - _size(foot)
    return _text([*head, *_fitted(_parts(regression, page), room), *foot])


def _parts(regression: Regression, page: Document) -> list[Part]:
    """In order of importance."""
    blocks = page.sections[0].blocks if page.sections else ()
    parts = [Part(title="", lines=_untitled(block)) for block in blocks if _is_open(block)]
    parts.append(_doubts(page))
    parts += [Part(title=title, lines=tuple(lines)) for title, lines in routing_parts(regression.routing)]
    parts += [_closed(block) for block in blocks if not _is_open(block)]
    for section in page.sections[1:]:
        if section.name == "trend":
            parts.append(Part(title=section.title, lines=tuple(trend_lines(section))))
        elif section.name != "routing":
            parts += _section_parts(section)
    return [part for part in parts if part.lines]


def _is_open(block: Block) -> bool:
    return isinstance(block, Table) and block.judged is not None and not block.folded


def _untitled(block: Block) -> tuple[str, ...]:
    """The block as lines; what folds and names a table is its part."""
    return tuple(block_lines(replace(block, title="", folded=False) if isinstance(block, Table) else block))


def _closed(block: Block) -> Part:
    return Part(title=block.title if isinstance(block, Table) else "", lines=_untitled(block))


def _section_parts(section: Section) -> list[Part]:
    """A section as one part; of tables of ratios those that a page shows open (``--all``), each a part."""
    tables = [block for block in section.blocks if isinstance(block, Table) and block.compares]
    if tables:
        return [_closed(block) for block in tables if not block.folded]
    lines = [line for block in section.blocks if not isinstance(block, Chart) for line in block_lines(block)]
    return [Part(title=section.title, lines=tuple(lines))]


def _doubts(page: Document) -> Part:
    lines = [f"- {'**' + escape(d.model) + '**: ' if d.model else ''}{escape(d.text)}" for d in page.doubts]
    return Part(title=f"Reasons to doubt this ({len(lines)})", lines=tuple(lines))


def _fitted(parts: Sequence[Part], room: int) -> list[str]:
    """As many parts as there is room for, in order; the first that does not fit is cut after a row."""
    lines: list[str] = []
    left_out: list[str] = []
    for part in parts:
        whole = _wrapped(part)
        if not left_out and _size(whole) <= room:
            lines += whole
            room -= _size(whole)
            continue
        cut = _cut(part, room) if not left_out else []
        lines += cut
        left_out.append(part.title or "what changed")
    if left_out:
        names = ", ".join(left_out[:8]) + (f" and {len(left_out) - 8} more" if len(left_out) > 8 else "")
        lines += ["", f"Cut for length: {escape(names)[: ROOM // 2]}. The HTML page has everything."]
    return lines


def _cut(part: Part, room: int) -> list[str]:
    """The part up to a row of its table; nothing where not even a few rows fit."""
    ends = [i + 1 for i, line in enumerate(part.lines) if line.startswith("|") and i > 3]
    fits = bisect_right(ends, room, key=lambda end: _size(_shortened(part, end)))
    return _shortened(part, ends[fits - 1]) if fits else []


def _shortened(part: Part, end: int) -> list[str]:
    return _wrapped(replace(part, lines=(*part.lines[:end], "", CUT)))


def _wrapped(part: Part) -> list[str]:
    if not part.title:
        return ["", *part.lines]
    title = html_text(part.title).replace("&", ENTITY)
    return ["", f"<details><summary><b>{title}</b></summary>", "", *part.lines, "", "</details>"]


def _size(lines: Sequence[str]) -> int:
    return len(_text(lines).encode())


def _text(lines: Sequence[str]) -> str:
    """Lines together, never two empty ones after each other."""
    text = "\n".join(guarded(line) for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n") + "\n"


def render_no_verdict(lines: Sequence[str], exit_code: int) -> str:
    """What stands in the comment's place when nothing could be judged, so that no older verdict stays there.

    Args:
        lines: why, as on the command line.
        exit_code: how the command ends.
    """
    said = [f"- {escape(one_line(line))}" for line in lines]
    return _text(["### NO VERDICT", "", *said, "", f"Nothing was judged; `moeprof regress` ended with {exit_code}."])


def guarded(line: str) -> str:
    """What GitHub makes of text besides Markdown: entities, mentions of people, formulas between dollars."""
    if line.startswith(MARKER):
        return line
    pieces = _CODE.split(line)
    for i in range(0, len(pieces), 2):
        pieces[i] = _MENTION.sub("@&#8203;", pieces[i].replace("&", "&amp;"))
        if line.count("$") > 1:
            pieces[i] = pieces[i].replace("$", "<span>$</span>")
    return "".join(pieces).replace(ENTITY, "&")
