"""What a check could overlook: gates that drop out in silence, parts of runs, and requests that failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.regress.judge import judge_pairs, judge_stored, pairs_are_enough
from moeprof.analysis.regress.result import Regression
from moeprof.core.baseline.baseline import Baseline, BaselineModel
from moeprof.core.errors import IncomparableError, InputError
from moeprof.core.metric import MetricValue
from moeprof.core.workload.gates import parse_gate
from tests.helpers.planted_picks import balanced_picks, forced, with_loads, with_picks
from tests.helpers.planted_sides import DECODE, MODEL_FACTS, STEADY, exact, launches, model, pairs, side

PICKS = forced([balanced_picks(400, 8, 2)])
LOADS = with_loads({"decode": [[100] * 8]}, 2)


def check(reference: Baseline, other: Baseline, *gates: str, **options: Any) -> Regression:
    return judge_stored(reference, other, [parse_gate(gate, "--fail-on") for gate in gates] or None, **options)


def moe(plain: BaselineModel, *values: MetricValue) -> BaselineModel:
    return replace(plain, name="moe", facts=MODEL_FACTS, metrics=values)


def verdicts(found: Regression) -> dict[str, str]:
    return {gate.gate.text: gate.verdict for gate in found.gates}


# -- gates that must not drop out --------------------------------------------------------------------------------------


def test_both_bounds_of_a_figure_are_in_force_beside_a_threshold() -> None:
    sides = [side(model(exact("weights_bytes", size)), run=f"run-{size}") for size in (100, 50)]
    found = check(sides[0], sides[1], "weights_bytes>=80", "weights_bytes<=120", "weights_bytes:3%")
    assert verdicts(found) == {
        "weights_bytes>=80": "worse", "weights_bytes<=120": "no difference shown", "weights_bytes:3%": "better"
    }  # fmt: skip


def test_two_thresholds_on_one_value_are_refused_and_that_of_one_model_comes_before_that_of_all() -> None:
    sides = [side(model(exact("weights_bytes", size)), run=f"run-{size}") for size in (100, 105)]
    with pytest.raises(InputError, match="the same value of moe has the gate 'weights_bytes:3%' too; one of them"):
        check(sides[0], sides[1], "weights_bytes:3%", "weights_bytes:10%")
    for gates in (["weights_bytes:3%", "weights_bytes{model=moe}:10%"], ["weights_bytes{model=moe}:10%", "exact"]):
        assert verdicts(check(sides[0], sides[1], *gates)) == {"weights_bytes{model=moe}:10%": "no difference shown"}
    assert check(sides[0], sides[1], "weights_bytes:3%", "weights_bytes:3%").verdict == "worse"


def test_agreement_that_only_the_new_run_cannot_tell_is_not_dropped() -> None:
    """Its loads are equal; without picks that says nothing of where each token went."""
    told = side(moe(replace(LOADS, picks=PICKS)))
    for lost in (LOADS, replace(LOADS, picks=forced([balanced_picks(400, 8, 2)], tokens_sha256="other"))):
        found = check(told, side(moe(lost), run="new"))
        assert verdicts(found)["routing_agreement_ratio:-1%"] == found.verdict == "cannot tell"
    assert check(told, told, "routing").verdict == "no difference shown"


def test_a_reference_without_picks_cannot_tell_agreement_and_the_rest_is_judged() -> None:
    """Its npz may have been left out of the repository: that must not look like a pass."""
    found = check(side(moe(LOADS)), side(moe(replace(LOADS, picks=PICKS)), run="new"))
    assert found.verdict == "cannot tell"
    assert verdicts(found) == {"dead_experts:0": "no difference shown", "routing_agreement_ratio:-1%": "cannot tell"}
    assert "the baseline has no picks of forced tokens: is its .npz there?" in str(found.gates[0].ratio.reason)
    assert found.notes == ("The reference has no picks of forced tokens (moe): routing agreement is not judged.",)


@pytest.mark.parametrize(
    "gate", ["routing_agreement_ratio:-1%", "router_drift_js:+0.02", "weights_bytes:0%", "routing"]
)
def test_gates_on_no_time_do_not_ask_for_more_pairs(gate: str) -> None:
    sides = [side(moe(with_picks(PICKS, [8], [2]), exact("weights_bytes", 5)), run=run) for run in ("base", "new")]
    assert pairs_are_enough(sides[0], sides[1], {"moe": ()}, "pairs", [parse_gate(gate, "--fail-on")])


def test_another_checkpoint_is_not_gated_on_agreement_unless_that_is_asked_for() -> None:
    """A few training steps move some per cent of the picks; what tells collapse is gated all the same."""
    sides = [
        side(replace(moe(replace(LOADS, picks=PICKS)), facts={"revision": f"sha256:{run}"}), run=run)
        for run in ("a", "b")
    ]
    default = check(*sides, allow=("revision",))
    named = check(*sides, "routing_agreement_ratio:-1%", allow=("revision",))

    assert "dead_experts:0" in verdicts(default) and "routing_agreement_ratio:-1%" not in verdicts(default)
    assert set(verdicts(named)) == {"routing_agreement_ratio:-1%"}


# -- parts of runs -----------------------------------------------------------------------------------------------------


def busiest(number: float) -> MetricValue:
    labels = {"phase": "decode", "traffic": "offline", "window": "total"}
    return MetricValue(name="router_load_max_over_mean", value=number, labels=labels)


def test_a_part_of_a_run_routed_a_part_of_its_tokens_so_no_difference_is_a_fact() -> None:
    gate = "router_load_max_over_mean{phase=decode}:+0.2"
    sides = side(model(busiest(1.5))), side(model(busiest(1.8)), run="new")
    assert check(sides[0], sides[1], gate).verdict == "worse"
    stopped = check(sides[0], replace(sides[1], status="interrupted"), gate)
    assert (stopped.verdict, stopped.doubts[0].code) == ("cannot tell", "run_not_done")
    unfinished = exact("num_requests_unfinished", 3, traffic="offline", window="total")
    late = side(model(busiest(1.8), unfinished), run="new")  # its max_minutes were over
    assert check(sides[0], late, gate).verdict == "cannot tell"


def test_what_is_undecided_because_the_run_failed_is_not_forgiven_as_noise_is() -> None:
    whole, failed = (side(model(*values), run="new") for values in ((exact("weights_bytes", 100),), ()))
    reference = side(model(exact("weights_bytes", 100)))
    assert check(reference, failed, allow_undecided=True).exit_code == 0
    assert check(reference, replace(failed, status="failed"), allow_undecided=True).exit_code == 4
    assert check(reference, replace(whole, status="interrupted"), allow_undecided=True).exit_code == 0


def test_an_expert_that_died_is_caught_in_a_part_of_a_run_too() -> None:
    dead = PICKS.picks_TLK.copy()
    dead[dead == 3] = 4
    whole, without = (moe(with_picks(replace(PICKS, picks_TLK=picks), [8], [2])) for picks in (PICKS.picks_TLK, dead))
    assert np.isin(3, PICKS.picks_TLK)
    found = check(side(whole), side(without, run="new", status="interrupted"))
    assert verdicts(found)["dead_experts:0"] == "worse"


# -- requests that failed ----------------------------------------------------------------------------------------------


def loaded(times: float, failed: int, rounds: int = 1, run: str = "run") -> Baseline:
    """Decode steps of ``times`` a second; of 16 requests a round so many failed."""
    labels = {"traffic": "offline", "window": "total"}
    counts = exact("num_requests", 16 * rounds, **labels), exact("num_requests_failed", failed * rounds, **labels)
    return side(model(*launches("step_mean_s", [times * s for s in STEADY], **DECODE), *counts), run=run)


def test_a_run_that_is_faster_because_requests_failed_is_not_better() -> None:
    failing = check(loaded(1.0, 0), loaded(0.5, 8, run="new"), "timed")
    (gate,) = failing.gates
    assert (failing.verdict, failing.exit_code) == ("cannot tell", 4)
    assert gate.ratio.reason == "not the same work: 8 of 16 requests failed or were refused, 0 of 16 in the reference"
    assert check(loaded(1.0, 1), loaded(0.5, 1, rounds=3, run="new"), "timed").verdict == "better"


def test_a_figure_that_is_not_valid_is_no_answer_even_without_a_reason() -> None:
    broken = [replace(v, valid=False) for v in launches("step_mean_s", STEADY, **DECODE)]
    found = check(loaded(1.0, 0), side(model(*broken), run="new"), "timed")
    assert found.verdict == "cannot tell" and found.gates[0].ratio.reason == "a check failed"


def test_dollars_at_another_price_say_that_the_price_is_part_of_it() -> None:
    def dollars(times: float, usd_per_hour: float, run: str) -> Baseline:
        usd = launches("usd_per_1m_output_tokens", [times * s for s in STEADY], traffic="offline", window="total")
        return side(model(*usd), run=run, usd_per_second=usd_per_hour / 3600)

    dearer = check(dollars(1.0, 4.0, "a"), dollars(1.25, 5.0, "b"), "usd_per_1m_output_tokens:3%")
    assert dearer.verdict == "worse"
    assert str(dearer.gates[0].ratio.reason).endswith("at 4 USD/h against 5 USD/h, so the price is part of it")
    same = check(dollars(1.0, 4.0, "a"), dollars(1.25, 4.0, "b"), "usd_per_1m_output_tokens:3%")
    assert "price" not in str(same.gates[0].ratio.reason)


# -- few turns in which a side waits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stalls", "seconds", "verdict"),
    [(1, 0.3, "cannot tell"), (1, 0.02, "no difference shown"), (2, 0.3, "worse"), (0, 0.3, "no difference shown")],
)
def test_one_long_wait_in_each_launch_is_not_set_aside_as_if_it_were_nothing(
    tmp_path: Path, stalls: int, seconds: float, verdict: str
) -> None:
    """Of 120 steps of 10 ms, one that waits 300 ms is 24 %. Six such steps on one side: one time in 32 by chance."""
    waits = np.where(np.isin(np.arange(120), [40, 90][:stalls]), seconds, 0.01)
    passes = pairs(tmp_path, [1.0] * 6, lanes={"base": 0.01, "new": waits}, cpu_s={"base": 0.01, "new": 0.01})
    lone = [side(model(*launches("step_mean_s", [0.01], **DECODE)), run=run) for run in ("base", "new")]
    gate = parse_gate("step_mean_s{phase=decode}:1.5%", "--fail-on")
    (found,) = judge_pairs(lone[0], lone[1], {"moe": passes}, "pairs", [gate]).gates
    assert found.verdict == verdict
    assert (stalls, seconds) != (1, 0.3) or "the ratio is 1.242, and they hit one side more often" in str(
        found.ratio.reason
    )


# -- facts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fact", ["device", "format_version", "dtype", "schedule", "revision"])
def test_unequal_facts_are_refused_in_one_line_that_names_them_and_the_flag(fact: str) -> None:
    of_run = fact in ("device", "format_version")
    steps = launches("step_mean_s", STEADY, **DECODE)
    sides = [
        side(
            model(*steps, facts={} if of_run else {fact: said}), run=said, facts={fact: said} if of_run else {}
        )
        for said in ("old", "young")
    ]  # fmt: skip
    with pytest.raises(IncomparableError) as refused:
        check(sides[0], sides[1])
    (line,) = str(refused.value).splitlines()
    assert f"{fact.replace('_', ' ')}{'' if of_run else ' of moe'}: old against young" in line
    assert f"--allow {fact}" in line and refused.value.exit_code == 2
    assert check(sides[0], sides[1], allow={fact}).exit_code == 0


def test_what_rounds_otherwise_may_cost_an_expert_its_only_pick_and_that_is_no_dead_expert() -> None:
    """Expert 7 has one pick of 800. By the same facts any difference is one; on another processor that one flips."""
    few = PICKS.picks_TLK.copy()
    few[few == 7] = 6
    few[0, 0] = [0, 7]
    flipped = few.copy()
    flipped[0, 0] = [0, 6]
    picks = [
        moe(with_picks(replace(PICKS, picks_TLK=ids), [8], [2]), exact("total_params", 5)) for ids in (few, flipped)
    ]

    def gained(**facts: Any) -> str:
        found = check(side(picks[0]), side(picks[1], run="new", facts=facts), "dead_experts:0")
        return found.verdict

    assert gained() == gained(versions="moeprof 2") == "worse"
    assert gained(device="another") == gained(versions="moeprof 1, torch 3") == "no difference shown"
    dead = PICKS.picks_TLK.copy()
    dead[dead == 7] = 6
    sides = (moe(with_picks(replace(PICKS, picks_TLK=ids), [8], [2])) for ids in (PICKS.picks_TLK, dead))
    reference, other = sides
    elsewhere = side(other, run="new", facts={"device": "another"})
    assert check(side(reference), elsewhere, "routing").verdict == "worse"
