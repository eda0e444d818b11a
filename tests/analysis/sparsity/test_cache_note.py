"""A twin that fits the last-level cache while the MoE does not: said wherever a realised share is told by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.report.compare import Comparison, models_page
from moeprof.analysis.report.document import Paragraph
from moeprof.analysis.sparsity.ladder import ladder_cache_note
from moeprof.analysis.sparsity.roles import cache_note, roles
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import Record, open_record
from tests.helpers.records import make_facts

Published = tuple[Record, Summary, Comparison]
PUBLISHED = Path(__file__).resolve().parents[3] / "reports" / "published" / "dense-vs-sparse-cpu"
PRICING = Pricing(usd_per_device_hour=0.1)
MOE = make_facts()  # 2.16 MB of weights
NARROW = make_facts(num_experts=0)  # 2 MB: the same without experts
HELD = {name: sum(facts.bytes_by_group.values()) for name, facts in (("moe", MOE), ("narrow", NARROW))}


def test_it_is_said_where_the_cache_lies_between_the_twin_and_the_moe() -> None:
    between = (HELD["moe"] + HELD["narrow"]) // 2
    note = cache_note(between, "moe", MOE, {"narrow": NARROW, "wide": MOE})
    assert note is not None
    assert note.startswith("narrow (") and " fits the last-level cache (" in note and "wide" not in note
    assert note.endswith("does not, so a part of what is missing may be the cache's and not sparsity's")


def test_nothing_is_said_where_both_fit_or_neither_does_or_the_cache_is_not_known() -> None:
    for cache in (2 * HELD["moe"], HELD["narrow"] // 2, None):
        assert cache_note(cache, "moe", MOE, {"narrow": NARROW}) is None


@pytest.fixture(scope="module")
def published() -> Published:
    """The published run, its figures and the page that compares its models."""
    record = open_record(PUBLISHED)
    summary = summarise(record, PRICING)
    return record, summary, models_page(summary, None)


def test_the_published_comparison_says_it_in_the_headline_the_ladder_and_each_figure(
    published: Published,
) -> None:
    """dense-1x holds 88 MiB, the cache 480 and the MoE 809."""
    record, summary, page = published
    note, of_ladder = roles(summary).cache_note, ladder_cache_note(record)
    assert note is not None and "dense-1x (88 MiB) fits the last-level cache (480 MiB) and moe (809 MiB) does" in note
    assert of_ladder is not None and of_ladder.startswith("moe-active (88 MiB) fits")
    assert page.document.headline.endswith(f"{note}.")
    told = [value for _, value in page.metrics if value.name == "sparsity_realised_ratio"]
    assert {value.reasons for value in told} == {(note,), (of_ladder,)}
    section = next(section for section in page.document.sections if section.name == "ladder")
    texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    said = [text for text in texts if "of the saving between the two dense twins" in text]
    assert len(said) == 2 and all(text.endswith(f"is realised; {of_ladder}.") for text in said)


def test_no_two_realised_shares_of_a_run_have_the_same_labels(published: Published) -> None:
    """87.9 % in turn and 83.4 % alone, both with 8 in flight, are told apart by what they say of themselves."""
    page = published[2]
    told = [value for _, value in page.metrics if value.name == "sparsity_realised_ratio"]
    labels = [tuple(sorted(value.labels.items())) for value in told]
    assert len(labels) == len(set(labels)) == 6
    assert all({"phase", "concurrency", "measured"} <= set(value.labels) for value in told)
