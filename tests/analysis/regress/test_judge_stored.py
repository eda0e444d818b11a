"""Judging a run against a stored baseline: counted facts, launches, the machine, and what may not be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.compare.comparable import Difference
from moeprof.analysis.regress.judge import judge_stored
from moeprof.analysis.regress.noise import taken_back
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.analysis.regress.routing.health import routing_change
from moeprof.analysis.regress.routing.pairs import experts_difference
from moeprof.analysis.regress.verdict import judge_gates
from moeprof.analysis.stats import power
from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.analysis.stats.verdicts import sample_of
from moeprof.cli import main as cli
from moeprof.core.baseline.baseline import Baseline, RoutingLoad
from moeprof.core.errors import IncomparableError, InputError
from moeprof.core.metric import MetricValue
from moeprof.core.workload.gates import parse_gate
from tests.helpers.baselines import LAYERS, make_baseline, make_model, make_picks
from tests.helpers.planted_sides import DECODE, STEADY, exact, launches, model, priced, side, stepped, value

STEP = "step_mean_s{phase=decode}"
PARAMS = exact("total_params", 1000)


def check(reference: Baseline, other: Baseline, *gates: str, **options: Any) -> Regression:
    return judge_stored(reference, other, [parse_gate(gate, "--fail-on") for gate in gates] or None, **options)


def only(regression: Regression) -> GateResult:
    (gate,) = regression.gates
    return gate


def judged(text: str, reference: MetricValue, other: MetricValue, **options: Any) -> GateResult:
    return only(check(side(model(reference)), side(model(other), run="new"), text, **options))


def noisy(noise: float, num: int = 6) -> list[float]:
    """Launches with exactly this standard deviation of their logarithms."""
    logs = np.linspace(-1, 1, num)
    return list(np.exp(noise * logs / logs.std(ddof=1)))


@pytest.mark.parametrize(
    ("method", "times", "verdict"),
    [("calibration", 1.25, "worse"), ("roofline", 1.25, "cannot tell"), ("roofline", 1.8, "worse")],
)
def test_prices_split_by_different_methods_are_no_verdict_inside_the_bounds(
    method: str, times: float, verdict: str
) -> None:
    gate = only(
        check(
            side(model(*priced(1.0, "calibration"))),
            side(model(*priced(times, method)), run="new"),
            "usd_per_1m_output_tokens:10%",
        )
    )
    assert gate.ratio.verdict == verdict
    assert gate.ratio.value == pytest.approx(times)
    if verdict == "cannot tell":  # 1.25 * 0.8 / 1.2 to 1.25 * 1.2 / 0.8
        assert (gate.ratio.low, gate.ratio.high) == pytest.approx((0.8333, 1.875), rel=1e-3)


# -- counted facts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reference", "other", "verdict"),
    [
        ("weights_bytes:0%", 100, 100, "no difference shown"),
        ("weights_bytes:0%", 100, 101, "worse"),
        ("weights_bytes:0%", 100, 99, "better"),
        ("weights_bytes:5%", 100, 105, "no difference shown"),
        ("weights_bytes:5%", 100, 106, "worse"),
        ("weights_bytes:5%", 100, 94, "better"),
        ("weights_bytes:5", 100, 105, "no difference shown"),
        ("weights_bytes:5", 100, 106, "worse"),
        ("weights_bytes:+-0", 100, 99, "worse"),
        ("total_params:+0%", 100, 101, "worse"),
        ("total_params:-0%", 100, 101, "better"),
        ("cold_expert_bytes:0", 0, 1, "worse"),
        ("cold_expert_bytes:0", 0, 0, "no difference shown"),
        ("max_concurrent_sequences:10%", 100, 90, "no difference shown"),
        ("max_concurrent_sequences:10%", 100, 89, "worse"),
    ],
)
def test_counted_facts_are_compared_exactly_with_the_gates_allowance(
    text: str, reference: float, other: float, verdict: str
) -> None:
    name = text.partition(":")[0]
    gate = judged(text, exact(name, reference), exact(name, other))
    assert (gate.verdict, gate.n, gate.decide) == (verdict, "exact", None)
    assert gate.ratio.value == (other / reference if reference else None)


def test_five_percent_more_weight_or_kv_bytes_are_caught_by_the_defaults() -> None:
    def of(times: float, name: str) -> Baseline:
        return side(model(exact(name, round(1000 * times))), run=f"run-{times}")

    for name in ("weights_bytes", "kv_bytes_per_token", "kv_cache_bytes"):
        found = check(of(1, name), of(1.05, name))
        assert (found.verdict, found.exit_code) == ("worse", 3), name
        assert check(of(1, name), of(1, name)).exit_code == 0


def test_quality_is_compared_on_the_same_text_only() -> None:
    def bits(number: float, n: int = 16) -> MetricValue:
        return MetricValue(name="bits_per_byte", value=number, n=n)

    assert judged("quality", bits(1.0), bits(1.005)).verdict == "no difference shown"
    assert judged("quality", bits(1.0), bits(1.02)).verdict == "worse"
    other_text = judged("quality", bits(1.0), bits(1.0, n=8))
    assert other_text.verdict == "cannot tell" and "first 16 and the first 8 requests" in str(other_text.ratio.reason)


def test_a_figure_of_one_side_only_cannot_be_told() -> None:
    missing = judged("weights_bytes:0%", exact("weights_bytes", 5), value("weights_bytes", None))
    assert missing.verdict == "cannot tell" and missing.ratio.reason == "the new run: no_counter"
    gone = judged("weights_bytes:0%", exact("weights_bytes", 5), PARAMS)
    assert gone.ratio.reason == "the new run: it has no such figure"


# -- routing -----------------------------------------------------------------------------------------------------------


def load(number: float, half: float | None = None) -> MetricValue:
    low, high = (None, None) if half is None else (number - half, number + half)
    labels = {"phase": "decode", "traffic": "open", "window": "total"}
    return MetricValue(name="router_load_max_over_mean", value=number, ci_low=low, ci_high=high, labels=labels)


def test_routing_of_the_same_weights_and_tokens_is_exact_and_that_of_other_weights_a_sample() -> None:
    gate = "router_load_max_over_mean{phase=decode}:+0.2"
    assert judged(gate, load(1.5, 0.3), load(1.6, 0.3)).verdict == "no difference shown"
    assert judged(gate, load(1.5, 0.3), load(1.75, 0.3)).verdict == "worse"

    def retrained(reference: MetricValue, other: MetricValue) -> str:
        sides = side(model(reference)), side(model(other, facts={"revision": "b" * 12}), run="new")
        with pytest.raises(IncomparableError, match=r"revision of moe: a+ against b+: forbids the routing gates"):
            check(*sides, gate)
        return only(check(*sides, gate, allow=("revision",))).verdict

    assert retrained(load(1.5, 0.03), load(1.6, 0.04)) == "no difference shown"  # +0.1 +- 0.05
    assert retrained(load(1.5, 0.03), load(1.8, 0.04)) == "worse"  # +0.3 +- 0.05
    assert retrained(load(1.5, 0.03), load(1.72, 0.04)) == "cannot tell"  # +0.22 +- 0.05
    assert retrained(load(1.5, 0.3), load(1.5, 0.4)) == "cannot tell"  # 0 +- 0.5: wider than what is allowed
    assert retrained(load(1.5), load(1.5)) == "cannot tell"  # no interval at all


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "low", "high", "verdict"),
    [
        ("ttft_p50_s<=0.5", 0.3, 0.4, "no difference shown"),
        ("ttft_p50_s<=0.35", 0.3, 0.4, "cannot tell"),
        ("ttft_p50_s<=0.2", 0.3, 0.4, "worse"),
        ("ttft_p50_s>=0.2", 0.3, 0.4, "no difference shown"),
        ("ttft_p50_s>=0.5", 0.3, 0.4, "worse"),
    ],
)
def test_a_bound_outside_the_interval_decides(text: str, low: float, high: float, verdict: str) -> None:
    labels = {"traffic": "open", "window": "total"}
    measured = MetricValue(name="ttft_p50_s", value=0.35, ci_low=low, ci_high=high, labels=labels)
    assert judged(text, value("ttft_p50_s", None, **labels), measured).verdict == verdict


def test_a_bound_needs_no_equal_machine_and_a_bare_time_is_no_answer() -> None:
    other = side(model(PARAMS), run="new", facts={"device": "another"})
    assert only(check(side(model(PARAMS)), other, "total_params<=1000")).verdict == "no difference shown"
    assert only(check(side(model(PARAMS)), other, "total_params<=999")).verdict == "worse"
    bare = judged(
        "step_mean_s{phase=decode}<=1", value("step_mean_s", 0.1, **DECODE), value("step_mean_s", 0.1, **DECODE)
    )
    assert bare.verdict == "cannot tell" and "has no interval" in str(bare.ratio.reason)


# -- launches ----------------------------------------------------------------------------------------------------------


def test_launches_25_percent_slower_are_worse_and_as_much_faster_better() -> None:
    slower = check(stepped(), stepped(1.25, run="new"), f"{STEP}:10%")
    gate = only(slower)
    assert (slower.verdict, slower.exit_code, gate.n) == ("worse", 3, "6 against 6 launches")
    assert gate.ratio.value == pytest.approx(1.25) and gate.reference_launches == STEADY
    assert gate.decide is None
    assert check(stepped(1.25), stepped(run="new"), f"{STEP}:10%").verdict == "better"


def test_equal_launches_show_no_difference() -> None:
    found = check(stepped(), stepped(run="new"))
    assert (found.verdict, found.exit_code) == ("no difference shown", 0)
    assert only(found).gate.amount == 0.10


def test_a_threshold_replaces_the_floor_and_may_stand_in_the_metrics_unit() -> None:
    """5 % slower: within the floor of 10 %, beyond 2 %, and beyond 20 ms of a second."""
    reference, other = stepped(seconds=noisy(0.005)), stepped(1.05, noisy(0.005), run="new")
    assert check(reference, other, "timed").verdict == "no difference shown"
    assert check(reference, other, f"{STEP}:2%").verdict == "worse"
    assert check(reference, other, f"{STEP}:0.02").verdict == "worse"
    assert check(reference, other, f"{STEP}:0.08").verdict == "no difference shown"


def test_a_fall_is_measured_downwards() -> None:
    """Where more is better, 10 % is a fall to 0.9, not to 1 / 1.1."""

    def rate(times: float, run: str) -> Baseline:
        labels = {"traffic": "offline", "window": "total"}
        return side(model(*launches("output_tokens_per_s", [times * x for x in noisy(0.001)], **labels)), run=run)

    assert check(rate(1, "a"), rate(0.905, "b"), "output_tokens_per_s:10%").verdict == "no difference shown"
    assert check(rate(1, "a"), rate(0.89, "b"), "output_tokens_per_s:10%").verdict == "worse"
    assert check(rate(1, "a"), rate(1.11, "b"), "output_tokens_per_s:10%").verdict == "better"
    assert check(rate(1, "a"), rate(1.11, "b"), "output_tokens_per_s:+-10%").verdict == "worse"


@pytest.mark.parametrize(("num", "said"), [(1, "1 launch; "), (3, "3 launches; ")])
def test_with_fewer_than_5_launches_a_side_it_is_said_how_many_are_needed(num: int, said: str) -> None:
    found = check(stepped(seconds=STEADY[:num]), stepped(1.5, STEADY[:num], run="new"), f"{STEP}:10%")
    gate = only(found)
    assert (found.verdict, found.exit_code) == ("cannot tell", 4)
    assert gate.ratio.reason == f"{said}at least 5 a side are needed: run with --launches 6"
    assert gate.ratio.value == pytest.approx(1.5) and str(gate.decide).startswith(f"5 launches a side ({num} w")
    assert check(stepped(seconds=STEADY[:num]), stepped(run="new"), STEP + ":9%", allow_undecided=True).exit_code == 0


def test_a_figure_whose_check_failed_cannot_be_told() -> None:
    sides = [launches("step_mean_s", STEADY, **DECODE) for _ in range(2)]
    broken = [replace(v, valid=False, reasons=("the instruments cost too much",)) for v in sides[1]]
    found = only(check(side(model(*sides[0])), side(model(*broken), run="new"), f"{STEP}:10%"))
    assert (found.verdict, found.ratio.reason) == ("cannot tell", "the instruments cost too much")


def test_an_undecided_gate_says_how_many_launches_would_decide() -> None:
    """Launches 8 % apart cannot show 10 %; a baseline of 100 % apart can never be enough by itself."""
    gate = only(check(stepped(seconds=noisy(0.08)), stepped(1.02, noisy(0.08), run="new"), f"{STEP}:10%"))
    assert gate.verdict == "cannot tell"
    pairs = "launch pairs, with regress --ab"
    assert gate.decide == f"{pairs} (else about 33 launches a side, the baseline's too; 6 were measured)"
    steady = only(check(stepped(seconds=noisy(0.02)), stepped(1.02, noisy(0.08), run="new"), f"{STEP}:10%"))
    assert steady.decide == f"{pairs} (else about 22 launches of the new run; 6 were measured)"
    wild = only(check(stepped(seconds=noisy(1.0)), stepped(1.02, noisy(1.0), run="new"), f"{STEP}:1%"))
    assert str(wild.decide).startswith(f"{pairs} (else more than 1,000 launches a side")
    near = only(check(stepped(seconds=noisy(0.01)), stepped(1.1, noisy(0.01), run="new"), f"{STEP}:10%"))
    assert near.verdict == "cannot tell" and "lies near the threshold" in str(near.decide)


def test_the_launches_that_are_said_to_be_needed_would_mostly_do() -> None:
    """Of twin runs with so many launches, at least nine in ten are decided; with a third of them, hardly any."""
    noise, floor, generator = 0.06, 0.10, np.random.default_rng(5)
    needed = power.needed_launches(
        np.log(noisy(noise, 40)).tolist(), np.log(noisy(noise, 40)).tolist(), floor, fixed=False
    )
    assert needed is not None and 10 < needed < 40

    def decided(num: int) -> float:
        told = 0
        for _ in range(200):
            sides = np.exp(generator.normal(0, noise, (2, num)))
            sample = sample_of(sides[0].tolist(), sides[1].tolist())
            assert sample is not None
            told += judge_gates({0: replace(sample, floor_ratio=floor)})[0].verdict != "cannot tell"
        return told / 200

    assert decided(needed) >= 0.9 and decided(max(needed // 3, 3)) < 0.6


# -- false alarms and power --------------------------------------------------------------------------------------------


def family(generator: np.random.Generator, noise: float, slow: float, num: int) -> list[str]:
    """Verdicts of the three default timed gates of one comparison, each with the floor of stored runs."""
    samples = {}
    for gate in range(3):
        sample = sample_of(
            np.exp(generator.normal(0, noise, num)).tolist(), (slow * np.exp(generator.normal(0, noise, num))).tolist()
        )
        assert sample is not None
        samples[gate] = replace(sample, floor_ratio=0.10)
    return [ratio.verdict for ratio in judge_gates(samples).values()]


@pytest.mark.parametrize("noise", [0.02, 0.10])
def test_of_2000_comparisons_of_the_same_code_at_most_1_in_100_alarms(noise: float) -> None:
    generator = np.random.default_rng(1)
    alarms = sum("worse" in family(generator, noise, 1.0, 6) for _ in range(2000))
    assert alarms <= 20


def test_25_percent_is_caught_and_10_percent_is_never_called_better() -> None:
    generator = np.random.default_rng(2)
    quarter = [family(generator, 0.04, 1.25, 6) for _ in range(300)]
    assert sum(verdicts[0] == "worse" for verdicts in quarter) >= 270
    for noise in (0.02, 0.10):
        tenth = [verdict for _ in range(1000) for verdict in family(generator, noise, 1.10, 6)]
        assert "better" not in tenth
        assert tenth.count("no difference shown") <= 0.02 * len(tenth)  # its interval has a confidence of its own: 1 %


# -- the machine -------------------------------------------------------------------------------------------------------


def with_kernel(times: float, kernel: float, run: str) -> Baseline:
    timed = launches("reference_kernel_s", [kernel * s for s in STEADY])
    return side(model(*launches("step_mean_s", [times * s for s in STEADY], **DECODE), *timed), run=run)


@pytest.mark.parametrize(
    ("times", "kernel", "verdict"),
    [
        (1.25, 1.00, "worse"),
        (1.25, 1.05, "worse"),  # the machine explains a fifth of it
        (1.25, 1.20, "cannot tell"),  # most of it
        (1.25, 0.80, "worse"),  # the machine got faster meanwhile
        (0.80, 0.85, "cannot tell"),  # better, but so is the machine
        (0.80, 1.20, "better"),
        (1.00, 1.05, "no difference shown"),
        (1.00, 1.20, "cannot tell"),  # the machine got slower by more than the floor: it may hide a gain, or worse
    ],
)
def test_the_machine_may_take_a_verdict_back_and_never_corrects_a_figure(
    times: float, kernel: float, verdict: str
) -> None:
    found = check(with_kernel(1, 1, "a"), with_kernel(times, kernel, "b"), f"{STEP}:10%")
    gate = only(found)
    assert gate.verdict == verdict and gate.ratio.value == pytest.approx(times)
    assert found.noise is not None and found.noise.shift == pytest.approx(math.log(kernel))
    if verdict == "cannot tell":
        assert "reference kernel moved by" in str(gate.ratio.reason)


def test_a_kernel_whose_shift_is_not_shown_explains_nothing_and_memory_knows_no_slow_machine() -> None:
    worse = Ratio(value=1.25, verdict="worse", reason="told")
    options: dict[str, Any] = {"better": "lower", "limit_ratio": 0.1}
    unsure, sure = Estimate(value=0.2, low=-0.1, high=0.5), Estimate(value=0.2, low=0.1, high=0.3)
    assert taken_back(worse, unsure, section="latency", **options).verdict == "worse"
    assert taken_back(worse, sure, section="latency", **options).verdict == "cannot tell"
    assert taken_back(worse, sure, section="memory", **options).verdict == "worse"
    slow = Ratio(value=0.8, verdict="worse", reason="told")  # a rate
    assert taken_back(slow, sure, section="throughput", better="higher", limit_ratio=0.1).verdict == "cannot tell"


def test_a_kernel_that_was_not_timed_is_said_so() -> None:
    found = check(stepped(), stepped(run="new"))
    assert found.noise is not None and found.noise.shift is None and "was not timed on either side" in found.noise.text


# -- what may not be compared ------------------------------------------------------------------------------------------


def elsewhere(**facts: Any) -> Baseline:
    return side(model(PARAMS, *launches("step_mean_s", STEADY, **DECODE)), run="new", facts=facts)


def lines(*gates: str, of_model: dict[str, Any] | None = None, **facts: Any) -> tuple[str, ...]:
    reference = side(model(PARAMS, *launches("step_mean_s", STEADY, **DECODE)))
    other = elsewhere(**facts)
    if of_model:
        other = side(model(*other.models[0].metrics, facts=of_model), run="new", facts=facts)
    with pytest.raises(IncomparableError) as error:
        check(reference, other, *gates)
    assert error.value.exit_code == 2
    return error.value.lines


def test_every_fact_that_forbids_a_gate_in_use_has_a_line_with_its_flag() -> None:
    found = lines(device="2 x NVIDIA H200", threads=4)
    rest = "gate what can be compared: --fail-on exact"
    assert found == (
        f"device: 1 x NVIDIA H200 against 2 x NVIDIA H200: forbids the timed gates; --allow device, or {rest}",
        f"threads: 8 against 4: forbids the timed gates; --allow threads, or {rest}",
    )
    (dtype,) = lines(of_model={"dtype": "float16"})
    assert dtype.startswith("dtype of moe: bfloat16 against float16: forbids the timed gates; --allow dtype")
    (other_model,) = lines("default", of_model={"model": "another"})
    assert "forbids the timed gates; --allow model" in other_model and other_model.endswith("--fail-on exact")
    (schedule,) = lines(of_model={"schedule": "sha256 " + "6" * 64})
    assert "--allow schedule" in schedule


def test_what_is_allowed_or_forbids_no_gate_in_use_stops_nothing() -> None:
    reference = side(model(PARAMS, *launches("step_mean_s", STEADY, **DECODE)))
    assert check(reference, elsewhere(device="another"), "exact").verdict == "no difference shown"
    allowed = check(reference, elsewhere(device="another"), allow=("device",))
    assert allowed.verdict == "no difference shown" and [one.name for one in allowed.differences] == ["device"]
    assert check(reference, elsewhere(versions="moeprof 2")).verdict == "no difference shown"
    with pytest.raises(InputError, match="--allow: 'devcie' is no fact of a run"):
        check(reference, reference, allow=("devcie",))


def test_the_command_line_prints_one_line_per_fact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise IncomparableError(["device: a against b", "threads: 1\x1b against 2"])

    monkeypatch.setattr(cli, "command_line", lambda: refuse)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == "moeprof: device: a against b\nmoeprof: threads: 1\\x1b against 2\n"


def test_a_counted_fact_that_is_worse_is_said_whatever_else_differs() -> None:
    """5 % more parameters are another model, which forbids times; but that they are more is certain."""
    steps = launches("step_mean_s", STEADY, **DECODE)
    reference = side(model(exact("weights_bytes", 100), *steps))
    heavier = side(model(exact("weights_bytes", 105), *steps, facts={"model": "105 parameters"}), run="new")
    lighter = side(model(exact("weights_bytes", 95), *steps, facts={"model": "95 parameters"}), run="new")

    found = check(reference, heavier)

    assert (found.verdict, found.exit_code) == ("worse", 3)
    assert [(gate.key[0], gate.verdict) for gate in found.gates] == [
        ("weights_bytes", "worse"),
        ("step_mean_s", "incomparable"),
    ]
    assert found.gates[1].decide == "--allow model"
    with pytest.raises(IncomparableError, match="--allow model"):
        check(reference, lighter)
    assert check(reference, lighter, "exact").verdict == "better"


def test_the_allocated_kv_cache_of_another_schedule_is_not_compared() -> None:
    reference = side(model(exact("kv_cache_bytes", 100)))
    other = {"schedule": "sha256 " + "6" * 64}
    with pytest.raises(IncomparableError, match="--allow schedule"):
        check(reference, side(model(exact("kv_cache_bytes", 700), facts=other), run="new"), "kv_cache_bytes:+1%")
    assert check(reference, side(model(exact("kv_cache_bytes", 105)), run="new"), "kv_cache_bytes:+1%").exit_code == 3


def test_a_model_that_the_new_run_lacks_is_refused_unless_that_is_allowed() -> None:
    reference = side(model(PARAMS, name="a"), model(PARAMS, name="b"))
    new = side(model(PARAMS, name="a"), run="new")

    with pytest.raises(IncomparableError, match=r"models: b of run, not in new: .*--allow models"):
        check(reference, new)
    assert check(reference, new, allow=("models",)).verdict == "no difference shown"
    assert check(new, reference).verdict == "no difference shown", "one more model loses no gate"


def test_no_model_in_common_is_an_error_and_one_sided_models_are_noted() -> None:
    with pytest.raises(InputError, match=r"no model is in both run \(a, b\) and new \(c, d\)"):
        check(side(model(PARAMS, name="a"), model(name="b")), side(model(name="c"), model(name="d"), run="new"))
    found = check(
        side(model(PARAMS, name="a"), model(name="b")),
        side(model(PARAMS, name="a"), model(name="c"), run="new"),
        allow=("models",),
    )
    assert found.notes == (
        "Only the reference has b; what one side has is not judged.",
        "Only the new run has c; what one side has is not judged.",
    )


def test_a_run_that_is_not_whole_and_the_same_run_twice_are_said_so() -> None:
    failed = check(side(model(PARAMS)), side(model(PARAMS), run="new", status="failed"))
    assert [doubt.code for doubt in failed.doubts] == ["run_not_done"] and "failed" in failed.doubts[0].text
    same = check(stepped(), stepped())
    assert [doubt.code for doubt in same.doubts] == ["same_run"]
    assert {change.ratio.verdict for change in same.changes if not change.is_gate} <= {"same run"}


# -- all together ------------------------------------------------------------------------------------------------------


def test_the_worst_gate_decides_and_stands_first() -> None:
    better, worse = exact("kv_bytes_per_token", 90), exact("weights_bytes", 120)
    same, bigger = exact("total_params", 1000), exact("active_params", 101)
    reference = side(
        model(exact("kv_bytes_per_token", 100), exact("weights_bytes", 100), same, exact("active_params", 100))
    )
    found = check(reference, side(model(better, worse, same, bigger), run="new"))
    assert found.verdict == "worse"
    assert [(gate.key[0], gate.verdict) for gate in found.gates] == [
        ("weights_bytes", "worse"),
        ("active_params", "worse"),
        ("kv_bytes_per_token", "better"),
        ("total_params", "no difference shown"),
    ]
    undecided = check(
        side(model(better, *launches("step_mean_s", STEADY[:2], **DECODE))),
        side(model(exact("kv_bytes_per_token", 80), *launches("step_mean_s", STEADY[:2], **DECODE)), run="new"),
    )
    assert undecided.verdict == "cannot tell" and [gate.verdict for gate in undecided.gates] == [
        "cannot tell",
        "better",
    ]


def test_every_figure_of_both_runs_stands_among_the_changes_with_the_verdict_of_its_gate() -> None:
    unwatched = launches("itl_mean_s", STEADY, traffic="offline", window="total")
    sides = [
        side(model(*launches("step_mean_s", [t * s for s in STEADY], **DECODE), *unwatched, PARAMS), run=str(t))
        for t in (1.0, 1.3)
    ]
    found = check(sides[0], sides[1], f"{STEP}:20%")
    by_name = {change.key[0]: change for change in found.changes}
    assert set(by_name) == {"step_mean_s", "itl_mean_s", "total_params"}
    assert by_name["step_mean_s"].is_gate and by_name["step_mean_s"].ratio == found.gates[0].ratio
    assert not by_name["itl_mean_s"].is_gate and by_name["itl_mean_s"].ratio.verdict == "no difference shown"
    assert found.launches == {"reference": 6, "other": 6}


def numbers(regression: Regression) -> Sequence[float]:
    ratios = [change.ratio for change in regression.changes] + [gate.ratio for gate in regression.gates]
    return [number for ratio in ratios for number in (ratio.value, ratio.low, ratio.high) if number is not None]


def test_no_number_is_ever_without_end() -> None:
    zero = side(model(exact("dead_experts", 0, phase="all"), *launches("step_mean_s", [0.0] * 6, **DECODE)), run="z")
    some = side(model(exact("dead_experts", 2, phase="all"), *launches("step_mean_s", STEADY, **DECODE)), run="s")
    for pair in ((zero, some), (some, zero), (zero, zero)):
        found = check(*pair, "dead_experts:0", f"{STEP}:3%")
        assert all(math.isfinite(number) for number in numbers(found))
        assert next(g for g in found.gates if g.kind == "timed").verdict == "cannot tell"


def test_a_difference_has_the_flag_that_the_line_names() -> None:
    difference = Difference(name="device", first="a", second="b", forbids=frozenset({"timed"}))
    assert difference.flag_to_allow == "--allow device"


def test_what_depends_on_which_requests_met_is_no_counted_fact() -> None:
    """In an open loop, time decides who shares a step; offline, the scheduler alone does."""

    def steps(number: float, traffic: str) -> MetricValue:
        labels = {"phase": "decode", "traffic": traffic, "window": "total"}
        return MetricValue(name="step_load_max_over_mean", value=number, exact=True, labels=labels)

    sides = [side(model(steps(n, "open"), steps(n, "offline"), PARAMS), run=str(n)) for n in (4.0, 5.0)]
    changes = {dict(one.key[1]).get("traffic"): one for one in check(sides[0], sides[1], "exact").changes}
    assert (changes["open"].ratio.verdict, changes["offline"].ratio.verdict) == ("cannot tell", "worse")


def test_launches_are_counted_whatever_is_gated() -> None:
    sides = side(model(PARAMS, *launches("step_mean_s", STEADY, **DECODE))), side(model(PARAMS), run="new")
    assert check(*sides, "exact").launches == {"reference": 6, "other": 1}


def test_experts_of_two_models_of_unequal_number_are_never_set_against_each_other() -> None:
    """4 experts a layer against 5, and nothing else that differs: the fifth is no expert that died or came to life."""
    none_dead = MetricValue(name="dead_experts", value=0, n=12, labels={"phase": "all", "window": "total"})
    reference = make_baseline(models=(make_model(metrics=(none_dead,)),))
    loads = RoutingLoad(
        layers=LAYERS, counts={"decode": ((24, 24, 24, 24, 24),) * 2}, tokens={"decode": 60}
    )  # fmt: skip
    five = make_model(metrics=(none_dead,), num_experts=(5, 5), routing=loads, picks=make_picks(num_experts=5))
    other = replace(reference, models=(five,))
    assert routing_change(reference.models[0], other.models[0], exact=False) is None
    with pytest.raises(IncomparableError) as refused:
        check(reference, other, "dead_experts:0")
    assert "experts per layer of moe: 4 against 5: forbids the routing gates; nothing allows it" in str(refused.value)
    found = experts_difference(reference.models[0], other.models[0])
    assert found is not None and (found.flag_to_allow, found.forbids) == (None, {"routing"})
    assert experts_difference(reference.models[0], reference.models[0]) is None


def test_a_gate_on_other_experts_says_that_and_names_no_flag_for_it() -> None:
    """The model grew, which is worse for certain; no flag would make its 5 experts a layer the old 4."""
    none_dead = MetricValue(name="dead_experts", value=0, n=12, labels={"phase": "all", "window": "total"})
    reference = make_baseline(models=(make_model(metrics=(none_dead, PARAMS)),))
    grown = exact("total_params", 1250)
    five = make_model(metrics=(none_dead, grown), num_experts=(5, 5), picks=make_picks(num_experts=5))
    other = replace(reference, models=(five,), run="new")
    gates = {one.gate.metric: one for one in check(reference, other, "total_params:+0%", "dead_experts:0").gates}
    assert gates["total_params"].verdict == "worse"
    dead = gates["dead_experts"]
    said = (dead.verdict, dead.ratio.reason, dead.decide)
    assert said == ("incomparable", "experts per layer of moe: 4 against 5", None)
    assert (dead.reference, dead.other, dead.ratio.value) == (None, None, None)


@pytest.mark.parametrize(("share", "default", "named"), [(0.1, "cannot tell", "worse"), (0.5, "worse", "worse")])
def test_steps_that_are_less_than_a_fifth_of_their_phase_decide_only_where_they_are_named(
    share: float, default: str, named: str
) -> None:
    said = f"speaks for {share:.0%} of the decode tokens"

    def of_few(baseline: Baseline) -> Baseline:
        (own,) = baseline.models
        marked = (replace(own.metrics[0], share=share, reasons=(said,)), *own.metrics[1:])
        return replace(baseline, models=(replace(own, metrics=marked),))

    sides = of_few(stepped()), of_few(stepped(1.5, run="new"))
    for gates, verdict in (((), default), ((f"{STEP}:5%",), named)):
        gate = next(gate for gate in check(*sides, *gates).gates if gate.gate.metric == "step_mean_s")
        assert gate.verdict == verdict
        assert said in str(gate.ratio.reason)
