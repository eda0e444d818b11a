"""Options that several commands share: what to print and write, and at what prices."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moeprof.render import printed, written

if TYPE_CHECKING:
    from moeprof.analysis.report.result import Kind


def print_option(kind: Kind, help_text: str = "What to print") -> Any:
    """``--format`` of a command whose results are of this kind."""

    def check(value: str) -> str:
        allowed = printed(kind)
        if value not in allowed:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(map(repr, allowed))}.")
        return value

    return typer.Option(help=f"{help_text}: {', '.join(printed(kind))}.", metavar="FORMAT", callback=check)


def write_option(kind: Kind) -> Any:
    """``--write`` of a command whose results are of this kind."""
    return typer.Option(help=f"Files to write: {','.join(written(kind))}.")


def _price(help_text: str) -> Any:
    """An option in USD: more than 0, so that nothing is priced at nothing by mistake."""

    def check(value: float | None) -> float | None:
        if value is not None and not 0 < value < math.inf:
            raise typer.BadParameter(f"found {value:g}; more than 0 is allowed.")
        return value

    return typer.Option(help=help_text, callback=check)


def _check_pue(value: float | None) -> float | None:
    if value is not None and not 1 <= value < math.inf:
        raise typer.BadParameter(f"found {value:g}; 1 or more is allowed.")
    return value


PriceOption = Annotated[float | None, _price("Price of one device for an hour.")]
RentOption = Annotated[float | None, _price("Price it again at this rent.")]
NewRentOption = Annotated[float | None, _price("Price runs at this rent; a saved baseline keeps its own.")]
PowerPriceOption = Annotated[float | None, _price("Power price, when the rent excludes power.")]
PueOption = Annotated[float | None, typer.Option(help="Power usage effectiveness.", callback=_check_pue)]
ApiOption = Annotated[
    str | None,
    typer.Option(
        help="An API's USD per 1M tokens to break even with: input/output or input/output/cached input.",
        metavar="IN/OUT[/CACHED]",
    ),
]
ListFormat = Annotated[str, print_option("list", "How to print it")]
