from __future__ import annotations

import re
from pathlib import Path

import pytest

from moeprof.analysis.metrics.cards import all_cards
from moeprof.core.metric import Card
from tests.helpers.tiny_run import run_main

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
HEADINGS = {re.sub(r"[^a-z0-9]+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}
METRICS = re.findall(r'<a id="([^"]+)"></a>', TEXT)


@pytest.mark.parametrize("card", all_cards(), ids=lambda card: card.name)
def test_a_card_leads_to_its_place_in_the_document(card: Card) -> None:
    anchor = card.reference.partition("#")[2]
    assert METRICS.count(anchor) == 1 and anchor not in HEADINGS
    assert "METRICS" not in card.source and "DESIGN" not in card.source
    for anchor in re.findall(r"docs/metrics\.md#([\w-]+)", card.source):
        assert anchor in HEADINGS, card.source


def test_what_the_package_cites_of_the_document_is_there() -> None:
    cited = {
        anchor
        for file in (ROOT / "moeprof").rglob("*.py")
        for anchor in re.findall(r"docs/metrics\.md#([\w-]+)", file.read_text(encoding="utf-8"))
    }
    assert cited <= HEADINGS


def test_explain_ends_with_the_place_in_the_document() -> None:
    assert run_main(["explain", "ttft_p99_s"]).stdout.splitlines()[-1].split() == ["see", "docs/metrics.md#ttft_s"]
