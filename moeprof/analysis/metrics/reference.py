"""The tables of docs/metrics.md, made from the cards: ``python -m moeprof.analysis.metrics.reference`` (``make docs``).

What stands between ``<!-- cards: SECTION -->`` or ``<!-- gates -->`` and ``<!-- end -->`` is made; the rest of the file
is written by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from moeprof.analysis.metrics.cards import SECTION_TITLES, all_cards
from moeprof.core.metric import Card

FILE = Path("docs/metrics.md")
_MADE = re.compile(r"<!-- (cards: (?P<section>\w+)|gates) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The text of the file with its tables made anew; every section has one."""
    found = [match["section"] for match in _MADE.finditer(text)]
    assert set(found) == {*SECTION_TITLES, None}, f"{FILE} has tables of {found}"
    return _MADE.sub(lambda match: _between(match[1], _table(match["section"])), text)


def _between(what: str, rows: list[str]) -> str:
    return "\n".join((f"<!-- {what} -->", "", *rows, "", "<!-- end -->"))


def _table(section: str | None) -> list[str]:
    if section is None:
        gates = sorted(((place, card) for card in all_cards() for place in card.gates), key=lambda one: one[0].rank)
        cells = [(f"`{card.gate(place)}`", card.title, card.kind) for place, card in gates]
        return _rows(("gate", "figure", "group"), cells)
    return _rows(
        ("metric", "unit", "better", "kind", "formula", "source"),
        [_cells(card) for card in all_cards() if card.section == section],
    )


def _cells(card: Card) -> tuple[str, ...]:
    anchor = card.reference.partition("#")[2]
    return (
        f'<a id="{anchor}"></a>`{card.name}`<br>{card.title}',
        card.unit,
        card.better,
        card.kind_text,
        card.formula,
        re.sub(rf"{FILE}#([\w-]+)", r"[\1](#\1)", card.source),
    )


def _rows(head: tuple[str, ...], cells: list[tuple[str, ...]]) -> list[str]:
    return [_row(head), "|" + "---|" * len(head), *map(_row, cells)]


def _row(cells: tuple[str, ...]) -> str:
    escaped = (cell if cell.startswith(("`", "<a")) else cell.replace("|", r"\|").replace("*", r"\*") for cell in cells)
    return f"| {' | '.join(escaped)} |"


if __name__ == "__main__":
    FILE.write_text(with_tables(FILE.read_text(encoding="utf-8")), encoding="utf-8")
