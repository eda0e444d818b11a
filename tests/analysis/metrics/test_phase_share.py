"""A figure of one phase says which share of it its steps speak for wherever it is shown; below a fifth it leads not."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.latency import latency_metrics
from moeprof.analysis.metrics.launches import over_launches
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.report.data import summary_json, summary_rows
from moeprof.analysis.report.result import RunReport
from moeprof.analysis.report.run import build_document
from moeprof.core.metric import MetricValue
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from moeprof.render.html.page import render_html
from moeprof.render.markdown import render_markdown
from moeprof.render.terminal import print_document
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, write_record

SAID = "speaks for 10 % of the decode tokens: 6 of 60 steps hold nothing else"


def traffic(num_pure: int) -> PassTables:
    """60 steps with 4 decode tokens each: ``num_pure`` of 10 ms hold nothing else, the others of 20 ms 32 prompt
    tokens too."""
    mixed = np.arange(60) >= num_pure
    steps = make_steps(
        60,
        phase=np.where(mixed, "mixed", "decode"),
        prefill_tokens=np.where(mixed, 32, 0),
        decode_tokens=np.full(60, 4),
        step_s=np.where(mixed, 0.02, 0.01),
    )
    return make_pass(traffic="offline", requests=make_requests(12), steps=steps)


def decode_step(values: list[MetricValue], window: str = "total") -> MetricValue:
    (found,) = [v for v in values if v.name == "step_mean_s" and v.labels.get("phase") == "decode"
                and v.labels["window"] == window and "launch" not in v.labels]  # fmt: skip
    return found


@pytest.mark.parametrize(("num_pure", "share", "leads"), [(6, 0.1, False), (12, 0.2, True), (30, 0.5, True)])
def test_a_step_time_of_one_phase_carries_its_share_and_leads_with_a_fifth_or_more(
    num_pure: int, share: float, leads: bool
) -> None:
    found = decode_step(latency_metrics([traffic(num_pure)], None))
    assert (found.value, found.share) == (pytest.approx(0.01), pytest.approx(share))
    assert found.reasons[0].endswith(f"{num_pure} of 60 steps hold nothing else")
    assert (found.as_headline is found) is leads
    if not leads:
        assert found.as_headline.value is None
        assert found.as_headline.reasons == (f"{SAID}: too few to speak for it",)


def test_a_phase_whose_steps_are_all_pure_and_all_phases_together_say_nothing() -> None:
    values = latency_metrics([traffic(60)], None)
    assert decode_step(values).share is None and "speaks for" not in " ".join(decode_step(values).reasons)
    everything = [v for v in latency_metrics([traffic(6)], None) if v.labels.get("phase") in (None, "all", "mixed")]
    assert everything and all(value.share is None for value in everything)


def test_several_launches_speak_for_the_smallest_share_of_one() -> None:
    together = decode_step(over_launches([latency_metrics([traffic(n)], None) for n in (30, 6, 12)]))
    assert together.share == pytest.approx(0.1) and together.reasons[0] == SAID


def test_the_share_is_of_the_window_that_the_figure_is_of() -> None:
    """Six pure steps of 60 in all; of the last 50 steps none is pure."""
    from moeprof.analysis.metrics.phase_share import phase_share

    tables = traffic(6)
    ends = tables.steps["end_s"].to_numpy(dtype=float)
    early = phase_share("decode", [(tables, (0.0, float(ends[11])))])
    assert early is not None and early.ratio == pytest.approx(0.5)
    late = phase_share("decode", [(tables, (float(ends[9]), float(ends[-1])))])
    assert late is not None and late.ratio == 0
    assert phase_share("all", [(tables, None)]) is None


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    record = write_record(tmp_path, {"dense": (make_facts(num_experts=0, name="dense"), [[traffic(6)]])})
    return summarise(open_record(record), Pricing(usd_per_device_hour=3.6))


def test_every_page_says_it(summary: Summary) -> None:
    document = build_document(summary)
    report = RunReport(summary=summary, document=document)
    out = io.StringIO()
    print_document(document, Console(file=out, width=200, highlight=False), folded=True)
    rows = "\n".join(";".join(map(str, row)) for row in summary_rows(report))
    for page in (render_markdown(document), render_html(document), out.getvalue(), rows):
        assert SAID[1:] in " ".join(page.split())
    entries = [m for m in summary_json(report)["models"]["dense"]["metrics"] if m["name"] == "step_mean_s"
               and m["labels"].get("phase") == "decode" and m["labels"]["window"] == "total"]  # fmt: skip
    assert entries[0]["share"] == pytest.approx(0.1) and SAID in entries[0]["reasons"]
    json.dumps(entries)


def test_no_first_screen_shows_a_figure_of_a_tenth_of_its_phase(summary: Summary) -> None:
    shown = [v for row in build_document(summary).first_screen for v in row.values if v is not None]
    assert all(v.value is None or v.share is None or v.share >= 0.2 for v in shown)
    touched = [v for v in shown if v.name == "touched_params_per_step"]
    assert [v.value for v in touched] == [None] and touched[0].reasons == (f"{SAID}: too few to speak for it",)


def test_json_of_a_value_without_a_share_is_as_it_was() -> None:
    value = MetricValue(name="step_mean_s", value=1.0)
    card = card_for("step_mean_s")
    assert "share" not in value.to_json(card)
    assert replace(value, share=0.1).to_json(card)["share"] == 0.1
