"""Should one serve this model? Each question's outcomes from planted runs, and the advice for each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from moeprof.analysis.compare.pairs import ratio_of_texts
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.report.answer import answer_of, loads
from moeprof.analysis.report.answer.advice import advice
from moeprof.analysis.report.answer.sides import Sides, sides_of
from moeprof.analysis.report.answer.words import as_much
from moeprof.analysis.report.data import summary_json
from moeprof.analysis.report.document import Answer, Finding, Outcome
from moeprof.analysis.report.result import RunReport
from moeprof.analysis.report.run import build_document
from moeprof.analysis.sparsity.roles import roles
from moeprof.core.files import read_json, write_json
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from tests.analysis.metrics.test_overload import named
from tests.analysis.report.test_compare_document import run_with_twins
from tests.helpers.planted_runs import PRICING, launch, planted_run
from tests.helpers.queues import open_queue
from tests.helpers.records import make_facts, write_record
from tests.helpers.sweep_records import at, sweep_summary


def answered(summary: Summary) -> Answer:
    found = answer_of(summary)
    assert found is not None
    return found


def finding(summary: Summary, question: str) -> Finding:
    return next(found for found in answered(summary).findings if found.question == question)


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.8, "1.8 times as much memory as dense"),
        (1.25, "1.2 times as much memory as dense"),
        (1.06, "6 % more memory than dense"),
        (0.53, "47 % less memory than dense"),
    ],
)
def test_ratios_are_said_as_people_say_them(ratio: float, said: str) -> None:
    assert as_much(ratio, "dense", "memory") == said


# -- cheaper, faster ---------------------------------------------------------------------------------------------------


def test_a_dense_model_of_half_the_step_time_is_the_one_to_serve(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5)
    assert finding(summary, "cheaper?").outcome == "no"
    assert finding(summary, "faster?").outcome == "no"
    found = answered(summary)
    assert found.facts.startswith("On this traffic moe costs 2 times as much as dense, takes 2 times as long as dense")
    assert found.advice == "By cost and speed alone, serve the dense one."
    assert "judge both models' text, here or by your own evaluation" in found.change


def test_a_dense_model_of_twice_the_step_time_leaves_the_moe(tmp_path: Path) -> None:
    found = answered(planted_run(tmp_path / "run", slow=2.0))
    assert "moe costs 5" in found.facts and "% less than dense" in found.facts
    assert found.advice == "By cost and speed alone, serve the MoE."


def test_equal_models_are_not_told_apart(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=1.0)
    cheaper = finding(summary, "cheaper?")
    assert (cheaper.outcome, cheaper.lean, cheaper.clause) == ("cannot tell", 0, "")
    assert cheaper.aside.startswith(("No difference in cost against dense is shown", "Whether it costs more"))
    assert answered(summary).advice == "Nothing measured here decides between them."


def test_one_round_says_how_many_it_takes(tmp_path: Path) -> None:
    found = answered(planted_run(tmp_path / "run", slow=0.5, launches=1, rounds=1))
    assert "Whether it costs more or less than dense cannot be said, 2" in found.facts
    assert "send 3 rounds or more" in found.change


def test_one_launch_speaks_for_itself_alone(tmp_path: Path) -> None:
    found = answered(planted_run(tmp_path / "run", slow=0.5, launches=1, rounds=4))
    assert found.facts.startswith("On this traffic (this launch) moe costs ")


def test_a_queue_that_grows_leaves_no_speed_to_tell(tmp_path: Path) -> None:
    facts = make_facts(num_experts=0)
    passes = [named(open_queue(320, 400, 0), 0)]
    path = write_record(tmp_path / "run", {name: (facts, [passes]) for name in ("one", "two")})
    summary = summarise(open_record(path), PRICING)
    faster = finding(summary, "faster?")
    assert faster.outcome == "cannot tell"
    assert faster.text.startswith(
        "Its speed at this traffic cannot be said: 320 requests/s were more than one serves (1"
    )
    assert answered(summary).advice == "Do not decide by this run."


def test_a_model_alone_has_a_price_and_nothing_to_hold_it_against(tmp_path: Path) -> None:
    models = {"moe": (make_facts(), [launch(1, moe=True, rounds=3)])}
    summary = summarise(open_record(write_record(tmp_path / "run", models)), PRICING)
    found = answered(summary)
    assert (found.rival, found.advice) == (None, "")
    assert " per million tokens, input and output together, at " not in found.facts
    assert "moe costs $" in found.facts and " output tokens/s" in found.facts
    assert found.change.startswith("Whether that is cheap needs a model to hold it against (`models:`)")
    assert [one.question for one in found.findings] == ["cheaper?", "faster?", "fits?", "sure enough to decide?"]


# -- twins -------------------------------------------------------------------------------------------------------------


def test_between_its_twins_an_moe_is_dearer_than_the_one_and_cheaper_than_the_other(tmp_path: Path) -> None:
    summary = run_with_twins(tmp_path / "run")  # steps of 0.6, against 0.2 and 1.0
    cheaper = finding(summary, "cheaper?")
    assert cheaper.outcome == "depends"
    assert "% less than a dense model of its total size and 3" in cheaper.clause
    assert cheaper.clause.endswith("times as much as a dense model of its active size")
    assert answered(summary).advice.startswith("Its sparsity pays against a dense model of the same total size; one of")


def test_an_moe_slower_than_its_total_twin_buys_nothing(tmp_path: Path) -> None:
    found = answered(run_with_twins(tmp_path / "run", moe_slow=1.6))
    assert found.advice == "Its sparsity buys nothing here: a dense model of the same size is cheaper."


# -- text --------------------------------------------------------------------------------------------------------------


def with_text(folder: Path, moe_bits: float, noise: float = 0.0) -> Summary:
    """Forty outputs of 100 bytes; the dense model needs 100 to 300 bits each, the MoE ``moe_bits`` times that."""
    planted_run(folder, slow=0.5, launches=1, rounds=4)
    generator = np.random.default_rng(0)
    hard = generator.uniform(100, 300, 40)
    differs = generator.lognormal(0, noise, 40)
    differs *= hard.sum() / (hard * differs).sum()  # output by output, but not in all
    for name, times in (("moe", moe_bits * differs), ("dense", np.ones(40))):
        bits = hard * times
        file = folder / name / "launch-0" / "launch.json"
        pairs = [[float(one), 100.0] for one in bits]
        quality = {"bits": float(bits.sum()), "bytes": 4000, "tokens": 1000, "requests": 40, "per_request": pairs}
        write_json(file, {**read_json(file), "quality": quality})
    return summarise(open_record(folder), PRICING)


def test_texts_are_compared_output_by_output(tmp_path: Path) -> None:
    summary = with_text(tmp_path / "run", 0.9)
    ratio = ratio_of_texts(*summary.models)
    assert ratio is not None and ratio.value == pytest.approx(0.9)
    assert (ratio.low, ratio.high) == (
        pytest.approx(0.9),
        pytest.approx(0.9),
    )  # the ratio is always the same


@pytest.mark.parametrize(
    ("moe_bits", "noise", "outcome", "lean", "clause", "advised"),
    [
        (0.9, 0.0, "yes", 1, "writes better text (", "It depends on what counts: text for the MoE, cost and speed for"),
        (1.1, 0.0, "no", -1, "writes worse text (", "Serve the dense one."),
        (1.0, 0.02, "no", 0, "writes about as good a text (", "Serve the dense one."),
        (1.0, 0.8, "cannot tell", 0, "", "By cost and speed alone, serve the dense one."),
    ],
)
def test_better_text_is_told_where_it_is_shown(
    tmp_path: Path, moe_bits: float, noise: float, outcome: Outcome, lean: int, clause: str, advised: str
) -> None:
    summary = with_text(tmp_path / "run", moe_bits, noise)
    found = finding(summary, "better text?")
    assert (found.outcome, found.lean) == (outcome, lean)
    assert found.clause.startswith(clause) and bool(found.clause) == bool(clause)
    assert answered(summary).advice.startswith(advised)


def test_random_weights_write_no_text_to_judge(tmp_path: Path) -> None:
    models = {
        "moe": (replace(make_facts(), weights="random"), [launch(1, moe=True, rounds=3)]),
        "dense": (make_facts(num_experts=0, name="dense"), [launch(2, rounds=3)]),
    }
    summary = summarise(open_record(write_record(tmp_path / "run", models)), PRICING)
    found = finding(summary, "better text?")
    assert (found.outcome, found.text) == (
        "cannot tell",
        "moe has random weights: time and memory are real, text is not",
    )


# -- loads, API, how sure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_1", "at_64", "outcome", "said"),
    [
        (0.5, 2.0, "depends", "It is cheaper below about 8 requests at once."),
        (2.0, 0.5, "depends", "It is cheaper above about 8 requests at once."),
        (0.5, 0.5, "yes", "It is cheaper at every load tried (concurrency 1 to 64)."),
        (2.0, 2.0, "no", "It is dearer at every load tried (concurrency 1 to 64)."),
    ],
)
def test_a_sweep_says_from_which_load_on(
    tmp_path: Path, at_1: float, at_64: float, outcome: Outcome, said: str
) -> None:
    swept = {
        "moe": [at(1, *[at_1] * 3), at(64, *[at_64] * 3)],
        "dense": [at(1, 1.0, 1.0, 1.0), at(64, 1.0, 1.0, 1.0)],
    }
    summary = sweep_summary(tmp_path, swept)
    moe, dense = summary.models
    found = loads.find(Sides(summary=summary, parts=roles(summary), model=moe, rival=dense))
    assert found is not None and (found.outcome, found.aside) == (outcome, said)


def test_one_load_says_nothing_of_others(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5)
    assert finding(summary, "from which load on?").text == "one load was measured"
    assert "measure other loads (`sweep:`)" in answered(summary).change


def test_an_api_is_an_answer_only_where_its_price_is_given(tmp_path: Path) -> None:
    planted_run(tmp_path / "run", slow=0.5)
    record = open_record(tmp_path / "run")
    assert "cheaper than the API?" not in [one.question for one in answered(summarise(record, PRICING)).findings]
    dear = Pricing(usd_per_device_hour=3.6, api_usd_per_1m_input_tokens=1e6, api_usd_per_1m_output_tokens=1e6)
    found = finding(summarise(record, dear), "cheaper than the API?")
    assert found.outcome == "depends" and found.aside.startswith("It is cheaper than the API where the device is in ")
    cheap = Pricing(usd_per_device_hour=3.6, api_usd_per_1m_input_tokens=1e-6, api_usd_per_1m_output_tokens=1e-6)
    assert finding(summarise(record, cheap), "cheaper than the API?").outcome == "no"


def test_a_run_that_was_cut_off_decides_nothing(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5, status="interrupted")
    sure = finding(summary, "sure enough to decide?")
    assert (sure.outcome, sure.aside) == ("no", "The run was interrupted.")
    assert answered(summary).advice == "Do not decide by this run."


def test_a_run_without_a_price_has_no_answer(tmp_path: Path) -> None:
    summary = sweep_summary(tmp_path, {"moe": [at(1, 1.0)], "dense": [at(1, 1.0)]})  # four requests
    assert sides_of(summary) is None and answer_of(summary) is None


# -- advice ------------------------------------------------------------------------------------------------------------

QUESTIONS = {"cost": "cheaper?", "speed": "faster?", "text": "better text?"}


@pytest.mark.parametrize(
    ("cost", "speed", "text", "advised"),
    [
        (1, 1, 1, "Serve the MoE."),
        (1, 0, 0, "Serve the MoE."),
        (-1, -1, 0, "Serve the dense one."),
        (-1, 1, 0, "It depends on what counts: speed for the MoE, cost for the dense one."),
        (1, -1, -1, "It depends on what counts: cost for the MoE, speed and text for the dense one."),
        (-1, -1, 1, "It depends on what counts: text for the MoE, cost and speed for the dense one."),
        (0, 0, 0, "Serve the dense one: it needs less memory."),
        (-1, 0, None, "By cost alone, serve the dense one."),
        (0, 0, None, "Nothing measured here decides between them."),
    ],
)
def test_what_leans_which_way_says_what_to_serve(cost: int, speed: int, text: int | None, advised: str) -> None:
    leans = {"cost": cost, "speed": speed, "text": text}
    outcomes: dict[int | None, Outcome] = {1: "yes", -1: "no", 0: "no", None: "cannot tell"}
    findings = [
        Finding(question=QUESTIONS[name], outcome=outcomes[lean], text="", lean=cast(Any, lean or 0))
        for name, lean in leans.items()
    ]
    findings.append(Finding(question="fits?", outcome="yes", text="", lean=-1))
    findings.append(Finding(question="sure enough to decide?", outcome="yes", text=""))
    sides = SimpleNamespace(rival=object(), is_twin=False, is_moe_against_dense=True)
    assert advice(cast(Sides, sides), findings) == advised


# -- on the page -------------------------------------------------------------------------------------------------------


def test_the_page_and_the_data_hold_the_same_answer(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5)
    document = build_document(summary)
    assert document.answer == answer_of(summary)
    data = summary_json(RunReport(summary=summary, document=document))["answer"]
    assert data["paragraph"] == answered(summary).paragraph
    assert data["findings"][0]["question"] == "cheaper?"
    assert data["findings"][0]["figures"] == ("usd_per_1m_total_tokens",)
