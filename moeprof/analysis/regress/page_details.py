"""What stands under the gates: other figures, what differs between the runs, each launch's value."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.compare.tables import Compared, section_tables
from moeprof.analysis.document import Block, FactTable, RatioRow, RatioTable, Section
from moeprof.analysis.regress.page_names import figure_label, names_of
from moeprof.analysis.regress.result import Change, Regression
from moeprof.analysis.report import FIRST_SCREEN
from moeprof.core import units

MOST_CHANGES = 8  # other figures that stand open; all of them stand in the tables of every figure
HEADLINES = [name for _, name, _ in FIRST_SCREEN]


def changed_figures(regression: Regression) -> tuple[Block, ...]:
    """Figures that no gate watches and that were shown to differ, those of the first screen of a report first."""
    moved = [change for change in regression.changes if change.changed and not change.is_gate]
    if not moved:
        return ()
    names = names_of(regression)
    moved.sort(key=lambda change: (change.ratio.verdict != "worse", _rank(change)))
    rows = [
        RatioRow(
            label=names.of(change.model, figure_label(change.key)),
            card=change.card,
            name=change.key[0],
            values=(change.reference, change.other),
            ratios=(None, change.ratio),
        )
        for change in moved[:MOST_CHANGES]
    ]
    title = "Also changed, without a gate"
    title += f": {len(rows)} of {len(moved)} figures" if len(moved) > len(rows) else ""
    return (RatioTable(title=title, columns=_columns(regression), rows=tuple(rows)),)


def _rank(change: Change) -> int:
    name = change.key[0]
    return HEADLINES.index(name) if name in HEADLINES else len(HEADLINES)


def every_figure(regression: Regression, *, folded: bool) -> Section | None:
    """All figures of both runs, model by model."""
    tables: list[Block] = []
    models = names_of(regression).models
    for model in models:
        compared = {
            change.key: Compared(values=(change.reference, change.other), ratios=(None, change.ratio))
            for change in regression.changes
            if change.model == model
        }
        prefix = f"{model}: " if len(models) > 1 else ""
        for table in section_tables(_columns(regression), compared, prefix=prefix):
            tables.append(
                RatioTable(title=table.title, columns=table.columns, rows=table.rows, folded=folded and table.folded)
            )
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
    table = FactTable(title="Facts", rows=tuple(rows))
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
    table = FactTable(title="Of gates", rows=tuple(rows))
    return Section(name="launches", title="Value of each launch", blocks=(table,)) if rows else None


def _launches(reference: Sequence[float], other: Sequence[float], unit: str) -> str:
    if len(reference) == len(other) == 1:
        return ""  # that is the value itself
    if not reference:
        return f"ratio of each pair: {', '.join(f'{ratio:.3f}' for ratio in other)}" if other else ""
    sides = (("reference", reference), ("new", other))
    return "; ".join(f"{side}: {', '.join(units.short(v, unit) for v in values)}" for side, values in sides)
