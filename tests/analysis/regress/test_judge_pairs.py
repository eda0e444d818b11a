"""Judging launch pairs: the sum of step times decides, waiting is no noise, and how many pairs would do."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from moeprof.analysis.compare.lanes import LaneTimes
from moeprof.analysis.regress.check import Stopping
from moeprof.analysis.regress.judge import judge_pairs, pairs_are_enough
from moeprof.analysis.regress.pairs import phase_pairs, turns_of
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.analysis.regress.verdict import judge_gates
from moeprof.analysis.stats.power import enough, half_width, lag_1_correlation, needed_pairs
from moeprof.analysis.stats.verdicts import Sample
from moeprof.core.baseline.baseline import Baseline
from moeprof.core.errors import IncomparableError
from moeprof.core.record.lanes import LanePass
from moeprof.core.workload.gates import parse_gate
from tests.helpers.planted_sides import DECODE, exact, launches, model, pairs, side, value

STEP = "step_mean_s{phase=decode}"
QUIET = (1.000, 1.001, 0.999, 1.002, 0.998, 1.000)
PREFILL = {**DECODE, "phase": "prefill"}
Mode = Literal["pairs", "processes"]


def lone(run: str, of_model: Mapping[str, Any] | None = None, **of_run: Any) -> Baseline:
    """A lone run: one launch, whose times say nothing."""
    steps = (*launches("step_mean_s", [0.01], **DECODE), *launches("step_mean_s", [0.02], **PREFILL))
    energy = value("energy_j_per_output_token", 1.0, traffic="offline")
    return side(model(exact("weights_bytes", 100), *steps, energy, facts=of_model), run=run, **of_run)


def check(passes: Sequence[LanePass], *gates: str, mode: Mode = "pairs", new: Baseline | None = None) -> Regression:
    written = [parse_gate(gate, "--fail-on") for gate in gates] or None
    return judge_pairs(lone("base"), new or lone("new"), {"moe": passes}, mode, written)


def only(regression: Regression) -> GateResult:
    (gate,) = regression.gates
    return gate


def spread(noise: float, num: int = 6, mean: float = 0.0) -> list[float]:
    """Log ratios with exactly this mean and standard deviation."""
    logs = np.linspace(-1, 1, num)
    return list(mean + noise * logs / logs.std(ddof=1))


def logs_of(passes: Sequence[LanePass], phase: str) -> list[float]:
    return list(phase_pairs(turns_of(passes), phase).logs)


def ratios(*args: Any) -> list[float]:
    return list(np.exp(spread(*args)))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_a_pair_is_the_ratio_of_summed_step_times_of_its_phase(tmp_path: Path) -> None:
    """Prefill steps take 10 and 20 ms, mixed ones 30 and 30 ms, decode steps 10 and 11 ms."""
    phase = ["prefill"] * 10 + ["mixed"] * 10 + ["decode"] * 20
    base = np.tile([0.01] * 10 + [0.03] * 10 + [0.01] * 20, 3)
    new = np.tile([0.02] * 10 + [0.03] * 10 + [0.011] * 20, 3)
    passes = pairs(tmp_path, [1.0], lanes={"base": base, "new": new}, phase=phase)
    assert logs_of(passes, "decode") == [pytest.approx(math.log(1.1))]
    assert logs_of(passes, "prefill") == [pytest.approx(math.log(500 / 400))]  # 200 + 300 ms against 100 + 300
    assert logs_of(passes, "all") == [pytest.approx(math.log(720 / 600))]


def test_several_loads_of_one_launch_are_summed_and_an_empty_phase_has_no_pair(tmp_path: Path) -> None:
    few = pairs(tmp_path, [1.2], num_steps=10)
    many = pairs(tmp_path, [1.0], num_steps=30, concurrency=32)
    assert logs_of((*few, *many), "decode") == [pytest.approx(math.log(42 / 40))]  # 10 * 1.2 + 30 over 40
    assert logs_of(few, "prefill") == []


def test_a_few_very_slow_steps_are_real_cost(tmp_path: Path) -> None:
    """Every 20th step takes three times as long: 10 % in total, and nothing at all in the median."""
    new = np.where(np.arange(120) % 20 == 0, 0.03, 0.01)
    passes = pairs(tmp_path, QUIET, lanes={"base": 0.01, "new": new})
    gate = only(check(passes, STEP + ":1.5%"))
    assert gate.verdict == "worse" and gate.ratio.value == pytest.approx(1.1)


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "verdict", "code"),
    [(1.03, "worse", 3), (1.0, "no difference shown", 0), (0.97, "better", 0), (1.015, "cannot tell", 4)],
)
def test_three_percent_is_told_by_six_quiet_pairs(tmp_path: Path, times: float, verdict: str, code: int) -> None:
    found = check(pairs(tmp_path, [times * ratio for ratio in QUIET]), "timed")
    gate = next(gate for gate in found.gates if gate.key == ("step_mean_s", (("phase", "decode"),)))
    assert (gate.verdict, gate.n) == (verdict, "6 pairs")
    assert gate.ratio.value == pytest.approx(times, rel=1e-4)
    assert gate.other_launches == pytest.approx([times * ratio for ratio in QUIET])
    assert gate.reference is None and gate.other is None
    assert (found.exit_code, len(found.gates)) == (code, 1)  # no step carries prefill: its default gate does not apply


def test_a_named_gate_on_a_phase_that_was_not_measured_cannot_be_told(tmp_path: Path) -> None:
    gate = only(check(pairs(tmp_path, QUIET), "step_mean_s{phase=prefill}:3%"))
    assert gate.verdict == "cannot tell" and gate.ratio.reason == "no step of this phase was measured"


def test_a_threshold_replaces_the_floor(tmp_path: Path) -> None:
    passes = pairs(tmp_path, [1.03 * ratio for ratio in QUIET])
    assert check(passes, f"{STEP}:5%").verdict == "no difference shown"
    assert check(passes, f"{STEP}:1%").verdict == "worse"
    assert check(passes, f"{STEP}:0.0001").verdict == "worse"  # 0.1 ms of 10 ms
    assert check(passes, f"{STEP}:0.001").verdict == "no difference shown"
    assert check(passes, f"{STEP}:+-1%").verdict == "worse"


def test_two_processes_have_a_floor_of_5_percent(tmp_path: Path) -> None:
    passes = pairs(tmp_path, [1.03 * ratio for ratio in QUIET])
    decode = next(g for g in check(passes, "timed", mode="processes").gates if "decode" in g.label)
    assert decode.verdict == "no difference shown" and decode.gate.amount == 0.05
    tenth = pairs(tmp_path / "tenth", ratios(0.03, 6, math.log(1.10)))
    assert next(g for g in check(tenth, "timed", mode="processes").gates if "decode" in g.label).verdict == "worse"


def test_with_more_spread_it_cannot_be_told_and_it_is_said_how_many_pairs_it_would_take(tmp_path: Path) -> None:
    gate = only(check(pairs(tmp_path, ratios(0.08, 6, math.log(1.05))), f"{STEP}:5%", mode="processes"))
    assert gate.verdict == "cannot tell"
    assert gate.decide == "a quieter machine, with --until-precise (about 62 launch pairs on this one; 6 were measured)"
    assert needed_pairs(spread(0.08), 0.05) == 62


def test_fewer_than_six_pairs_cannot_tell(tmp_path: Path) -> None:
    gate = only(check(pairs(tmp_path, [1.5, 1.5, 1.5]), f"{STEP}:5%"))
    assert gate.verdict == "cannot tell" and gate.ratio.value == pytest.approx(1.5)
    assert gate.decide == "at least 6 launch pairs (3 were measured)"
    assert gate.ratio.reason == "3 pairs; at least 6 are needed"


def test_a_figure_near_the_threshold_says_so(tmp_path: Path) -> None:
    gate = only(check(pairs(tmp_path, [1.015 * ratio for ratio in QUIET]), f"{STEP}:1.5%"))
    assert gate.verdict == "cannot tell" and "lies near the threshold" in str(gate.decide)


# -- false alarms, power, precision ------------------------------------------------------------------------------------


def verdicts(
    generator: np.random.Generator, noise: float, slow: float, num: int = 6, floor: float = 0.015
) -> list[str]:
    """Of the two default gates of one comparison."""
    samples = {}
    for gate in range(2):
        logs = generator.normal(math.log(slow), noise, num)
        samples[gate] = sample(logs.tolist(), floor)
    return [ratio.verdict for ratio in judge_gates(samples).values()]


def sample(logs: Sequence[float], floor: float) -> Sample:
    return Sample(logs=tuple(logs), floor_ratio=floor)


@pytest.mark.parametrize("noise", [0.02, 0.005])
def test_of_2000_comparisons_of_the_same_code_at_most_1_in_100_alarms(noise: float) -> None:
    generator = np.random.default_rng(3)
    assert sum("worse" in verdicts(generator, noise, 1.0) for _ in range(2000)) <= 20


def test_three_percent_slower_is_caught_in_nine_of_ten() -> None:
    generator = np.random.default_rng(4)
    assert sum(verdicts(generator, 0.005, 1.03)[0] == "worse" for _ in range(500)) >= 450
    assert sum(verdicts(generator, 0.03, 1.10, floor=0.05)[0] == "worse" for _ in range(500)) >= 450


def test_quiet_pairs_of_the_same_code_mostly_show_no_difference() -> None:
    generator = np.random.default_rng(5)
    told = [verdict for _ in range(500) for verdict in verdicts(generator, 0.005, 1.0)]
    assert told.count("no difference shown") >= 0.9 * len(told)


def test_half_the_interval_is_that_of_the_verdict() -> None:
    """Six pairs 1 % apart, one gate: t of 5 degrees at 0.99 is 3.365, the error 1 % / sqrt(6)."""
    assert half_width(spread(0.01)) == pytest.approx(3.365 * 0.01 / math.sqrt(6), rel=1e-3)
    assert half_width(spread(0.01), 2) == pytest.approx(4.032 * 0.01 / math.sqrt(6), rel=1e-3)
    assert half_width([0.1]) == math.inf and half_width([0.1, 0.1]) == 0.0


def test_enough_looks_at_precision_and_never_at_the_verdict() -> None:
    assert enough(spread(0.005), 0.015) and enough(spread(0.005, 6, 0.5), 0.015)
    assert not enough(spread(0.01), 0.015) and not enough(spread(0.01, 6, 0.5), 0.015)
    assert not enough(spread(0.0001, 5), 0.015)  # fewer than six


@pytest.mark.parametrize(("noise", "floor"), [(0.01, 0.015), (0.03, 0.05), (0.06, 0.05)])
def test_the_pairs_that_are_said_to_be_needed_would_do_within_a_factor(noise: float, floor: float) -> None:
    """Twice as many pairs as are needed by the true spread decide nearly always, half as many often do not."""
    needed, generator = needed_pairs(spread(noise, 200), floor), np.random.default_rng(6)
    assert needed is not None

    def told(num: int) -> float:
        logs = generator.normal(0, noise, (300, num))
        found = [judge_gates({0: sample(row.tolist(), floor)})[0].verdict for row in logs]
        return sum(verdict != "cannot tell" for verdict in found) / 300

    assert told(needed) >= 0.9 and told(2 * needed) >= 0.99 and told(max(needed // 4, 3)) < 0.7
    from_six = [needed_pairs(generator.normal(0, noise, 6).tolist(), floor) or 1000 for _ in range(300)]
    assert needed / 2 <= float(np.median(from_six)) <= 2 * needed


def test_measuring_more_stops_when_every_gate_is_precise(tmp_path: Path) -> None:
    phase = ["prefill"] * 10 + ["decode"] * 30
    quiet = pairs(tmp_path / "quiet", QUIET, phase=phase)
    wild = pairs(tmp_path / "wild", ratios(0.03), phase=phase)
    sides = lone("base"), lone("new")
    assert pairs_are_enough(*sides, {"moe": quiet}, "pairs")
    assert not pairs_are_enough(*sides, {"moe": quiet[:5]}, "pairs")
    assert not pairs_are_enough(*sides, {"moe": wild}, "pairs")
    assert pairs_are_enough(*sides, {"moe": wild}, "pairs", [parse_gate(f"{STEP}:20%")])


def stopped_on_precision(generator: np.random.Generator, noise: float, mean: float) -> list[float]:
    """Log ratios of pairs, measured until they look precise, and one more."""
    logs = generator.normal(mean, noise, 61).tolist()
    stopping = Stopping(launches=6, until_precise=True, max_minutes=None)
    done = 0
    while stopping.wants_more(done, 0.0, lambda num: enough(logs[:num], 0.015)):
        done += 1
    return list(logs[:done])


@pytest.mark.parametrize("noise", [0.01, 0.015])
def test_a_change_of_exactly_the_floor_is_called_none_in_at_most_1_of_100_stopped_checks(noise: float) -> None:
    """The nominal error is 1 %; stopping on precision and judging as usual errs in about 1.5 %."""
    generator, floor = np.random.default_rng(8), 0.015
    stopped = [stopped_on_precision(generator, noise, math.log1p(floor)) for _ in range(4_000)]
    samples = {i: sample(logs, floor) for i, logs in enumerate(stopped)}
    usual, careful = (
        sum(ratio.verdict == "no difference shown" for ratio in judge_gates(samples, until_precise=asked).values())
        for asked in (False, True)
    )
    assert careful <= 40 < usual
    assert min(map(len, stopped)) >= 7 and np.mean([len(logs) for logs in stopped]) < 30


def test_one_more_pair_is_measured_after_the_intervals_are_narrow_enough() -> None:
    stopping = Stopping(launches=6, until_precise=True, max_minutes=None)

    def precise_from(least: int) -> int:
        done = 0
        while stopping.wants_more(done, 0.0, lambda num: num >= least):
            done += 1
        return done

    assert precise_from(0) == 7 and precise_from(6) == 7 and precise_from(9) == 10
    assert precise_from(1_000) == 60
    assert not Stopping(launches=6, until_precise=False, max_minutes=None).wants_more(6, 0.0, lambda num: False)
    assert not Stopping(launches=6, until_precise=True, max_minutes=1).wants_more(6, 60.0, lambda num: False)


def test_a_page_says_that_pairs_were_added_until_they_were_precise(tmp_path: Path) -> None:
    passes = pairs(tmp_path, QUIET)
    sides = lone("base"), lone("new")
    assert not any("one more" in note for note in judge_pairs(*sides, {"moe": passes}, "pairs").notes)
    said = judge_pairs(*sides, {"moe": passes}, "pairs", until_precise=True).notes
    assert any("at an error of 0.5 % instead of 1 %" in note for note in said)


# -- pairs that remember each other ------------------------------------------------------------------------------------


def test_the_correlation_of_neighbouring_pairs_by_hand() -> None:
    """Deviations -3, -1, 1, 3, 1, -1 of mean 0: products 3 - 1 + 3 + 3 - 1 = 7, squares 22; 7 / 22 + 1 / 6 = 0.485."""
    assert lag_1_correlation([-0.03, -0.01, 0.01, 0.03, 0.01, -0.01]) == pytest.approx(7 / 22 + 1 / 6)
    assert lag_1_correlation([0.01, -0.01] * 3) == pytest.approx(-5 / 6 + 1 / 6)
    assert lag_1_correlation([0.0, 0.01, 0.02]) is None  # fewer than six
    assert lag_1_correlation([0.01] * 6) is None  # no spread


def test_pairs_that_resemble_their_neighbours_are_a_reason_to_doubt(tmp_path: Path) -> None:
    wave = np.exp(0.01 * np.sin(np.linspace(0, 2 * np.pi, 12)))
    found = check(pairs(tmp_path / "wave", list(wave)), f"{STEP}:1.5%")
    gate = only(found)
    assert gate.lag_1_correlation is not None and gate.lag_1_correlation > 0.8
    (doubt,) = [doubt for doubt in found.doubts if doubt.code == "pairs_correlated"]
    assert doubt.severity == "warning" and "over 12 pairs" in doubt.text and "--launches 20" in doubt.text
    quiet = check(pairs(tmp_path / "quiet", QUIET), f"{STEP}:1.5%")
    assert not [doubt for doubt in quiet.doubts if doubt.code == "pairs_correlated"]


def test_independent_pairs_are_seldom_called_correlated() -> None:
    generator = np.random.default_rng(9)

    def share(num: int, memory: float) -> float:
        found = 0
        for _ in range(500):
            noise = generator.normal(size=num)
            for i in range(1, num):
                noise[i] = memory * noise[i - 1] + math.sqrt(1 - memory**2) * noise[i]
            found += (lag_1_correlation(noise.tolist()) or 0.0) > 0.5
        return found / 500

    assert share(6, 0.0) < 0.08 and share(12, 0.0) < 0.05 and share(20, 0.0) < 0.03
    assert share(6, 0.9) > 0.2 and share(20, 0.9) > 0.75


# -- waiting looks like an interruption --------------------------------------------------------------------------------


def interrupted(folder: Path, base: Sequence[int], new: Sequence[int]) -> tuple[LanePass, ...]:
    """Six pairs of 120 turns of 10 ms; in these turns of each launch a side waits for another 20 ms."""
    waits = {"base": base, "new": new}
    seconds = {lane: np.where(np.isin(np.arange(120), turns), 0.03, 0.01) for lane, turns in waits.items()}
    return pairs(folder, QUIET, lanes=seconds, cpu_s={"base": 0.01, "new": 0.01})


def test_interruptions_that_hit_both_sides_alike_are_set_aside(tmp_path: Path) -> None:
    gate = only(check(interrupted(tmp_path, [3, 50, 90], [7, 60, 99, 110]), f"{STEP}:1.5%"))
    assert gate.verdict == "no difference shown" and gate.ratio.value == pytest.approx(1.0)
    assert "42 interruptions in 720 turns were set aside" in str(gate.ratio.reason)
    few = replace(phase_pairs((), "decode"), turns=9, taken=(1, 0), all_count=False)
    assert few.note == "1 interruption in 9 turns was set aside"


def test_a_change_that_waits_is_no_interruption(tmp_path: Path) -> None:
    """Six of 120 steps wait twice their time, on the new side alone: 10 % in total."""
    gate = only(check(interrupted(tmp_path, [], range(0, 120, 20)), f"{STEP}:1.5%"))
    assert gate.verdict == "worse" and gate.ratio.value == pytest.approx(1.1)
    assert "far above processor time in 0 turns of base and 36 of new" in str(gate.ratio.reason)
    faster = only(check(interrupted(tmp_path / "faster", range(0, 120, 20), [3]), f"{STEP}:1.5%"))
    assert faster.verdict == "better"


def test_a_change_that_waits_in_every_step_is_seen(tmp_path: Path) -> None:
    gate = only(check(interrupted(tmp_path, [], range(120)), f"{STEP}:1.5%"))
    assert gate.verdict == "worse" and gate.ratio.value == pytest.approx(3.0)


# -- the machine -------------------------------------------------------------------------------------------------------


def with_kernels(passes: Sequence[LanePass], base: float, new: float) -> tuple[LanePass, ...]:
    """The reference kernel takes ``base`` and ``new`` seconds, 1 % more after a measurement than before."""
    for one, noise in zip(passes, QUIET, strict=True):
        file = one.path / "pass.json"
        info = json.loads(file.read_text())
        timed = {"base": [base, 1.01 * base], "new": [noise * new, 1.01 * noise * new]}
        file.write_text(json.dumps({**info, "reference_kernel_s": timed}))
    return tuple(LanePass(one.path) for one in passes)


@pytest.mark.parametrize(
    ("times", "kernel", "verdict"),
    [(1.2, 1.0, "worse"), (1.2, 1.15, "cannot tell"), (1.2, 0.9, "worse"), (1.0, 1.2, "cannot tell")],
)
def test_between_two_processes_the_machine_may_take_a_verdict_back(
    tmp_path: Path, times: float, kernel: float, verdict: str
) -> None:
    passes = with_kernels(pairs(tmp_path, [times * ratio for ratio in QUIET]), 0.05, kernel * 0.05)
    found = check(passes, f"{STEP}:5%", mode="processes")
    assert only(found).verdict == verdict and only(found).ratio.value == pytest.approx(times, rel=1e-4)
    assert found.noise is not None and found.noise.shift == pytest.approx(math.log(kernel), abs=1e-4)
    said = {1.0: "the same time as in", 1.15: "15.0 % more time than in", 0.9: "10.0 % less time than in"}
    assert f"in the new side's process it took {said.get(kernel, '')}" in found.noise.text


def test_in_one_process_the_kernel_tells_only_how_much_the_machine_drifted(tmp_path: Path) -> None:
    passes = with_kernels(pairs(tmp_path, [1.2 * ratio for ratio in QUIET]), 0.05, 0.05)
    found = check(passes, f"{STEP}:5%")
    assert found.verdict == "worse" and found.noise is not None and found.noise.shift is None
    assert found.noise.drift_ratio == pytest.approx(1.01 * 1.002 / 0.998)


# -- what is judged beside ---------------------------------------------------------------------------------------------


def test_what_is_tried_may_differ_and_the_machine_may_not(tmp_path: Path) -> None:
    passes = pairs(tmp_path, QUIET)
    tried = {"model": "bigger", "revision": "b" * 12, "dtype": "float16", "backend": "eager"}
    found = check(passes, "exact", f"{STEP}:1.5%", new=lone("new", tried, facts={"kv_tokens": 9}))
    assert found.verdict == "no difference shown"
    assert {one.name for one in found.differences} == set(tried)
    assert not any(one.forbids for one in found.differences)
    for other in (lone("new", {"schedule": "sha256 0"}), lone("new", facts={"device": "another"})):
        with pytest.raises(IncomparableError, match="forbids the timed gates"):
            check(passes, f"{STEP}:1.5%", new=other)


def test_five_percent_more_weight_is_caught_beside_equal_times(tmp_path: Path) -> None:
    heavier = replace(lone("new"), models=(model(exact("weights_bytes", 105), facts={"model": "bigger"}),))
    found = check(pairs(tmp_path, QUIET), "exact", new=heavier)
    assert found.verdict == "worse" and only(found).ratio.value == pytest.approx(1.05)


def test_energy_of_one_launch_is_no_default_gate_and_undecided_where_it_is_named(tmp_path: Path) -> None:
    passes = pairs(tmp_path, QUIET, phase=["prefill"] * 10 + ["decode"] * 30)
    assert {gate.key[0] for gate in check(passes).gates} == {"weights_bytes", "step_mean_s"}
    gate = only(check(passes, "energy_j_per_output_token:3%"))
    assert gate.verdict == "cannot tell" and gate.ratio.reason == "launch pairs measure step times only"


def test_a_model_may_have_another_name_before_and_after(tmp_path: Path) -> None:
    base = lone("base")
    renamed = replace(base, models=(replace(base.models[0], name="old"),))
    found = judge_pairs(renamed, lone("new"), {"moe": pairs(tmp_path, QUIET)}, "pairs", [parse_gate(f"{STEP}:1.5%")])
    assert found.verdict == "no difference shown" and only(found).model == "moe"


def test_turns_know_which_side_was_interrupted(tmp_path: Path) -> None:
    from moeprof.analysis.compare.lanes import lane_times

    (one, *_) = interrupted(tmp_path, [3], [7, 60])
    every: LaneTimes = lane_times(one, keep_taken=True)
    assert every.taken_SL.sum(axis=0).tolist() == [1, 2] and len(every.time_SL) == 120
    assert len(lane_times(one).time_SL) == 117 and lane_times(one).set_aside == 3
