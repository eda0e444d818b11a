from __future__ import annotations

import re
from pathlib import Path

import pytest

from moeprof.analysis.metrics.cards import all_cards
from moeprof.analysis.metrics.reference import FILE, with_tables
from moeprof.core.metric import Card
from tests.helpers.tiny_run import run_main

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / FILE).read_text(encoding="utf-8")
HEADINGS = {re.sub(r"[^a-z0-9]+", "-", title.lower()) for title in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)}
METRICS = re.findall(r'<a id="([^"]+)"></a>', TEXT)


def test_the_document_is_what_the_cards_say() -> None:
    assert with_tables(TEXT) == TEXT, "make docs"


def test_a_changed_card_changes_the_document() -> None:
    assert with_tables(TEXT.replace("first output token - arrival", "last output token - arrival")) == TEXT


@pytest.mark.parametrize("card", all_cards(), ids=lambda card: card.name)
def test_a_card_leads_to_its_place_in_the_document(card: Card) -> None:
    assert METRICS.count(card.reference.partition("#")[2]) == 1
    assert "METRICS" not in card.source and "DESIGN" not in card.source
    for anchor in re.findall(r"docs/metrics\.md#([\w-]+)", card.source):
        assert anchor in HEADINGS, card.source


def test_links_within_the_document_lead_somewhere() -> None:
    assert not HEADINGS & set(METRICS)
    assert {link for link in re.findall(r"\]\(#([\w-]+)\)", TEXT)} <= HEADINGS | set(METRICS)


def test_explain_ends_with_the_place_in_the_document() -> None:
    assert run_main(["explain", "ttft_p99_s"]).stdout.splitlines()[-1].split() == ["see", "docs/metrics.md#ttft_s"]
