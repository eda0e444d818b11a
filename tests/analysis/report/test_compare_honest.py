"""Sentences of a comparison say no more than was measured, and records with holes in them are still compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moeprof.analysis.compare import same_work
from moeprof.analysis.compare.lanes import lockstep_pairs
from moeprof.analysis.compare.models import compare_models
from moeprof.analysis.metrics.lookup import key_of
from moeprof.analysis.metrics.summary import ModelSummary, Summary, summarise
from moeprof.analysis.report.compare import compare_document
from moeprof.analysis.report.data import comparison_json, comparison_rows
from moeprof.analysis.report.document import Paragraph, Section, Table
from moeprof.analysis.report.saving import _costs, unit_costs
from moeprof.analysis.report.sections.ladder import ladder_section, sentences
from moeprof.analysis.report.sections.memory import quality_section, variance_section
from moeprof.analysis.report.sections.sweep import sweep_section
from moeprof.analysis.sparsity.claims import Sides, realised
from moeprof.analysis.sparsity.crossover import crossovers
from moeprof.analysis.sparsity.ladder import ladders
from moeprof.analysis.sparsity.realised import equivalent_of_rounds
from moeprof.analysis.sparsity.sweeps import sweep_results
from moeprof.analysis.sparsity.theory import theoretical_speedups
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue, missing
from moeprof.core.record.layout import open_record
from tests.helpers.lane_records import lane, write_lanes
from tests.helpers.planted_runs import PRICING, launch, planted_run
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, write_record
from tests.helpers.sweep_records import at, sweep_summary


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return planted_run(tmp_path_factory.mktemp("honest") / "run", launches=1, rounds=3)


def with_metric(summary: Summary, **values: MetricValue) -> Summary:
    """The run with one more (or another) value of these models."""

    def changed(model: ModelSummary) -> ModelSummary:
        new = values.get(model.name)
        if new is None:
            return model
        return replace(model, metrics=(*(v for v in model.metrics if key_of(v) != key_of(new)), new))

    return replace(summary, models=tuple(changed(model) for model in summary.models))


def text_of(section: Section | None) -> str:
    assert section is not None
    return " ".join(block.text for block in section.blocks if isinstance(block, Paragraph))


def test_a_share_that_chance_explains_as_well_is_not_told_as_one(run: Summary) -> None:
    share = MetricValue(
        name="variance_explained_by_routing_ratio",
        value=0.004,
        labels={"traffic": "offline", "window": "total", "phase": "decode"},
        valid=False,
        reasons=("cannot tell: share 0.4 %, p = 0.310; the smallest share this run could show is 2.0 %",),
    )
    said = text_of(variance_section(with_metric(run, moe=share)))
    assert "Routing explains" not in said
    assert "cannot be said: share 0.4 %, p = 0.310" in said


def test_a_model_without_a_quality_figure_is_not_called_untrained(run: Summary) -> None:
    quality = missing("bits_per_byte", "outputs are not forced, so there is no true continuation")
    said = text_of(quality_section(with_metric(run, moe=quality, dense=quality)))
    assert "trained" not in said and "random" not in said
    assert "Without a figure: moe, dense (outputs are not forced" in said


def test_qualities_of_different_requests_are_not_called_the_same_text(run: Summary) -> None:
    first, second = (MetricValue(name="bits_per_byte", value=2.0, n=n) for n in (64, 30))
    assert "which are not the same" in text_of(quality_section(with_metric(run, moe=first, dense=second)))
    assert "of the same text" in text_of(quality_section(with_metric(run, moe=first, dense=first)))


def test_a_launch_that_was_cut_off_bills_its_rounds_like_the_others(tmp_path: Path) -> None:
    """Two rounds of the second launch were not run: a launch costs the mean of its rounds, not their sum."""
    passes = launch(1, moe=True, rounds=3)
    record = write_record(tmp_path / "run", {"moe": (make_facts(), [passes, passes[:1]])})
    first, second = unit_costs(summarise(open_record(record), PRICING).model("moe"))
    assert second == pytest.approx(first, rel=0.1)


def test_a_size_outside_of_the_ladder_is_claimed_only_beyond_the_noise() -> None:
    sizes = tuple((size, [cost * x for x in (0.9, 1.0, 1.1)]) for size, cost in ((100, 1.0), (200, 2.0), (400, 4.0)))
    assert not equivalent_of_rounds(sizes, [4.1, 4.5, 3.7]).bound_told
    assert equivalent_of_rounds(sizes, [39.9, 40.0, 40.1]).bound_told
    assert not equivalent_of_rounds(tuple((size, costs[:1]) for size, costs in sizes), [40.0]).bound_told


def test_a_launch_without_one_of_the_lanes_says_nothing_of_it(run: Summary, tmp_path: Path) -> None:
    """The wide model failed in launch 0, so launch 1 stepped the other two alone."""
    folder = tmp_path / "run"
    (folder / "moe").mkdir(parents=True)
    (folder / "experiment.json").write_text((run.record.path / "experiment.json").read_text())
    lanes = [lane("moe", rung="native"), lane("wide"), lane("narrow")]
    write_lanes(folder / "lockstep", {"moe": 0.01, "wide": 0.02, "narrow": 0.005}, lanes=lanes, launch=0)
    write_lanes(folder / "lockstep", {"moe": 0.01, "narrow": 0.005}, lanes=lanes[::2], launch=1)
    pairs = {pair.dense: pair.ratios[None] for pair in lockstep_pairs(open_record(folder))}
    assert (pairs["wide"].n, pairs["narrow"].n) == (120, 2)  # the steps of one launch; two launches
    assert pairs["wide"].value == pytest.approx(0.5)
    assert pairs["narrow"].value == pytest.approx(2)


@pytest.mark.parametrize("rung", ["native", "dense"])
def test_models_of_one_kind_are_set_against_the_first(run: Summary, tmp_path: Path, rung: str) -> None:
    folder = tmp_path / "run"
    (folder / "moe").mkdir(parents=True)
    (folder / "experiment.json").write_text((run.record.path / "experiment.json").read_text())
    write_lanes(folder / "lockstep", {"a": 0.01, "b": 0.03}, lanes=[lane(name, rung=rung) for name in "ab"])
    (pair,) = lockstep_pairs(open_record(folder))
    assert (pair.moe, pair.dense) == ("b", "a")
    assert pair.ratios["decode"].value == pytest.approx(3)


def test_a_phase_that_did_not_run_has_no_computed_twin(tmp_path: Path) -> None:
    """Without routing counts the MoE's own work is unknown, and no step of this pass is a decode step."""
    steps = make_steps(10, phase="prefill", prefill_tokens=8, decode_tokens=0)
    tables = make_pass(traffic="offline", steps=steps, requests=make_requests(4, output_tokens=1), routing=None)
    record = write_record(tmp_path / "run", {"moe": (make_facts(), [[tables]])})
    phases = {one.phase for one in theoretical_speedups(summarise(open_record(record), PRICING))}
    assert phases == {"prefill", "all"}


def test_the_reason_that_nothing_can_be_told_is_that_of_an_undecided_figure(tmp_path: Path) -> None:
    """Decode is shown to be equal, prefill is not known: the reason is prefill's."""

    def planted(name: str, seed: int, prefill: list[float]) -> Summary:
        launches = [launch(100 * seed + i) for i in range(6)]
        for passes, slow in zip(launches, prefill, strict=True):
            for tables in passes:
                own = tables.steps["phase"] == "prefill"
                start = tables.steps.loc[own, "start_s"]
                tables.steps.loc[own, "end_s"] = start + slow * (tables.steps.loc[own, "end_s"] - start)
        facts = make_facts(num_experts=0, name="dense")
        path = write_record(tmp_path / name, {"dense": (facts, launches)})
        return summarise(open_record(path), PRICING)

    first = planted("one", 1, [1.0, 1.3, 0.8, 1.1, 0.7, 1.2])
    other = planted("two", 2, [1.2, 0.8, 1.4, 1.0, 1.3, 0.7])
    headline = compare_document([first, other], reference=None).document.headline
    assert "cannot be said" in headline
    assert "the interval lies within" not in headline


def test_prices_at_the_slo_are_compared_in_an_open_loop_too() -> None:
    """METRICS section 7 names them among what may be compared, however idle the machine was."""
    key = ("usd_per_1m_tokens_at_slo", (("traffic", "open"),))
    idle = same_work.Work(failed=False, passes=frozenset(), busy_ratio=None)
    assert same_work.why_incomparable(key, idle, idle) is None
    assert same_work.why_incomparable(("usd_per_1m_total_tokens", key[1]), idle, idle) is not None


def test_loads_at_which_a_model_was_cut_off_are_not_compared(tmp_path: Path) -> None:
    """The dense model had time for two of four requests at concurrency 1: dollars per token of other requests."""
    cut = {"status": ["done", "done", "unfinished", "unfinished"]}
    swept = {
        "moe": [at(1, 0.5, 0.5), at(8, 0.5, 0.5)],
        "dense": [at(1, 1.0, 1.0, **cut), at(8, 1.0, 1.0)],
    }
    summary = sweep_summary(tmp_path, swept)
    result = sweep_results(summary)
    assert result is not None
    (found,) = crossovers(result)
    assert [point.load for point in found.points] == [8]
    assert found.text.endswith("without 1: not the same requests were finished")
    section = sweep_section(summary)
    assert section is not None
    tables = [block for block in section.blocks if isinstance(block, Table) and block.compares]
    at_one = [ratio for table in tables for ratio in table.rows[0].ratios if ratio is not None]
    assert {ratio.verdict for ratio in at_one} == {"incomparable"}


def test_ratios_of_a_sweep_within_the_floor_of_two_processes_are_no_verdict(tmp_path: Path) -> None:
    """Two per cent in each of two rounds: METRICS section 9 asks for more than five."""
    swept = {"moe": [at(1, 0.98, 0.98), at(8, 0.5, 0.5)], "dense": [at(1, 1.0, 1.0), at(8, 1.0, 1.0)]}
    section = sweep_section(sweep_summary(tmp_path, swept))
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table) and block.compares)
    ratios = [row.ratios[0] for row in table.rows]
    assert [ratio.verdict for ratio in ratios if ratio] == ["no difference shown", "better"]


def test_a_load_of_one_round_claims_nothing_and_says_why(tmp_path: Path) -> None:
    result = sweep_results(sweep_summary(tmp_path, {"moe": [at(1, 0.5)], "dense": [at(1, 1.0)]}))
    assert result is not None
    assert crossovers(result)[0].text.endswith("cannot tell: one round; 3 or more rounds needed")


def test_bits_per_byte_of_other_requests_are_incomparable(run: Summary) -> None:
    first, second = (MetricValue(name="bits_per_byte", value=2.0, n=n) for n in (64, 30))
    compared = compare_models(with_metric(run, moe=first, dense=second), "dense")
    ratio = compared[key_of(first)].ratios[0]
    assert ratio is not None and (ratio.verdict, ratio.value) == ("incomparable", None)


def test_the_share_of_a_claim_comes_from_the_ladder_of_its_own_model(tmp_path: Path) -> None:
    models = {name: (make_facts(name=name), [launch(1, moe=True)]) for name in ("moe", "other")}
    record = write_record(tmp_path / "run", models)
    rungs = {"active": 0.01, "recorded": 0.02, "total": 0.04}
    lanes = [lane(n, match=n) if n != "recorded" else lane(n, rung=n, model="other") for n in rungs]
    write_lanes(record / "ladder", rungs, lanes=lanes)
    summary = summarise(open_record(record), PRICING)
    shares = {m.name: realised(Sides(summary=summary, of=m, against=None)).value for m in summary.models}
    assert shares == {"moe": None, "other": pytest.approx(2 / 3)}


def test_a_table_without_ratios_names_no_reference(tmp_path: Path) -> None:
    """The columns of a ladder are loads: the first of them is not what the others are measured by."""
    planted_run(tmp_path / "run", launches=1)
    rungs = {"concentrated": 0.012, "balanced": 0.022, "recorded": 0.021}
    write_lanes(tmp_path / "run" / "ladder", rungs, lanes=[lane(name, rung=name, model="moe") for name in rungs])
    comparison = compare_document([summarise(open_record(tmp_path / "run"), PRICING)], reference=None)
    tables = {table["title"]: table["reference"] for table in comparison_json(comparison)["comparison"]}
    assert tables["Seconds per step of each rung"] is None
    assert tables["Models of this run, ratios to dense"] == "dense"
    header, *rows = comparison_rows(comparison)
    told = {(row[0], row[header.index("reference")]) for row in rows}
    assert ("Seconds per step of each rung", None) in told
    assert ("Models of this run, ratios to dense", "dense") in told


def test_what_an_override_costs_is_said_to_be_a_part_of_dispatch(tmp_path: Path) -> None:
    """10 ms dense, 12 ms concentrated by override; the override itself takes 1 of the 2 ms: 5 % of a step of 20."""
    rungs = {"active": 0.010, "concentrated": 0.012, "recorded": 0.020, "native": 0.019}
    lanes = [lane(n, match=n) if n == "active" else lane(n, rung=n, model="moe") for n in rungs]
    result = ladders([write_lanes(tmp_path, rungs, lanes=lanes)], num_moe_layers=1)
    assert "dispatch takes 10 % [10, 10] (of which setting the picks by hand 5 % [5, 5])" in sentences(result)[0]


def test_a_ladder_of_another_routing_than_the_rounds_says_so(tmp_path: Path) -> None:
    facts = replace(make_facts(), routing_policy="zipf")
    record = write_record(tmp_path / "run", {"moe": (facts, [launch(1, moe=True)])})
    rungs = {"concentrated": 0.012, "balanced": 0.022, "recorded": 0.021}
    write_lanes(record / "ladder", rungs, lanes=[lane(name, rung=name, model="moe") for name in rungs])
    said = text_of(ladder_section(open_record(record), PRICING))
    assert "its runs alone were routed by policy zipf" in said


def test_a_run_of_one_pass_says_that_its_ratio_has_no_interval(tmp_path: Path) -> None:
    headline = compare_document([planted_run(tmp_path / "run", launches=1, rounds=1)], reference=None).document.headline
    assert "it cannot be said whether moe costs more or less than dense (this launch): " in headline
    assert headline.endswith("x (one round; 3 or more rounds needed).")


def test_two_ratios_that_say_nothing_share_one_clause() -> None:
    one, two = (Ratio(value=x, verdict="cannot tell", reason="two rounds") for x in (1.11, 1.02))
    assert _costs("moe", [("the large twin", one), ("the small twin", two)], "") == [
        "it cannot be said whether moe costs more or less than the large twin: 1.11x (two rounds), or than the small "
        "twin: 1.02x (two rounds)"
    ]
    told = Ratio(value=0.5, low=0.4, high=0.6, verdict="better")
    assert _costs("moe", [("the large twin", told), ("the small twin", two)], "")[0] == (
        "moe costs 0.5x [0.4, 0.6] of the large twin"
    )
