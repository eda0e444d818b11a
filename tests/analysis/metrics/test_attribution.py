from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.attribution import attribute, attribution_metrics, placebo_metrics
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.metrics.variance import slow_steps, variance_metrics
from moeprof.core.metric import MetricValue
from tests.helpers.records import make_pass, make_requests, make_routing, make_steps

NOISE_S = 0.001
SPREAD_EXPERTS = 4.0


def correlated(rng: np.random.Generator, num: int, memory: float) -> Any:
    """A series of variance 1 in which each value keeps ``memory`` of the one before."""
    fresh = (rng.normal(size=num) * np.sqrt(1 - memory**2)).tolist()
    return np.array(list(accumulate(fresh, lambda before, new: memory * before + new)))


def planted(
    seed: int, *, expert_s: float = 0.0, memory: float = 0.5, num: int = 1_000, name: str = "round-0"
) -> PassTables:
    """Decode steps of 4 or 8 tokens: 20 ms + 0.5 ms per token + ``expert_s`` per distinct expert + 1 ms of noise."""
    rng = np.random.default_rng(seed)
    tokens = np.repeat(rng.choice([4, 8], size=num // 50 + 1), 50)[:num]
    distinct = np.round(40 + tokens + SPREAD_EXPERTS * correlated(rng, num, memory)).astype(np.int16)
    largest = np.round(10 + 2 * correlated(rng, num, memory)).astype(np.int32)
    step_s = 0.02 + 0.0005 * tokens + expert_s * distinct + NOISE_S * correlated(rng, num, memory)
    routing = make_routing(
        np.zeros((num, 2, 1, 4)), keep_step_counts=False, distinct_SL=distinct[:, None], max_load_SL=largest[:, None]
    )
    steps = make_steps(num, step_s=step_s, decode_tokens=tokens)
    return make_pass(name=name, requests=make_requests(2), steps=steps, routing=routing, traffic="offline")


@pytest.mark.parametrize(("expert_s", "share"), [(0.0001, 0.138), (0.0003, 0.590)])
def test_step_times_that_follow_distinct_experts_are_attributed_to_routing(expert_s: float, share: float) -> None:
    # variance of 4 experts: (4 * 0.1 ms)^2 = 0.16, of the noise 1: 0.16 / 1.16 = 13.8 %; with 0.3 ms: 1.44 / 2.44
    for seed in range(5):
        found = attribute([planted(seed, expert_s=expert_s)], "decode")
        assert found.cannot_tell is None
        assert found.share == pytest.approx(share, abs=0.08)
        assert found.p_value == pytest.approx(1 / 200)
        assert found.coefficients["distinct_expert"] == pytest.approx(expert_s, abs=0.00004)


def test_the_interval_of_the_slope_covers_the_planted_slope() -> None:
    found = [attribute([planted(seed, expert_s=0.0001)], "decode").intervals for seed in range(30)]
    slopes = [interval["distinct_expert"] for interval in found]
    assert sum(low <= 0.0001 <= high for low, high in slopes) >= 25
    assert sum(low <= 0 <= high for low, high in (interval["max_load_token"] for interval in found)) >= 25


def test_pure_noise_is_seldom_called_routing_even_when_both_sides_drift() -> None:
    for memory, limit in ((0.0, 6), (0.9, 7)):
        alarms = [
            attribute([planted(seed, memory=memory, num=600)], "decode").cannot_tell is None for seed in range(60)
        ]
        assert sum(alarms) <= limit, memory


def test_what_cannot_be_told_is_shown_as_not_valid_with_the_detectable_share() -> None:
    values = {v.name: v for v in attribution_metrics([planted(4)]) if v.labels["phase"] == "decode"}
    share = values["variance_explained_by_routing_ratio"]
    assert not share.valid
    assert share.reasons[0].startswith("cannot tell: share ")
    assert "a run like this one shows a share of" in share.reasons[0]
    assert "in four runs of five" in share.reasons[0]
    prefill = [v for v in attribution_metrics([planted(4)]) if v.labels["phase"] == "prefill"]
    assert all(v.value is None and "0 prefill steps" in v.reasons[0] for v in prefill)


def test_batch_size_alone_is_not_routing() -> None:
    # distinct experts grow with tokens and so does time, but at equal tokens there is only noise
    found = attribute([planted(1, num=2_000)], "decode")
    assert found.line is not None and found.line.r2 > 0.1
    assert found.cannot_tell is not None


def test_rounds_of_the_same_batches_are_shuffled_alike_and_count_as_one_stretch_each() -> None:
    one = attribute([planted(0, expert_s=0.0003)], "decode")
    three = attribute([planted(0, expert_s=0.0003, name=f"round-{i}") for i in range(3)], "decode")
    assert three.num_steps == 3 * one.num_steps
    assert three.share == pytest.approx(one.share, abs=0.01)
    assert three.min_detectable == pytest.approx(one.min_detectable, rel=0.5)  # not smaller by sqrt(3) for free


def test_the_same_record_gives_the_same_numbers() -> None:
    rounds = [planted(0, expert_s=0.0001)]
    assert attribution_metrics(rounds) == attribution_metrics(rounds)


def test_the_share_that_is_told_as_detectable_is_found_in_four_runs_of_five() -> None:
    told = [attribute([planted(1_000 + seed, num=600)], "decode").min_detectable for seed in range(15)]
    share = float(np.median([one for one in told if one is not None]))
    assert 0.015 < share < 0.04  # about 9.6 / 400, as 600 steps that remember by half are worth about 400
    # variance of 4 experts of expert_s each over that and the noise's is the share
    expert_s = NOISE_S * np.sqrt(share / (1 - share)) / SPREAD_EXPERTS
    found = [attribute([planted(2_000 + seed, num=600, expert_s=expert_s)], "decode") for seed in range(80)]
    assert 0.68 < np.mean([one.cannot_tell is None for one in found]) < 0.92
    # p alone decides: a share below the detectable one is claimed where p is small
    assert all((one.cannot_tell is None) == (one.p_value is not None and one.p_value <= 0.05) for one in found)
    assert any(one.cannot_tell is None and (one.share or 0) < (one.min_detectable or 0) for one in found)


def dense_pass(moe: PassTables, seed: int, *, per_expert_s: float = 0.0) -> PassTables:
    """The MoE's batches in another model's time: noise, and where wanted the MoE's distinct experts."""
    assert moe.routing is not None
    num = len(moe.steps)
    step_s = 0.02 + 0.001 * np.random.default_rng(seed).random(num)
    step_s += per_expert_s * moe.routing.distinct_SL[:, 0]
    steps = make_steps(num, step_s=step_s, decode_tokens=moe.steps["decode_tokens"])
    return make_pass(requests=make_requests(2), steps=steps, traffic="offline")


def placebo_p(values: list[MetricValue]) -> float | None:
    return next(v.value for v in values if v.name.endswith("routing_p") and v.labels["phase"] == "decode")


def test_the_moes_routing_explains_nothing_of_the_dense_model() -> None:
    moe = planted(0, expert_s=0.0003)
    values = placebo_metrics({"dense": [dense_pass(moe, 98)]}, [moe])["dense"]
    assert not any(v.valid and v.value is not None for v in values if v.name.endswith("routing_ratio"))
    assert {v.name for v in values} == {
        "placebo_variance_explained_by_routing_ratio",
        "placebo_variance_explained_by_routing_p",
    }
    other = make_pass(requests=make_requests(2), steps=make_steps(1_000, decode_tokens=3))
    assert "did not run the same batches" in (attribute([other], "decode", routed=[moe]).cannot_tell or "")


def test_placebos_of_five_dense_models_are_one_family() -> None:
    moe = planted(0, num=400)
    # one placebo in twenty is below 5 % by chance: this is one
    seed = next(
        s for s in range(200) if 0.02 < (attribute([dense_pass(moe, s)], "decode", routed=[moe]).p_value or 1) < 0.05
    )
    alone = placebo_metrics({"a": [dense_pass(moe, seed)]}, [moe])["a"]
    raw = placebo_p(alone)
    assert raw is not None and 0.01 < raw < 0.07
    rest = {name: [dense_pass(moe, 1_000 + i)] for i, name in enumerate("bcde")}
    five = placebo_metrics({"a": [dense_pass(moe, seed)], **rest}, [moe])
    assert placebo_p(five["a"]) == pytest.approx(5 * raw)  # the smallest of five: Holm's first step
    share = next(v for v in five["a"] if v.name.endswith("ratio") and v.labels["phase"] == "decode")
    assert not share.valid and "by Holm over 5 placebos" in share.reasons[0]


def test_a_placebo_that_does_explain_is_still_found_among_five() -> None:
    moe = planted(0, num=400)
    guilty = dense_pass(moe, 0, per_expert_s=0.0001)
    rest = {name: [dense_pass(moe, 1_000 + i)] for i, name in enumerate("bcde")}
    found = placebo_metrics({"a": [guilty], **rest}, [moe])["a"]
    assert placebo_p(found) == pytest.approx(5 / 2_000)  # 1,999 shuffles: 199 could not get below 5 / 200


def test_experts_that_never_vary_are_refused() -> None:
    tables = planted(0)
    assert tables.routing is not None
    fixed = make_routing(
        np.zeros((1_000, 2, 1, 4)),
        keep_step_counts=False,
        distinct_SL=np.full((1_000, 1), 4, dtype=np.int16),
        max_load_SL=np.full((1_000, 1), 4, dtype=np.int32),
    )
    found = attribute([make_pass(requests=make_requests(2), steps=tables.steps, routing=fixed)], "decode")
    assert found.cannot_tell == "cannot tell: the touched experts do not vary among steps with equal tokens"


def test_a_dense_model_has_no_routing_to_explain_with() -> None:
    assert attribute([make_pass()], "decode").cannot_tell == "no routing was recorded"


def test_the_spread_at_a_fixed_batch_ignores_the_spread_between_batches() -> None:
    # batches of 2: 9 and 11 ms (CV 0.1054); batches of 4: 100 ms, always (CV 0)
    times = [0.009, 0.011] * 5 + [0.1] * 10
    steps = make_steps(20, step_s=times, decode_tokens=[2] * 10 + [4] * 10)
    found = [v for v in variance_metrics([make_pass(steps=steps)]) if v.name == "step_cv_at_fixed_tokens"]
    assert found[0].value == pytest.approx(0.5 * 0.001 * np.sqrt(10 / 9) / 0.01)
    assert found[0].n == 20


def test_the_itl_tail_is_matched_to_steps_with_prefill() -> None:
    slow = np.arange(1_000) % 50 == 49  # two steps in a hundred carry prefill and take ten times as long
    steps = make_steps(
        1_000,
        step_s=np.where(slow, 0.1 + 0.001 * np.arange(1_000), 0.01),
        phase=np.where(slow, "mixed", "decode"),
        prefill_tokens=np.where(slow, 64, 0),
    )
    ends = steps["end_s"].to_numpy()
    requests = make_requests(3, token_times_s=[ends, ends, ends], status=["done", "done", "failed"])
    tables = make_pass(requests=requests, steps=steps)
    tail = next(v for v in variance_metrics([tables]) if v.name == "itl_tail_prefill_ratio")
    assert tail.value == 1.0
    assert tail.null["all_gaps"] == pytest.approx(20 / 999)
    assert tail.n == 10  # steps, each of which ended a gap of two requests
    found = slow_steps([tables])
    assert found is not None
    assert found.num_slow == 10
    assert found.means["prefill_tokens"][0] == 64.0
    told = {v.labels["figure"]: v for v in variance_metrics([tables]) if v.name == "slow_steps_over_others_ratio"}
    assert told["carries_prefill_ratio"].value == pytest.approx(99)  # all of the ten slow steps, 10 of the other 990
    assert told["decode_tokens"].value == 1.0
    assert told["distinct_experts"].reasons == ("not known of every step",)
