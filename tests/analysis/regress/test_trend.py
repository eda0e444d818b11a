"""Figures over baselines: steps with what changed beside them, counted figures exactly, and the charts."""

from __future__ import annotations

import random
from dataclasses import replace

from moeprof.analysis.compare.comparable import NOTHING, Difference
from moeprof.analysis.regress.trend import event_texts, trend, wanted_figures
from moeprof.analysis.report.document import Chart, Table
from moeprof.analysis.report.sections.trend import trend_section
from tests.helpers.documents import facts_in
from tests.helpers.planted_regression import planted
from tests.helpers.planted_sides import model, priced, side
from tests.helpers.planted_trend import DECODE, MODEL, PREFILL, STEP_AT, WANTED, WEIGHTS_AT, baselines


def test_a_step_is_found_and_the_driver_that_came_with_it_is_named() -> None:
    decode, prefill, weights = trend(baselines(), WANTED).series
    (change,) = decode.changes
    assert decode.points[change.index].number == STEP_AT
    assert decode.sentence.startswith("worse: 24 \u2192 26.2 ms (1.095x) since b13")
    assert decode.sentence.endswith("meanwhile driver 550.54 \u2192 560.35.")
    assert prefill.sentence == "no change of level in 20 points."
    assert [weights.points[change.index].number for change in weights.changes] == [WEIGHTS_AT]
    assert weights.is_counted and not decode.is_counted


def test_a_price_whose_split_changed_with_it_says_so() -> None:
    some = [
        side(model(*priced(1.0 if i < 10 else 2.0, "calibration" if i < 10 else "roofline")), run=f"b{i:02d}")
        for i in range(20)
    ]
    key = ("usd_per_1m_output_tokens", (("traffic", "offline"),))
    (price,) = trend(some, [("moe", key)]).series
    assert price.sentence.startswith("worse: $1 \u2192 $2 (2.000x) since b10")
    assert price.sentence.endswith("meanwhile mixed steps split by calibration \u2192 roofline.")


def test_baselines_stand_in_the_order_of_their_times() -> None:
    shuffled = random.Random(1).sample(baselines(), 20)
    assert trend(shuffled, WANTED) == trend(baselines(), WANTED)


def test_only_the_last_are_shown_and_the_rest_counted() -> None:
    found = trend(baselines(), WANTED, last=6)
    assert [name for name, _ in found.baselines] == ["b15", "b16", "b17", "b18", "b19", "b20"]
    assert found.left_out == 14 and found.events == ()


def test_facts_that_changed_are_events_at_the_first_baseline_with_them() -> None:
    events = trend(baselines(), WANTED).events
    assert [(e.number, e.text) for e in events] == [
        (4, "price 3.24 USD/h \u2192 3.6 USD/h"),
        (13, "driver 550.54 \u2192 560.35"),
    ]


def test_of_versions_only_those_that_changed_are_said() -> None:
    second = "torch 2.13.0, python 3.11, driver 560"
    both = Difference(name="versions", first="torch 2.12.0, python 3.11", second=second, forbids=NOTHING)
    assert event_texts(both) == ["torch 2.12.0 \u2192 2.13.0", "driver none \u2192 560"]


def test_points_have_the_interval_of_their_launches() -> None:
    (decode, *_) = trend(baselines(), WANTED).series
    point = decode.points[0]
    assert point.low is not None and point.high is not None and point.low < point.value < point.high


def test_a_baseline_without_the_figure_leaves_a_gap() -> None:
    some = baselines(8)
    some[2] = replace(some[2], models=())
    (decode,) = trend(some, [(MODEL, DECODE)]).series
    assert [point.number for point in decode.points] == [1, 2, 4, 5, 6, 7, 8]


def test_too_few_baselines_say_how_many_are_needed() -> None:
    (prefill,) = trend(baselines(3), [(MODEL, PREFILL)]).series
    assert prefill.sentence.startswith("3 points, 5 are the fewest")


def test_the_error_of_a_page_is_shared_by_its_noisy_figures() -> None:
    many = [(MODEL, DECODE)] * 1 + [(MODEL, PREFILL)]
    assert trend(baselines(), many).alpha == 0.02
    assert trend([], WANTED).series == () and trend([], WANTED).baselines == ()


def test_the_section_draws_each_figure_with_upright_lines() -> None:
    section = trend_section(trend(baselines(), WANTED))
    assert section is not None and section.title == "Trend over the last 20 baselines"
    charts = [block for block in section.blocks if isinstance(block, Chart)]
    assert [chart.title for chart in charts] == ["decode step", "prefill step", "weights"]
    line, *upright = charts[0].series
    assert len(line.band) == 20 and line.labels[12] == "b13"
    assert [one.style for one in upright] == ["dashed"] * 3 and upright[0].name == "step of 1.095x, at 13"
    assert len({one.x for one in upright}) == 3, "lines do not cover each other"
    tables = {block.title: tuple(facts_in(block).items()) for block in section.blocks if isinstance(block, Table)}
    assert tables["Baselines"][0] == ("1", "b01 2026-11-01 03:15")


def test_counted_figures_that_never_change_are_only_counted() -> None:
    section = trend_section(trend(baselines(8), WANTED))  # the weights change at the ninth
    assert section is not None
    tables = {block.title: tuple(facts_in(block).items()) for block in section.blocks if isinstance(block, Table)}
    assert tables["Changes of level"][-1] == ("1 other counted figure", "the same throughout.")
    assert sum(isinstance(block, Chart) for block in section.blocks) == 2


def test_fewer_than_three_points_are_no_trend() -> None:
    assert trend_section(trend(baselines(1), WANTED)) is None
    assert trend_section(trend(baselines(2), WANTED)) is None
    assert trend_section(trend(baselines(3), WANTED)) is not None


def test_the_judged_run_is_not_counted_among_the_baselines() -> None:
    found = trend(baselines(4), WANTED)
    section = trend_section(found, judged=found.baselines[-1])
    assert section is not None and section.title == "Trend over the last 3 baselines and this run"
    (rows,) = (tuple(facts_in(b).items()) for b in section.blocks if isinstance(b, Table) and b.title == "Baselines")
    assert rows[-1] == ("4", "b04 2026-11-04 03:15, this run")


def test_the_gates_of_a_check_are_what_its_trend_shows() -> None:
    assert wanted_figures(planted())[1] == (MODEL, DECODE)
