"""``moeprof explain``: what a metric means, its formula, where the definition comes from and where to read on."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from moeprof.cli.options import ListFormat
from moeprof.core.errors import InputError
from moeprof.render import TABLE


def explain(
    metric: Annotated[
        str | None, typer.Argument(help="Metric name; all are listed without one.", show_default=False)
    ] = None,
    format: ListFormat = TABLE,
) -> None:
    """Explain a metric: definition, formula, unit, direction, source. Without a name, list all of them."""
    from moeprof.analysis.metrics.cards import all_cards, card_for
    from moeprof.analysis.report.result import Listing
    from moeprof.cli.output import print_result

    if metric is None:
        rows = [
            {"name": c.name, "unit": c.unit, "better": c.better, "title": c.title, "section": c.section}
            for c in all_cards()
        ]
        shown = [{"name": row["name"], "unit": row["unit"], "title": row["title"]} for row in rows]
        print_result(Listing(rows=rows, shown=shown), format)
        return
    try:
        card = card_for(metric)
    except KeyError:
        family = [c for c in all_cards() if c.name.startswith(f"{metric}_")]
        if family:
            rows = [{"name": c.name, "unit": c.unit, "title": c.title, "formula": c.formula} for c in family]
            print_result(Listing(rows=rows), format)
            return
        names = [c.name for c in all_cards()] + [c.name.replace("*", "p50") for c in all_cards() if "*" in c.name]
        close = difflib.get_close_matches(metric, names, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise InputError(f"no metric is called {metric!r}{hint} `moeprof explain` lists all") from None
    row = {name: getattr(card, name) for name in ("name", "title", "unit", "better", "formula", "source", "section")}
    row |= {"kind": card.kind_text, "see": card.reference}
    if format == TABLE:
        lines = (f"  {name:8} {text}" for name, text in row.items() if name != "name")
        typer.echo("\n".join((metric, *lines)))
    else:
        print_result(Listing(rows=[row], whole=row), format)
