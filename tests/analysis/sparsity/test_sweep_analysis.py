"""Figures of a sweep: dollars, speeds, experts, the price at the SLO, the Pareto front, and the page they stand on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.summary import Summary
from moeprof.analysis.metrics.sweep.points import over_rounds
from moeprof.analysis.metrics.sweep.slo import usd_per_1m_tokens_at_slo
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.report.document import Chart, Paragraph, Table
from moeprof.analysis.report.run import build_document
from moeprof.analysis.report.sections.sweep import sweep_section
from moeprof.analysis.sparsity.crossover import is_on_front, pareto, sweep_metrics
from moeprof.analysis.sparsity.sweeps import PointResult, SweepResult, sweep_results
from moeprof.core.metric import MetricValue
from moeprof.core.workload.studies import SweepPoint
from moeprof.core.workload.workload import Slo
from moeprof.render.html.page import glossary
from tests.helpers.records import make_pass, make_requests, make_steps
from tests.helpers.sweep_records import MOE, at, sweep_summary, timed_pass

PAIR = {
    "moe": [at(1, 0.5, 0.5, 0.5), at(8, 1.0, 1.0), at(64, 2.0, 2.0)],
    "dense": [at(1, 1.0, 1.0, 1.0), at(8, 1.0, 1.0), at(64, 1.0, 1.0)],
}


def result_of(summary: Summary) -> SweepResult:
    result = sweep_results(summary)
    assert result is not None
    return result


def point(result: SweepResult, model: str, concurrency: int) -> PointResult:
    points = next(m.points for m in result.models if m.model == model)
    return next(p for p in points if p.point.concurrency == concurrency)


def at_slo(summary: Summary, model: str = "moe") -> MetricValue:
    (value,) = [v for v in summary.model(model).metrics if v.name == "usd_per_1m_tokens_at_slo"]
    return value


def test_a_run_without_a_sweep_has_no_result_and_no_section(tmp_path: Path) -> None:
    summary = sweep_summary(tmp_path, {"moe": []})
    assert sweep_results(summary) is None
    assert sweep_section(summary) is None
    assert at_slo(summary).reasons[0].startswith("needs a sweep")


def test_dollars_are_those_of_the_window(tmp_path: Path) -> None:
    one = point(result_of(sweep_summary(tmp_path, PAIR)), "moe", 1)
    assert one.usd_per_1m_total_tokens.value == pytest.approx(5)  # half a second; a second is 10
    assert (one.usd_per_1m_total_tokens.n, one.usd_per_1m_total_tokens.low) == (3, one.usd_per_1m_total_tokens.value)


def test_speeds_are_per_device_and_per_user(tmp_path: Path) -> None:
    one = point(result_of(sweep_summary(tmp_path, PAIR)), "dense", 8)
    assert one.output_tokens_per_s.value == pytest.approx(80)  # 4 requests of 20 tokens in a second
    assert one.tokens_per_s_per_user.value == pytest.approx(20)  # gaps of a twentieth of a second
    assert one.decode_step_s.value == pytest.approx(0.05)


def test_distinct_experts_stand_beside_both_nulls(tmp_path: Path) -> None:
    one = point(result_of(sweep_summary(tmp_path, PAIR)), "moe", 1)
    assert one.distinct_experts.value == pytest.approx(2)
    assert one.distinct_nulls["uniform"] == pytest.approx(4 * (1 - 0.5**4))  # 4 tokens, 2 of 4 experts
    assert one.distinct_nulls["marginal"] == pytest.approx(2)  # two experts take everything
    assert one.decode_batch.value == 4


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    passes = [replace(timed_pass("p", 1.0), routing=None)]
    result = result_of(sweep_summary(tmp_path, {"dense": [(SweepPoint(concurrency=1), passes)]}))
    one = point(result, "dense", 1)
    assert (one.distinct_experts.value, one.distinct_experts.reason) == (None, "a dense model has no router")


def test_one_round_has_a_value_and_no_interval() -> None:
    estimate = over_rounds([(0, 3.0)], "none")
    assert (estimate.value, estimate.low, estimate.reason) == (
        3.0,
        None,
        "no interval: one round; 3 or more rounds needed",
    )


def test_several_launches_are_the_unit_of_repetition() -> None:
    estimate = over_rounds([(0, 1.0), (0, 3.0), (1, 4.0), (1, None)], "none")
    assert (estimate.value, estimate.n) == (3.0, 2)  # the mean of 2 and 4


def test_other_settings_are_lines_of_their_own(tmp_path: Path) -> None:
    short, long = SweepPoint(concurrency=1, input_tokens=8), SweepPoint(concurrency=1, input_tokens=64)
    swept = {"moe": [(short, [timed_pass("p", 1.0)]), (long, [timed_pass("p", 2.0)])]}
    result = result_of(sweep_summary(tmp_path, swept))
    assert (result.axis, [row.label for row in result.rows]) == ("concurrency", ["input 8", "input 64"])
    assert [p.point for p in result.line("moe", result.rows[1])] == [long]


def test_an_open_loop_is_compared_by_busy_seconds(tmp_path: Path) -> None:
    passes = [timed_pass("p", 2.0, traffic="open", busy_s=1.0)]
    result = result_of(sweep_summary(tmp_path, {"moe": [(SweepPoint(request_rate=2.0), passes)]}))
    one = result.models[0].points[0]
    assert one.busy_ratio.value == pytest.approx(0.5)
    assert one.usd_per_1m_total_tokens.value == pytest.approx(10)


# -- the price at the SLO ----------------------------------------------------------------------------------------------


def slow(concurrency: int, ttft_s: float, seconds: float) -> tuple[SweepPoint, list[PassTables]]:
    """256 requests: four for each of 64 in flight. A second is 0.001 USD for 6,400 tokens: 0.15625 USD per million."""
    return at(concurrency, seconds, seconds, seconds, ttft_s=ttft_s, num=256)


RISING = {"moe": [slow(1, 0.1, 4.0), slow(8, 0.2, 2.0), slow(64, 0.9, 1.0)]}


def met_by(num_met: int, of: int) -> list[float]:
    """First tokens within 0.1 s for so many of the requests, after 0.9 s for the rest."""
    return [0.1] * num_met + [0.9] * (of - num_met)


def test_the_price_at_the_slo_is_that_of_the_highest_load_that_meets_it(tmp_path: Path) -> None:
    value = at_slo(sweep_summary(tmp_path, RISING, slo={"ttft_s": 0.5}))
    assert value.value == pytest.approx(0.3125)  # two seconds, at concurrency 8
    assert value.reasons == ("at concurrency 8", "concurrency 64 missed it (0 % of 256 requests)")


def test_nothing_is_promised_of_loads_that_were_not_tried(tmp_path: Path) -> None:
    assert at_slo(sweep_summary(tmp_path, RISING, slo={"ttft_s": 5.0})).reasons == ("at concurrency 64",)


def test_a_sweep_in_which_no_load_meets_the_slo_has_no_price(tmp_path: Path) -> None:
    value = at_slo(sweep_summary(tmp_path, RISING, slo={"ttft_s": 0.01}))
    assert value.value is None
    assert value.reasons == ("no load is known to meet it: concurrency 1, 8, 64 missed it (0 % of 256 requests)",)


@pytest.mark.parametrize(
    ("met", "of", "concurrency", "words"),
    [
        (72, 72, 18, None),  # 0.95 ** 72 is just below 0.025, and 72 is four times 18
        (8, 8, 8, "undecided (100 % of 8 requests, at least 72 are needed)"),
        (72, 72, 19, "undecided (100 % of 72 requests, at least 76 are needed)"),
        (71, 72, 18, "undecided (98.6 % of 72 requests, too near 95 % to tell)"),
        (4, 8, 8, "missed it (50 % of 8 requests)"),  # at most 84 % do
        (60, 72, 18, "missed it (83.3 % of 72 requests)"),  # at most 91 % do
        (65, 72, 18, "undecided (90.3 % of 72 requests, too near 95 % to tell)"),  # at most 96 % do
    ],
)
def test_met_and_missed_are_said_by_the_binomial_interval(
    tmp_path: Path, met: int, of: int, concurrency: int, words: str | None
) -> None:
    swept = {"moe": [at(concurrency, 1.0, 1.0, 1.0, ttft_s=met_by(met, of), num=of)]}
    value = at_slo(sweep_summary(tmp_path, swept, slo={"ttft_s": 0.5}))
    assert (value.value is None) is (words is not None)
    at_it = f"at concurrency {concurrency}"
    assert value.reasons == ((at_it,) if words is None else (f"no load is known to meet it: {at_it[3:]} {words}",))


def test_without_an_slo_or_a_sweep_the_reason_says_so(tmp_path: Path) -> None:
    assert at_slo(sweep_summary(tmp_path, RISING)).reasons == ("no SLO given",)
    (none,) = usd_per_1m_tokens_at_slo([], Slo(ttft_s=1.0))
    assert none.usd_per_1m_tokens.reason == "no sweep"


def test_one_round_that_misses_it_is_enough(tmp_path: Path) -> None:
    """300 of 300 and 270 of 300: all together [0.927, 0.969], but one round is at 90 %."""
    rounds = [timed_pass("a", 1.0, num=300), timed_pass("b", 1.0, ttft_s=met_by(270, 300), num=300)]
    swept = {"moe": [slow(1, 0.1, 4.0), (SweepPoint(concurrency=8), rounds)]}
    assert at_slo(sweep_summary(tmp_path, swept, slo={"ttft_s": 0.5})).reasons[0] == "at concurrency 1"
    many = [timed_pass("a", 1.0, num=3_000), timed_pass("b", 1.0, ttft_s=met_by(2_820, 3_000), num=3_000)]
    swept = {"moe": [(SweepPoint(concurrency=8), many)]}  # 97 % of 3,000, one round at 94 %
    told = at_slo(sweep_summary(tmp_path / "many", swept, slo={"ttft_s": 0.5}))
    assert told.reasons[0].endswith("concurrency 8 undecided (97 % of 3000 requests, too near 95 % to tell)")


def test_a_saturated_load_does_not_count_even_if_it_was_fast_enough(tmp_path: Path) -> None:
    summary = sweep_summary(tmp_path, RISING, slo={"ttft_s": 5.0}, saturated={("moe", 2): "the queue grew"})
    assert at_slo(summary).reasons == ("at concurrency 8", "concurrency 64 missed it (its queue grows)")
    assert result_of(summary).models[0].points[2].saturation_reason == "the queue grew"


def test_outputs_of_one_token_neither_meet_nor_miss_a_time_per_token(tmp_path: Path) -> None:
    value = at_slo(sweep_summary(tmp_path, {"moe": [at(8, 1.0, num=72, token_times_s=[np.ones(1)] * 72)]},
                                 slo={"tpot_s": 0.5}))  # fmt: skip
    assert value.value is None
    assert "concurrency 8 undecided (no request has two output tokens" in value.reasons[0]


# -- the run's own rounds ----------------------------------------------------------------------------------------------

OWN = {"pattern": "closed", "concurrency": 8}


def own_rounds(*met: int) -> list[PassTables]:
    """Rounds of 32 requests, two seconds each, of which so many were within 0.5 s."""
    return [timed_pass(f"round-{i}", 2.0, num=32, ttft_s=met_by(n, 32)) for i, n in enumerate(met)]


def test_the_runs_own_rounds_miss_what_eight_requests_in_eight_places_met(tmp_path: Path) -> None:
    """Their own rounds at concurrency 8 met it for 31, 41 and 53 %; eight requests of the sweep all did."""
    swept = {"dense": [at(c, 1.0, 1.0, num=8) for c in (4, 8)]}
    summary = sweep_summary(tmp_path, swept, slo={"ttft_s": 0.5}, own={"dense": own_rounds(10, 13, 17)}, own_load=OWN)
    assert at_slo(summary, "dense").reasons == (
        "no load is known to meet it: concurrency 4, 8 undecided (100 % of 8 requests, at least 72 are needed); "
        "concurrency 8 (the run's own rounds) missed it (41.7 % of 32 requests)",
    )


def test_points_of_one_load_that_contradict_each_other_tell_nothing(tmp_path: Path) -> None:
    swept = {"dense": [at(1, 1.0, 1.0, 1.0, num=72), at(8, 1.0, 1.0, 1.0, num=72)]}
    summary = sweep_summary(tmp_path, swept, slo={"ttft_s": 0.5}, own={"dense": own_rounds(10, 13, 17)}, own_load=OWN)
    assert at_slo(summary, "dense").reasons == (
        "at concurrency 1",
        "concurrency 8 met it (100 % of 72 requests)",
        "concurrency 8 (the run's own rounds) missed it (41.7 % of 32 requests)",
    )


def test_own_rounds_stand_in_tables_and_lines_where_they_have_more_requests(tmp_path: Path) -> None:
    swept = {name: [at(4, 1.0, 1.0, num=8), at(8, 1.0, 1.0, num=8)] for name in ("moe", "dense")}
    own = {name: own_rounds(32, 32) for name in swept}
    result = result_of(sweep_summary(tmp_path, swept, own=own, own_load=OWN))
    line = result.line("moe", result.rows[0])
    assert [(p.point.concurrency, p.swept.num_requests, p.swept.own) for p in line] == [(4, 8, False), (8, 32, True)]
    assert line[1].usd_per_1m_total_tokens.value == pytest.approx(2.5)  # 0.002 USD for 800 tokens
    between = result_of(sweep_summary(tmp_path / "b", swept, own=own, own_load={**OWN, "concurrency": 6}))
    assert [p.point.concurrency for p in between.line("moe", between.rows[0])] == [4, 6, 8]


def test_the_own_rounds_of_an_open_loop_stand_at_their_own_rate(tmp_path: Path) -> None:
    """17 arrivals over 8 s: two a second, between the swept rates of one and four."""

    def rate(requests: float, **options: Any) -> tuple[SweepPoint, list[PassTables]]:
        return SweepPoint(request_rate=requests), [timed_pass("p", 8.0, traffic="open", **options)]

    arrival_s = np.arange(17) / 2
    requests = make_requests(17, arrival_s=arrival_s, ttft_s=0.1, itl_s=0.01, output_tokens=20)
    own = [make_pass(name="round-0", requests=requests, steps=make_steps(80, step_s=0.1))]
    summary = sweep_summary(
        tmp_path, {"moe": [rate(1.0), rate(4.0)]}, own={"moe": own}, own_load={"pattern": "open"}, slo={"ttft_s": 0.5}
    )
    line = result_of(summary).models[0].points
    assert [p.point.request_rate for p in line] == pytest.approx([1.0, 2.0, 4.0])
    assert [p.swept.own for p in line] == [False, True, False]
    assert line[1].swept.rounds[0].saturated is False  # its own table says so


def test_own_rounds_of_other_traffic_are_no_point(tmp_path: Path) -> None:
    swept = {"moe": [at(4, 1.0, 1.0)]}
    for load in ({"pattern": "open"}, {"pattern": "offline"}):
        result = result_of(sweep_summary(tmp_path / load["pattern"], swept, own_load=load))
        assert [p.point.concurrency for p in result.models[0].points] == [4]


# -- the Pareto front --------------------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats_in_both() -> None:
    speeds = [(1.0, 4.0), (2.0, 3.0), (1.5, 2.0), (3.0, 1.0), (3.0, 1.0)]
    assert [is_on_front(speed, speeds) for speed in speeds] == [True, True, False, True, True]


def test_a_setting_that_is_slower_for_user_and_device_is_off_the_front(tmp_path: Path) -> None:
    points = pareto(result_of(sweep_summary(tmp_path, PAIR)))
    own = {p.point.concurrency: p.on_front for p in points if p.model == "moe"}
    assert own == {1: True, 8: False, 64: False}  # planted: more load only makes it slower


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_section_says_the_answer_and_draws_it(tmp_path: Path) -> None:
    section = sweep_section(sweep_summary(tmp_path, PAIR, stopped="rate 4 is saturated"))
    assert section is not None
    texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert texts[0].startswith("In dollars per million tokens, moe against dense: cheaper below concurrency 8")
    assert "The sweep of moe stopped early: rate 4 is saturated." in texts
    charts = {block.name: block for block in section.blocks if isinstance(block, Chart)}
    assert {"sweep-cost", "sweep-pareto", "sweep-experts-moe"} <= set(charts)
    assert [series.x for series in charts["sweep-cost"].series] == [(1.0, 8.0, 64.0)] * 2
    assert [series.name for series in charts["sweep-experts-moe"].series][1:] == [
        "uniform routing",
        "same popularity, independent tokens",
    ]


def test_the_table_of_dollars_holds_paired_ratios_with_verdicts(tmp_path: Path) -> None:
    section = sweep_section(sweep_summary(tmp_path, PAIR))
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table) and block.compares)
    assert (table.columns, table.columns[table.reference]) == (("moe", "dense"), "dense")
    ratios = [row.ratios[0] for row in table.rows]
    assert [r.value for r in ratios if r] == pytest.approx([0.5, 1, 2])
    assert [r.verdict for r in ratios if r] == ["better", "no difference shown", "worse"]


def test_an_answer_without_a_number_says_why_in_data_files(tmp_path: Path) -> None:
    swept = {"moe": [at(1, 0.5, 0.5), at(8, 0.5, 0.5)], "dense": [at(1, 1.0, 1.0), at(8, 1.0, 1.0)]}
    (model, value), *_ = sweep_metrics(result_of(sweep_summary(tmp_path, swept)))
    assert (model, value.name, value.value) == ("moe", "crossover_batch", None)
    assert "cheaper at every concurrency tried, 1 to 8" in value.reasons[0]
    assert card_for(value.name).section == "comparison"


def test_a_dense_model_has_no_cell_among_the_experts(tmp_path: Path) -> None:
    section = sweep_section(sweep_summary(tmp_path, PAIR))
    assert section is not None
    tables = [block for block in section.blocks if isinstance(block, Table) and block.compares]
    (experts,) = [table for table in tables if table.rows[0].name == "distinct_experts_per_step"]
    assert [value is None for value in experts.rows[0].values] == [False, True]
    assert experts.rows[0].values[0] is not None and experts.rows[0].values[0].null["uniform"] == pytest.approx(3.75)


def test_requests_that_did_not_end_well_are_named(tmp_path: Path) -> None:
    cut = [timed_pass("p", 1.0, status=["done", "done", "unfinished", "refused"])]
    section = sweep_section(sweep_summary(tmp_path, {"moe": [(SweepPoint(concurrency=8), cut)]}))
    assert section is not None
    texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert "moe at concurrency 8: 2 of 4 requests did not end well." in texts


def test_the_whole_report_holds_the_section_and_its_cards(tmp_path: Path) -> None:
    document = build_document(sweep_summary(tmp_path, PAIR))
    assert "sweep" in [section.name for section in document.sections]
    assert "tokens_per_s_per_user" in [card.name for _, cards in glossary(document) for card in cards]


def test_a_model_without_some_loads_leaves_its_cells_empty_with_the_reason(tmp_path: Path) -> None:
    section = sweep_section(sweep_summary(tmp_path, {"moe": PAIR["moe"], "dense": PAIR["dense"][:1]}))
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table) and block.compares)
    cell = table.rows[2].values[1]
    assert cell is not None and (cell.value, cell.reasons) == (None, ("this load did not run",))


def test_the_models_facts_say_which_one_is_sparse(tmp_path: Path) -> None:
    summary = sweep_summary(tmp_path, {"moe": PAIR["moe"]}, facts={"moe": MOE})
    assert [m.is_moe for m in result_of(summary).models] == [True]
