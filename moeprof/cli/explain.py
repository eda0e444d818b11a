"""``moeprof explain``: what a metric means, its formula and where the definition comes from."""

from __future__ import annotations

import difflib
import json
from typing import Annotated, Literal

import typer

from moeprof.core.errors import InputError


def explain(
    metric: Annotated[
        str | None, typer.Argument(help="Metric name; all are listed without one.", show_default=False)
    ] = None,
    format: Annotated[Literal["table", "json", "csv", "md"], typer.Option(help="How to print it.")] = "table",
) -> None:
    """Explain a metric: definition, formula, unit, direction, source. Without a name, list all of them."""
    from moeprof.analysis.metrics.cards import all_cards, card_for
    from moeprof.cli.output import print_records

    if metric is None:
        rows = [
            {"name": c.name, "unit": c.unit, "better": c.better, "title": c.title, "section": c.section}
            for c in all_cards()
        ]
        print_records(rows, format)
        return
    try:
        card = card_for(metric)
    except KeyError:
        names = [c.name for c in all_cards()] + [c.name.replace("*", "p50") for c in all_cards() if "*" in c.name]
        close = difflib.get_close_matches(metric, names, n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise InputError(f"no metric is called {metric!r}{hint} `moeprof explain` lists all") from None
    fields = ("name", "title", "unit", "better", "formula", "source", "section")
    if format == "table":
        typer.echo(f"{metric}\n" + "\n".join(f"  {name:8} {getattr(card, name)}" for name in fields[1:]))
    elif format == "json":
        typer.echo(json.dumps({name: getattr(card, name) for name in fields}, indent=1, ensure_ascii=False))
    else:
        print_records([{name: getattr(card, name) for name in fields}], format)
