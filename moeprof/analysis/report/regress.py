"""The page of ``moeprof regress``: one sentence, the gates, and everything that explains or weakens them.

Undecided gates by what would decide them; each cure is said once: ``4 timed gates need 5 launches a side``.

What stands under the gates: other figures, what differs between the runs, each launch's value.

Gates as rows of a table: what each is called, what it allows, and what it shows.

The check in one sentence that can be forwarded: the verdict in a word, the figures behind it, and how many hold.

What the page of a check calls its figures: words that people use, without what all of them share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moeprof.analysis.compare.comparable import banners
from moeprof.analysis.compare.runs import MetricComparison
from moeprof.analysis.compare.tables import Compared
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.labels import FIRST_SCREEN, figure_label, from_to, shared_traffic
from moeprof.analysis.metrics.lookup import Key
from moeprof.analysis.regress.result import GateResult, Mode, Regression
from moeprof.analysis.regress.trend import Trend
from moeprof.analysis.report.document import Block, Cell, Document, ModelColumn, Row, Section, Table
from moeprof.analysis.report.result import Check
from moeprof.analysis.report.sections.routing_change import routing_section
from moeprof.analysis.report.sections.trend import trend_section
from moeprof.analysis.report.tables import compared, facts, metric_row, section_tables
from moeprof.core import units

MOST = 3  # cures that are said, and gates that are named
NEAR = "no affordable number"
_ASIDE = re.compile(r" \([^()]*\)")
_NUMBER = re.compile(r"\d[\d,]*")


def cures(gates: Sequence[GateResult], name: Callable[[GateResult, bool], str]) -> list[str]:
    """What the undecided gates need, those with the same cure together; what is not said is counted.

    Args:
        gates: that are undecided, in order.
        name: of a gate with its figure; True: with its interval.
    """
    groups: dict[str, list[GateResult]] = {}
    for gate in gates:
        groups.setdefault(_kind(gate), []).append(gate)
    named = len(gates) <= MOST
    said = [_said(group, name, named, len(gates)) for group in list(groups.values())[:MOST]]
    more = sum(len(group) for group in list(groups.values())[MOST:])
    return [*said, f"{more} more"] if more else said


def _kind(gate: GateResult) -> str:
    """Equal for gates that one measurement would decide: numbers may differ, the largest does for all."""
    if gate.decide is None:
        return f"reason: {gate.ratio.reason}"
    return NEAR if gate.decide.startswith(NEAR) else _NUMBER.sub("#", _ASIDE.sub("", gate.decide))


def _said(group: Sequence[GateResult], name: Callable[[GateResult, bool], str], named: bool, num: int) -> str:
    if len(group) == 1 or named:
        who = _listed([name(gate, num == 1) for gate in group])
    else:
        timed = "timed " if all(gate.kind == "timed" for gate in group) else ""
        who = f"{len(group)} {timed}gates"
    one = len(group) == 1
    if group[0].decide is None:
        return f"{who}: {group[0].ratio.reason}" if group[0].ratio.reason else who
    if group[0].decide.startswith(NEAR):
        return f"{who} {'is too close to its limit' if one else 'are too close to their limits'}"
    return f"{who} {'needs' if one else 'need'} {_cure(group)}"


def _cure(group: Sequence[GateResult]) -> str:
    """The largest of the cures; what stands in brackets only where it is true of all, or holds the number itself."""
    texts = [gate.decide or "" for gate in group]
    most = max(texts, key=_size)
    bare = _ASIDE.sub("", most)
    differ = len({tuple(_ASIDE.findall(text)) for text in texts}) > 1
    return bare if differ and _NUMBER.search(bare) else most


def _size(text: str) -> int:
    found = _NUMBER.search(_ASIDE.sub("", text)) or _NUMBER.search(text)
    return int(found[0].replace(",", "")) if found else 0


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names within one check.

    Attributes:
        models: all of them; a single one needs no name.
        traffic: the one that all gates are of, which then is not said; else None.
    """

    models: tuple[str, ...]
    traffic: str | None

    def figure(self, key: Key) -> str:
        """Without the model: ``decode step``."""
        return figure_label(key, hide_traffic=self.traffic)

    def full(self, model: str, key: Key) -> str:
        """With it, where the check has several: ``moe: decode step``."""
        return self.of(model, self.figure(key))

    def of(self, model: str, label: str) -> str:
        """A label with its model, where the check has several."""
        return f"{model}: {label}" if len(self.models) > 1 else label


def names_of(regression: Regression) -> Names:
    """Of the models and gates of a check."""
    models = dict.fromkeys((*(gate.model for gate in regression.gates), *(c.model for c in regression.changes)))
    return Names(models=tuple(models), traffic=shared_traffic(gate.key for gate in regression.gates))


MOST_CHANGES = 8  # other figures that stand open; all of them stand in the tables of every figure
HEADLINES = [name for _, name, _ in FIRST_SCREEN]


def changed_figures(regression: Regression) -> tuple[Table, ...]:
    """Figures that no gate watches and that were shown to differ, those of the first screen of a report first."""
    moved = [change for change in regression.changes if change.changed and not change.is_gate]
    if not moved:
        return ()
    names = names_of(regression)
    moved.sort(key=lambda change: (change.ratio.verdict != "worse", _rank(change)))
    rows = [
        metric_row(
            names.of(change.model, figure_label(change.key)),
            change.key[0],
            (change.reference, change.other),
            (None, change.ratio),
        )
        for change in moved[:MOST_CHANGES]
    ]
    title = "Also changed, without a gate"
    title += f": {len(rows)} of {len(moved)} figures" if len(moved) > len(rows) else ""
    return (compared(title, _columns(regression), rows),)


def _rank(change: MetricComparison) -> int:
    name = change.key[0]
    return HEADLINES.index(name) if name in HEADLINES else len(HEADLINES)


def every_figure(regression: Regression, *, folded: bool) -> Section | None:
    """All figures of both runs, model by model."""
    tables: list[Table] = []
    models = names_of(regression).models
    for model in models:
        found = {
            change.key: Compared(values=(change.reference, change.other), ratios=(None, change.ratio))
            for change in regression.changes
            if change.model == model
        }
        prefix = f"{model}: " if len(models) > 1 else ""
        tables += section_tables(_columns(regression), found, prefix=prefix, folded=folded)
    return Section(name="all", title="Every figure", blocks=tuple(tables)) if tables else None


def _columns(regression: Regression) -> tuple[str, str]:
    """Names of the two sides; equal names would make one column of them."""
    if regression.reference == regression.other:
        return f"{regression.reference} (reference)", f"{regression.other} (new)"
    return regression.reference, regression.other


def differences_section(regression: Regression) -> Section:
    """Facts that are not the same in both runs, and whether that was allowed."""
    rows = []
    for difference in regression.differences:
        label = difference.name.replace("_", " ") + (f" of {difference.model}" if difference.model else "")
        text = f"{difference.first} in the reference, {difference.second} in the new run"
        if difference.forbids:
            text += (
                " (allowed)" if difference.name in regression.allow else f" (forbids {_classes(difference.forbids)})"
            )
        rows.append((label, text))
    rows = rows or [("nothing", "all facts of the runs are equal")]
    if regression.noise is not None and not noise_matters(regression):
        rows.append(("the machine", regression.noise.text))
    table = facts("Facts", rows)
    return Section(name="differences", title="What differs between the runs", blocks=(table,))


def noise_matters(regression: Regression) -> bool:
    """Whether a timed gate was tested: what the machine did stands first then, else among the facts."""
    return any(gate.kind == "timed" and gate.ratio.low is not None for gate in regression.gates)


def _classes(forbids: frozenset[str]) -> str:
    return ", ".join(sorted(forbids - {"tokens"})) + " figures"


def launches_section(regression: Regression) -> Section | None:
    """Each launch's value of every gate that has them."""
    names = names_of(regression)
    rows = [
        (names.full(gate.model, gate.key), text)
        for gate in regression.gates
        if (text := _launches(gate.reference_launches, gate.other_launches, gate.card.unit))
    ]
    return Section(name="launches", title="Value of each launch", blocks=(facts("Of gates", rows),)) if rows else None


def _launches(reference: Sequence[float], other: Sequence[float], unit: str) -> str:
    if len(reference) == len(other) == 1:
        return ""  # that is the value itself
    if not reference:
        return f"ratio of each pair: {', '.join(f'{ratio:.3f}' for ratio in other)}" if other else ""
    sides = (("reference", reference), ("new", other))
    return "; ".join(f"{side}: {', '.join(units.short(v, unit) for v in values)}" for side, values in sides)


HOLDS = "no difference shown"


GATE_COLUMNS = ("reference", "new", "change", "n", "limit")
MOST_NAMED = 3  # gates that one footnote names


def gate_tables(regression: Regression, *, all_metrics: bool = False) -> tuple[Table, ...]:
    """What changed or is undecided, then the gates that hold, closed unless ``all_metrics``."""
    names = names_of(regression)
    moved = [gate for gate in regression.gates if gate.verdict != HOLDS]
    held = [gate for gate in regression.gates if gate.verdict == HOLDS]
    tables = []
    if moved:
        differs = any(gate.verdict in ("better", "worse") for gate in moved)
        tables.append(_gates("What changed" if differs else "What is undecided", moved, names))
    if held:
        title = f"{len(held)} {'gate that holds' if len(held) == 1 else 'gates that hold'}"
        tables.append(_gates(title, held, names, folded=not all_metrics))
    return tuple(tables)


def _gates(title: str, gates: Sequence[GateResult], names: Names, *, folded: bool = False) -> Table:
    rows = tuple(gate_row(gate, names) for gate in gates)
    notes = _gate_notes(rows, gates)
    return Table(title=title, columns=GATE_COLUMNS, rows=rows, head="gate", compares=True, folded=folded, notes=notes)


def _gate_notes(rows: Sequence[Row], gates: Sequence[GateResult]) -> tuple[str, ...]:
    """Footnotes: why gates are undecided, and what would decide them; each reason once, in order."""
    notes: dict[str, list[str]] = {}
    for row, gate in zip(rows, gates, strict=True):
        if gate.verdict in ("cannot tell", "incomparable"):
            reason = gate.ratio.reason or ""
            decides = gate.decide and "needed" not in reason  # else the reason itself says what would decide
            why = "; ".join(part for part in (reason, f"{gate.decide} would decide" if decides else "") if part)
            notes.setdefault(why and f"{gate.verdict} ({why})", []).append(row.label)
    return tuple(f"{_few(labels)}: {why}" for why, labels in notes.items() if why)


def _few(labels: Sequence[str]) -> str:
    more = len(labels) - MOST_NAMED
    return ", ".join(labels[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def gate_row(gate: GateResult, names: Names) -> Row:
    """One gate; its model is named where the check has several. A lock-step ratio has no values beside it."""
    sides = (gate.reference, gate.other)
    paired = sides == (None, None)
    values = [Cell(text="") if paired else Cell(value=side) for side in sides]
    texts = [Cell(text=text) for text in (gate.n, limit_text(gate))]
    return Row(
        label=names.full(gate.model, gate.key), name=gate.label, card=gate.card, cells=(*values, _change(gate), *texts)
    )


def _change(gate: GateResult) -> Cell:
    """``1.112x [1.098 - 1.127]``, or ``+0.24`` where the gate looks at the difference; empty where none is known.

    Three decimals: a gate of 1.5 % is no place for 1.1.
    """
    ratio = gate.ratio
    if is_difference(gate):
        known = [side.value for side in (gate.reference, gate.other) if side is not None and side.value is not None]
        if len(known) < 2:
            return Cell(ratio=ratio, text="")
        difference = known[1] - known[0]
        return Cell(ratio=ratio, text=("+" if difference > 0 else "") + units.difference(difference, gate.card.unit))
    between = "" if ratio.low is None or ratio.high is None else f"[{_times(ratio.low)} \u2013 {_times(ratio.high)}]"
    return Cell(ratio=ratio, text="" if ratio.value is None else f"{_times(ratio.value)}x", interval=between)


def _times(value: float) -> str:
    return f"{value:.3f}" if 0.1 <= value < 100 else units.significant(value)


def is_difference(gate: GateResult) -> bool:
    """Whether the gate looks at a difference or at a bound, or has no ratio to show though it has both values."""
    known = all(side is not None and side.value is not None for side in (gate.reference, gate.other))
    return gate.gate.kind != "ratio" or (known and gate.ratio.value is None)


def limit_text(gate: GateResult) -> str:
    """What is allowed: ``+3 %``, ``-1 %``, ``+0.2``, ``no rise``, ``at most 50 ms``."""
    kind, amount = gate.gate.kind, gate.gate.amount
    if kind in ("at_most", "at_least"):
        return f"{kind.replace('_', ' ')} {units.short(amount, gate.card.unit)}"
    sign = gate.gate.sign or {"lower": "+", "higher": "-", "neither": "+-"}[gate.better]
    if amount == 0:
        return {"+": "no rise", "-": "no fall", "+-": "no change"}[sign]
    text = units.percent(amount) if kind == "ratio" else units.difference(amount, card_for(gate.gate.metric).unit)
    shown = "\u00b1" if sign == "+-" else sign
    return f"{shown}{text}"


COUNTED = (  # verdict -> what is said of one gate, and of several
    ("worse", "is worse", "are worse"),
    ("cannot tell", "is undecided", "are undecided"),
    ("incomparable", "is incomparable", "are incomparable"),
    ("better", "is better", "are better"),
    ("no difference shown", "shows no difference", "show no difference"),
)


def headline(regression: Regression) -> str:
    """The sentence: ``WORSE: decode step 1.112x [1.098, 1.127] (6 pairs); 7 gates show no difference``."""
    if not regression.gates:
        return "Nothing was judged: no gate applies to these runs."
    if regression.verdict == "no difference shown":
        return _holds(regression)
    own, names = regression.with_verdict(regression.verdict), names_of(regression)
    if regression.verdict == "cannot tell":
        said = cures(own, lambda gate, whole: _open(gate, names, whole))
    else:
        said = _all_said(own[:MOST], names) + ([f"{len(own) - MOST} more"] if len(own) > MOST else [])
    rest = _counts([gate for gate in regression.gates if gate.verdict != regression.verdict])
    allowed = ", which is allowed" if regression.verdict == "cannot tell" and regression.allow_undecided else ""
    return f"{regression.verdict.upper()}{allowed}: {'; '.join((*said, *rest))}."


def _holds(regression: Regression) -> str:
    """Says how much was looked at: the widest of the timed gates shows what could have been seen."""
    held = regression.with_verdict("no difference shown")
    timed = [gate for gate in held if gate.kind == "timed" and gate.ratio.low and gate.ratio.high]
    text = f"No regression: {len(held)} {'gate holds' if len(held) == 1 else 'gates hold'}"
    if timed:
        widest = max(timed, key=lambda gate: (gate.ratio.high or 1.0) / (gate.ratio.low or 1.0))
        which = "" if len(timed) == 1 else f"; the widest of {len(timed)} timed ones is"
        text += f"{which or ';'} {_all_said([widest], names_of(regression))[0]}"
    else:
        text += "; none of them is timed" if all(gate.kind != "timed" for gate in held) else ""
    rest = _counts([gate for gate in regression.gates if gate.verdict != "no difference shown"])
    return f"{'; '.join((text, *rest))}."


def _counts(gates: Sequence[GateResult]) -> list[str]:
    """``2 gates are undecided, 1 is better, 4 show no difference``; nothing where no gate is left."""
    found: list[str] = []
    for verdict, one, several in COUNTED:
        num = sum(gate.verdict == verdict for gate in gates)
        if num:
            noun = "" if found else " gate" if num == 1 else " gates"
            found.append(f"{num}{noun} {one if num == 1 else several}")
    return [", ".join(found)] if found else []


def _all_said(gates: Sequence[GateResult], names: Names) -> list[str]:
    """Each gate with its figure; the model is named where it is another one than before."""
    said, before = [], names.models[0] if len(names.models) == 1 else None
    for gate in gates:
        text = _headline_text(gate, names)
        said.append(text if gate.model == before else f"{gate.model}: {text}")
        before = gate.model
    return said


def _headline_text(gate: GateResult, names: Names) -> str:
    """One gate with its figure: ``decode step 1.112x [1.098, 1.127] (6 pairs)``."""
    told = _figure(gate)
    text = " ".join(part for part in (names.figure(gate.key), told) if part)
    return f"{text} ({gate.n})" if told and gate.n not in ("exact", "not measured", "") else text


def _open(gate: GateResult, names: Names, whole: bool) -> str:
    """One undecided gate: ``moe: decode step 1.012x``; its interval only where it is the only one."""
    told = _figure(gate) if whole else _figure(gate).partition(" [")[0]
    return " ".join(part for part in (names.full(gate.model, gate.key), told) if part)


def _figure(gate: GateResult) -> str:
    ratio = gate.ratio
    if is_difference(gate):
        known = [side.value for side in (gate.reference, gate.other) if side is not None and side.value is not None]
        text = from_to([units.short(value, gate.card.unit) for value in known])
        return f"{text} ({limit_text(gate)})" if gate.gate.kind in ("at_most", "at_least") and text else text
    if ratio.value is None:
        return ""
    between = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.value:.3f}x{between}"


MODES: dict[Mode, str] = {
    "stored": "against a stored baseline",
    "pairs": "lock-step pairs in one process",
    "processes": "lock-step pairs in two processes",
}


def check_of(regression: Regression, *, trend: Trend | None = None, all_metrics: bool = False) -> Check:
    """The check with its page; the arguments are those of :func:`regress_document`."""
    page = regress_document(regression, trend=trend, all_metrics=all_metrics)
    return Check(regression=regression, document=page)


def regress_document(regression: Regression, *, trend: Trend | None = None, all_metrics: bool = False) -> Document:
    """The page: what changed stands open, what holds and every other figure stand closed.

    Args:
        regression: the check.
        trend: of the figures over earlier baselines, for the page with charts.
        all_metrics: open what would be closed.
    """
    first: tuple[Block, ...] = (*gate_tables(regression, all_metrics=all_metrics), *changed_figures(regression))
    sections = [
        Section(name="verdicts", title=_first_title(first), blocks=first),
        routing_section(regression.routing),
        None if trend is None else trend_section(trend, judged=(regression.other, regression.other_at)),
        launches_section(regression),
        differences_section(regression),
        every_figure(regression, folded=not all_metrics),
    ]
    kept = tuple(section for section in sections if section is not None and section.blocks)
    return Document(
        title=f"{regression.workload}: {regression.other} against {regression.reference}",
        run=regression.other,
        status="done",
        started_at=regression.other_at,
        headline=headline(regression),
        subtitle=_subtitle(regression),
        banners=banners(regression.differences, regression.allow),
        models=tuple(ModelColumn(name=name, status="done", subtitle="") for name in names_of(regression).models),
        first_screen=(),
        sections=kept,
        doubts=regression.doubts,
        notes=_notes(regression),
    )


def _first_title(blocks: Sequence[Block]) -> str:
    """The open table's own, so that it is said once."""
    first = blocks[0] if blocks else None
    return first.title if isinstance(first, Table) and first.head == "gate" and not first.folded else "Gates"


def _subtitle(regression: Regression) -> str:
    """Which runs, where, and how they were set against each other."""
    when = " ".join(regression.reference_at[:16].split("T"))
    of = f"{regression.other} against {regression.reference}" + (f" of {when}" if when else "")
    launches = sorted(set(regression.launches.values()) - {0})
    one, several = ("launch", "launches") if regression.mode == "stored" else ("launch pair", "launch pairs")
    counted = f", {' or '.join(map(str, launches))} {one if launches == [1] else several}" if launches else ""
    return f"{of}. {regression.workload} on {regression.device}; {MODES[regression.mode]}{counted}."


def _notes(regression: Regression) -> tuple[str, ...]:
    """What routing did, where it changed, then what the check says of itself."""
    moved = [change for change in regression.routing if change.verdict in ("changed", "collapsed") and change.sentences]
    several = len(regression.routing) > 1
    routing = [f"{change.model}: {change.sentences[0]}" if several else change.sentences[0] for change in moved]
    noise = (regression.noise.text,) if regression.noise is not None and noise_matters(regression) else ()
    return (*routing, *regression.notes, *noise)
