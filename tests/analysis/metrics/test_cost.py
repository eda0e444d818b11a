"""Dollars: the bill, the split that always adds up to it, and the conventional figures under their own names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.metrics.cost.bill import CostSplit, cost_split, cost_splits
from moeprof.analysis.metrics.cost.metrics import CARDS, cost_metrics
from moeprof.analysis.metrics.launches import over_launches
from moeprof.analysis.metrics.tables import PassTables
from moeprof.core.errors import PriceError
from moeprof.core.metric import MetricValue
from moeprof.core.pricing import Pricing, resolve_pricing
from moeprof.core.record.headers import part_of, to_json
from moeprof.core.workload.overrides import parse_api
from moeprof.core.workload.workload import ApiPrices, Capital, Prices
from tests.helpers.records import make_facts, make_pass, make_requests, make_routing, make_steps, make_telemetry

CENT_A_SECOND = Pricing(usd_per_device_hour=36.0)
DENSE = make_facts(num_experts=0)


def steps_of(*rows: tuple[str, float, int, int], **columns: Any) -> Any:
    """Steps from (phase, seconds, prefill tokens, decode tokens)."""
    phase, seconds, prefill, decode = (list(column) for column in zip(*rows, strict=True))
    return make_steps(len(rows), phase=phase, step_s=seconds, prefill_tokens=prefill, decode_tokens=decode, **columns)


def split_of(*rows: tuple[str, float, int, int], **more: Any) -> CostSplit:
    calibration, peaks = more.pop("calibration", None), more.pop("peaks", None)
    pricing, facts = more.pop("pricing", CENT_A_SECOND), more.pop("facts", DENSE)
    return cost_split(make_pass(steps=steps_of(*rows), **more), pricing, calibration, facts=facts, peaks=peaks)


def by_name(values: list[MetricValue]) -> dict[str, MetricValue]:
    return {value.name: value for value in values}


def test_pure_steps_go_wholly_to_their_phase() -> None:
    split = split_of(("prefill", 1.0, 100, 0), ("decode", 3.0, 0, 4))
    assert split.run_cost_usd == pytest.approx(0.04)  # 4 s at one cent
    assert split.usd_input == pytest.approx(0.01)
    assert split.usd_output == pytest.approx(0.03)
    assert split.usd_per_input_token == pytest.approx(0.0001)
    assert split.busy.method == "pure"


def test_idle_time_is_billed_in_proportion_to_busy_time() -> None:
    split = split_of(("prefill", 1.0, 100, 0), ("decode", 3.0, 0, 4), window_s=(0.0, 8.0))
    assert split.run_cost_usd == pytest.approx(0.08)
    assert split.usd_input == pytest.approx(0.02)
    assert split.busy_ratio == pytest.approx(0.5)
    assert split.busy_cost_usd == pytest.approx(0.04)


def calibration_steps() -> Any:
    """f_p = 10 ms * tokens, f_d = 100 ms + 10 ms * tokens, whatever the context."""
    prefill = [("prefill", 0.01 * n, n, 0) for n in (10, 20, 30, 40, 50, 60)]
    decode = [("decode", 0.1 + 0.01 * n, 0, n) for n in (10, 20, 30, 40, 50, 60)]
    return steps_of(*prefill, *decode, context_tokens=0, prefill_context_tokens=0)


def test_a_mixed_step_is_split_by_shapley_value_of_calibrated_costs() -> None:
    # f_p(20) = 0.2 s, f_d(10) = 0.2 s, the step took 0.3 s: equal players share equally.
    split = split_of(("mixed", 0.3, 20, 10), calibration=calibration_steps())
    assert split.busy.method == "calibration"
    assert split.busy.prefill_S[0] == pytest.approx(0.15)
    assert split.busy.decode_S[0] == pytest.approx(0.15)
    # Bounds: prefill at its marginal cost (0.3 - 0.2) and alone (0.2).
    assert (split.busy.least_prefill_s, split.busy.most_prefill_s) == pytest.approx((0.1, 0.2))
    assert split.input_bounds_usd == pytest.approx((0.001, 0.002))


def test_pure_steps_of_the_run_teach_when_there_is_no_calibration() -> None:
    prefill = [("prefill", 0.01 * n, n, 0) for n in (10, 20, 30, 40, 50, 60)]
    decode = [("decode", 0.1, 0, n) for n in (1, 2, 3, 4, 5, 6)]
    split = split_of(*prefill, *decode, ("mixed", 0.2, 15, 2))
    assert split.busy.method == "run"
    assert split.busy.prefill_S[-1] == pytest.approx((0.15 + 0.2 - 0.1) / 2)


def test_a_share_beyond_the_step_is_put_on_the_border_and_told() -> None:
    # f_p(60) = 0.6 s, f_d(1) = 0.11 s, but the step took only 0.2 s: (0.6 + 0.2 - 0.11) / 2 > 0.2.
    split = split_of(("mixed", 0.2, 60, 1), calibration=calibration_steps())
    assert split.busy.prefill_S[0] == pytest.approx(0.2)
    assert split.busy.clamped_steps == 1
    assert split.reasons == ("1 of 1 mixed steps were split at a border",)


def test_the_roofline_splits_when_nothing_pure_was_seen() -> None:
    split = split_of(("mixed", 1.0, 50, 50), peaks=(1e15, 1.0))  # bound by FLOPs: both sides cost the same
    assert split.busy.method == "roofline"
    assert split.busy.prefill_S[0] == pytest.approx(0.5)


def test_token_counts_split_when_nothing_is_known() -> None:
    split = split_of(("mixed", 1.0, 75, 25))
    assert split.busy.method == "tokens"
    assert split.busy.prefill_S[0] == pytest.approx(0.75)


STEP = st.tuples(
    st.sampled_from(["prefill", "decode", "mixed"]),
    st.floats(1e-4, 1e2),
    st.integers(1, 5000),
    st.integers(1, 500),
)


@given(
    rows=st.lists(STEP, min_size=1, max_size=25),
    idle_s=st.floats(0, 1e3),
    usd=st.floats(1e-6, 1e4),
    calibrated=st.booleans(),
    peaks=st.one_of(st.none(), st.tuples(st.floats(1e6, 1e13), st.floats(1e9, 1e16))),
)
def test_input_and_output_prices_always_add_up_to_the_bill(
    rows: list[tuple[str, float, int, int]], idle_s: float, usd: float, calibrated: bool, peaks: Any
) -> None:
    clean = [(p, s, 0 if p == "decode" else i, 0 if p == "prefill" else o) for p, s, i, o in rows]
    steps = steps_of(*clean)
    tables = make_pass(steps=steps, window_s=(0.0, float(steps["end_s"].max()) + idle_s))
    pricing = Pricing(usd_per_device_hour=usd)
    split = cost_split(tables, pricing, calibration_steps() if calibrated else None, facts=DENSE, peaks=peaks)
    billed = sum(
        tokens * price
        for tokens, price in (
            (split.input_tokens, split.usd_per_input_token),
            (split.output_tokens, split.usd_per_output_token),
        )
        if price is not None
    )
    assert billed == pytest.approx(split.run_cost_usd, rel=1e-9)
    assert np.all(split.busy.prefill_S >= 0)
    assert np.all(split.busy.decode_S >= 0)
    found = by_name(cost_metrics([tables, tables], pricing, DENSE, splits=[split, split]))
    prices = [
        (found[f"cost_{side}_tokens"].value or 0) * (found[f"usd_per_1m_{side}_tokens"].value or 0) / 1e6
        for side in ("input", "output")
    ]
    assert sum(prices) == pytest.approx(found["run_cost_usd"].value, rel=1e-9)


def test_a_side_without_tokens_has_no_price_and_the_other_carries_the_bill() -> None:
    steps = make_steps(2, phase="prefill", prefill_tokens=50, decode_tokens=0, step_s=1.0, new_tokens=0)
    found = by_name(cost_metrics([make_pass(steps=steps)], CENT_A_SECOND, DENSE))
    assert found["usd_per_1m_input_tokens"].value == pytest.approx(200.0)  # 2 cents for 100 tokens
    assert found["usd_per_1m_output_tokens"].value is None
    assert found["usd_per_1m_output_tokens"].reasons == ("no output tokens were produced",)


def test_nothing_processed_has_no_price_and_still_a_bill() -> None:
    tables = make_pass(requests=make_requests(1, status="refused"), steps=make_steps(0), window_s=(0.0, 10.0))
    found = by_name(cost_metrics([tables], CENT_A_SECOND, DENSE))
    assert found["run_cost_usd"].value == pytest.approx(0.1)
    assert found["usd_per_1m_input_tokens"].value is None
    assert found["usd_per_1m_total_tokens"].value is None
    assert found["usd_per_request"].value is None


def one_request_pass(**columns: Any) -> PassTables:
    requests = make_requests(1, input_tokens=100, output_tokens=4, num_characters=400, **columns)
    return make_pass(requests=requests, steps=steps_of(("prefill", 1.0, 100, 0), ("decode", 3.0, 0, 3)))


def test_conventional_figures_have_their_own_names() -> None:
    found = by_name(cost_metrics([one_request_pass()], CENT_A_SECOND, DENSE))
    # 4 cents, 100 prompt tokens, 1 first token from prefill + 3 from decode, 400 characters.
    assert found["usd_per_1m_total_tokens"].value == pytest.approx(0.04 / 104 * 1e6)
    assert found["usd_per_1m_output_tokens_all_in"].value == pytest.approx(10_000)
    assert found["usd_per_1m_output_tokens"].value == pytest.approx(7_500)
    assert found["usd_per_1m_characters"].value == pytest.approx(100)
    assert found["usd_per_request"].value == pytest.approx(0.04)
    assert found["usd_per_1m_output_tokens_busy"].value == pytest.approx(7_500)


def test_unknown_characters_are_null_with_a_reason() -> None:
    requests = make_requests(1, num_characters=[-1])
    found = by_name(cost_metrics([make_pass(requests=requests)], CENT_A_SECOND, DENSE))
    assert found["usd_per_1m_characters"].reasons == ("character counts are unknown",)


def test_recomputed_tokens_are_not_sold_and_their_cost_is_shown_as_lost() -> None:
    tables = one_request_pass(recomputed_tokens=20)
    split = cost_split(tables, CENT_A_SECOND)
    assert split.input_tokens == 80
    assert split.wasted_usd == pytest.approx(0.01 * 20 / 100)
    assert split.usd_per_input_token == pytest.approx(0.01 / 80)


def test_work_for_a_failed_request_is_shown_as_lost() -> None:
    requests = make_requests(2, input_tokens=50, output_tokens=2, status=["done", "failed"])
    tables = make_pass(requests=requests, steps=steps_of(("prefill", 1.0, 100, 0), ("decode", 3.0, 0, 3)))
    split = cost_split(tables, CENT_A_SECOND)
    assert split.wasted_usd == pytest.approx(0.01 * 50 / 100 + 0.03 * 2 / 4)


def test_cost_by_phase_over_time_is_kept_per_step() -> None:
    (split,) = cost_splits([one_request_pass()], CENT_A_SECOND)
    assert split.busy.prefill_S.tolist() == pytest.approx([1.0, 0.0])
    assert split.busy.decode_S.tolist() == pytest.approx([0.0, 3.0])


def test_power_is_added_where_the_price_excludes_it() -> None:
    telemetry = make_telemetry(51, power_w=3600.0, energy_counter_j=3600.0 * 0.2 * np.arange(51))
    pricing = Pricing(usd_per_device_hour=36.0, includes_power=False, usd_per_kwh=0.5, pue=2.0)
    steps = make_steps(10, step_s=1.0)
    split = cost_split(make_pass(steps=steps, telemetry=telemetry), pricing)
    assert split.power_usd == pytest.approx(0.01)  # 36 kJ = 0.01 kWh, twice, at 0.5
    assert split.run_cost_usd == pytest.approx(0.1 + 0.01)


def test_power_that_was_not_measured_makes_dollars_invalid_and_says_so() -> None:
    pricing = Pricing(usd_per_device_hour=36.0, includes_power=False, usd_per_kwh=0.5)
    found = by_name(cost_metrics([one_request_pass()], pricing, DENSE))
    assert not found["run_cost_usd"].valid
    assert any("without power" in reason for reason in found["run_cost_usd"].reasons)
    assert found["busy_ratio"].valid


def offline_pass(**columns: Any) -> PassTables:
    """As :func:`one_request_pass`, offline and with four idle seconds."""
    tables = one_request_pass(**columns)
    return make_pass(traffic="offline", requests=tables.requests, steps=tables.steps, window_s=(0.0, 8.0))


def test_break_even_compares_busy_cost_with_an_api() -> None:
    pricing = CENT_A_SECOND.with_api(ApiPrices(input=400.0, output=10_000.0))
    found = by_name(cost_metrics([offline_pass()], pricing, DENSE))
    assert found["break_even_utilisation_ratio"].value == pytest.approx(0.04 / (0.04 + 0.04))
    waiting = by_name(cost_metrics([one_request_pass()], pricing, DENSE))["break_even_utilisation_ratio"]
    assert waiting.value is None
    assert "open-loop" in waiting.reasons[0]


def test_prompt_tokens_from_the_cache_are_not_free_at_an_api() -> None:
    tables = offline_pass(cached_tokens=300)  # beside the 100 that were computed; 4 output tokens, 4 cents of busy time
    three = CENT_A_SECOND.with_api(ApiPrices(input=400.0, output=10_000.0, cached_input=100.0))
    found = by_name(cost_metrics([tables], three, DENSE))["break_even_utilisation_ratio"]
    assert found.value == pytest.approx(0.04 / (0.04 + 0.03 + 0.04))
    two = CENT_A_SECOND.with_api(ApiPrices(input=400.0, output=10_000.0))
    without = by_name(cost_metrics([tables], two, DENSE))["break_even_utilisation_ratio"]
    assert without.value is None
    assert "no API price of these was given" in without.reasons[0]
    older = replace(CENT_A_SECOND, api_usd_per_1m_input_tokens=-1.0, api_usd_per_1m_output_tokens=4.0)
    refused = by_name(cost_metrics([tables], older, DENSE))["break_even_utilisation_ratio"]
    assert (refused.value, refused.reasons) == (None, ("the API's price is not above 0",))


def test_a_prompt_token_has_a_price_with_and_without_those_from_the_cache() -> None:
    found = by_name(cost_metrics([offline_pass(cached_tokens=300)], CENT_A_SECOND, DENSE))
    # 8 s at one cent, a quarter of the busy time in prefill: 2 cents for 100 tokens computed, 400 served.
    assert found["usd_per_1m_input_tokens"].value == pytest.approx(200)
    assert found["usd_per_1m_input_tokens_with_cached"].value == pytest.approx(50)
    assert (found["cost_input_tokens"].value, found["cost_cached_tokens"].value) == (100, 300)
    without = by_name(cost_metrics([offline_pass()], CENT_A_SECOND, DENSE))
    assert without["usd_per_1m_input_tokens_with_cached"].value == without["usd_per_1m_input_tokens"].value


def test_where_no_decode_ran_an_output_token_has_no_price_and_prompts_carry_the_bill() -> None:
    requests = make_requests(16, input_tokens=10, output_tokens=1)
    tables = make_pass(requests=requests, steps=steps_of(*[("prefill", 0.5, 80, 0)] * 2, new_tokens=8))
    found = by_name(cost_metrics([tables, tables], CENT_A_SECOND, DENSE))
    assert found["cost_output_tokens"].value == 16
    for name in ("", "_busy", "_low", "_high"):
        assert found[f"usd_per_1m_output_tokens{name}"].value is None
    assert found["usd_per_1m_output_tokens"].reasons[0].startswith("no decode step ran: every output token is a first")
    assert found["usd_per_1m_input_tokens"].value == pytest.approx(0.01 / 160 * 1e6)  # one cent, 160 prompt tokens


def test_a_split_that_leaves_a_side_nothing_prices_it_at_nothing_known() -> None:
    # f_p(60) = 0.6 s, f_d(1) = 0.11 s, the step took 0.2 s: all of it falls to the prompt.
    tables = make_pass(steps=steps_of(("mixed", 0.2, 60, 1)))
    found = by_name(cost_metrics([tables], CENT_A_SECOND, DENSE, calibration_steps()))
    assert found["usd_per_1m_output_tokens"].value is None
    assert found["usd_per_1m_output_tokens"].reasons[0] == (
        "the split left no second of the bill to outputs: the input price carries it"
    )
    assert found["usd_per_1m_input_tokens"].value == pytest.approx(0.002 / 60 * 1e6)


def test_the_interval_of_a_price_of_one_side_holds_the_bounds_of_the_split() -> None:
    # 20 prompt tokens, f_p = f_d = 0.2 s of a step of 0.3 s: the prompt's share is 0.15 s, and 0.1 to 0.2 s bound it.
    rounds = [
        make_pass(name=f"round-{i}", steps=steps_of(("mixed", t, 20, 10))) for i, t in enumerate((0.3, 0.3, 0.301))
    ]
    found = by_name(cost_metrics(rounds, CENT_A_SECOND, DENSE, calibration_steps()))
    price = found["usd_per_1m_input_tokens"]
    assert price.value == pytest.approx(0.0015 / 20 * 1e6, rel=0.01)
    assert price.ci_low == pytest.approx(0.0010 / 20 * 1e6, rel=0.01)
    assert price.ci_high == pytest.approx(0.0020 / 20 * 1e6, rel=0.01)
    total = found["usd_per_1m_total_tokens"]  # nothing of it is split
    assert total.ci_low is not None and total.ci_high is not None
    assert total.ci_high / total.ci_low < 1.02
    one = by_name(cost_metrics(rounds[:1], CENT_A_SECOND, DENSE, calibration_steps()))["usd_per_1m_input_tokens"]
    assert (one.ci_low, one.ci_high) == (None, None)  # the spread of rounds is not known


def test_launches_together_keep_the_bounds_of_the_split() -> None:
    launches = [
        cost_metrics([make_pass(steps=steps_of(("mixed", t, 20, 10)))], CENT_A_SECOND, DENSE, calibration_steps())
        for t in (0.3, 0.3003, 0.3001)
    ]
    together = by_name([value for value in over_launches(launches) if "launch" not in value.labels])
    price = together["usd_per_1m_output_tokens"]
    assert price.ci_low == pytest.approx(0.001 / 10 * 1e6, rel=0.01)
    assert price.ci_high == pytest.approx(0.002 / 10 * 1e6, rel=0.01)


def test_splits_of_other_tools_stand_under_their_own_names() -> None:
    # Two requests at a time: a second of prefill each, then three of decode, so request-seconds are 2 and 6.
    times = {"first_scheduled_s": 0.0, "first_token_s": 1.0, "last_token_s": 4.0}
    requests = make_requests(2, input_tokens=50, output_tokens=2).assign(**times)
    tables = make_pass(requests=requests, steps=steps_of(("prefill", 2.0, 100, 0), ("decode", 2.0, 0, 2), new_tokens=2))
    found = by_name(cost_metrics([tables], CENT_A_SECOND, DENSE))
    assert found["usd_per_1m_input_tokens_request_seconds"].value == pytest.approx(0.04 * 2 / 8 / 100 * 1e6)
    assert found["usd_per_1m_output_tokens_request_seconds"].value == pytest.approx(0.04 * 6 / 8 / 4 * 1e6)
    assert found["usd_per_1m_input_tokens_all_in"].value == pytest.approx(0.04 / 100 * 1e6)
    assert found["usd_per_1m_input_tokens"].value == pytest.approx(0.02 / 100 * 1e6)  # ours: half of the busy time
    unknown = make_pass(requests=requests.assign(first_scheduled_s=np.nan), steps=tables.steps)
    name = "usd_per_1m_input_tokens_request_seconds"
    assert by_name(cost_metrics([unknown], CENT_A_SECOND, DENSE))[name].value is None


def test_prices_of_too_few_finished_requests_are_not_to_be_trusted_and_the_bill_is() -> None:
    found = by_name(cost_metrics([make_pass(requests=make_requests(10))], CENT_A_SECOND, DENSE))
    assert not found["usd_per_1m_total_tokens"].valid
    assert "10 requests finished" in found["usd_per_1m_total_tokens"].reasons[-1]
    assert found["run_cost_usd"].valid
    enough = by_name(cost_metrics([make_pass(requests=make_requests(11))], CENT_A_SECOND, DENSE))
    assert enough["usd_per_1m_total_tokens"].valid


def test_half_a_price_of_an_api_is_no_price() -> None:
    half = Pricing(usd_per_device_hour=36.0, api_usd_per_1m_output_tokens=10_000.0)
    tables = one_request_pass()
    offline = make_pass(traffic="offline", requests=tables.requests, steps=tables.steps)
    found = by_name(cost_metrics([offline], half, DENSE))["break_even_utilisation_ratio"]
    assert (found.value, found.reasons) == (None, ("the API's price was given for output tokens only",))


def test_the_busy_share_of_several_rounds_stays_a_share() -> None:
    steps = steps_of(("decode", 9.0, 0, 4))
    rounds = [make_pass(name=f"round-{i}", steps=steps, window_s=(0.0, end)) for i, end in enumerate((9.0, 9.0, 10.0))]
    found = by_name(cost_metrics(rounds, CENT_A_SECOND, DENSE))["busy_ratio"]
    assert found.ci_low is not None and found.ci_high is not None
    assert 0 < found.ci_low < 27 / 28 < found.ci_high < 1


def test_cold_experts_rent_their_share_of_the_memory() -> None:
    facts = make_facts(num_layers=1, num_experts=4, top_k=2)  # 20,000 bytes per expert
    counts = np.zeros((10, 2, 1, 4), dtype=np.uint16)
    counts[:, 1, 0, :2] = 4  # experts 2 and 3 are never used
    tables = make_pass(steps=make_steps(10), routing=make_routing(counts))
    found = by_name(cost_metrics([tables], CENT_A_SECOND, facts, device_memory_bytes=400_000))
    assert found["cold_expert_usd_per_hour"].value == pytest.approx(3.6)  # a tenth of the memory
    without = by_name(cost_metrics([tables], CENT_A_SECOND, facts))["cold_expert_usd_per_hour"]
    assert without.reasons == ("the device's memory is unknown",)


def test_capital_is_spread_over_the_hours_of_use() -> None:
    prices = Prices(capital=Capital(usd_per_device=8766.0, years=1.0, utilisation_ratio=0.5))
    pricing = resolve_pricing(prices, "anything", num_devices=3)
    assert pricing.usd_per_second * 3600 == pytest.approx(6.0)  # 2 USD per hour of use, three devices


def test_a_price_comes_from_the_workload_before_the_book() -> None:
    given_price = resolve_pricing(Prices(usd_per_device_hour=2.5), "NVIDIA H200")
    assert given_price.usd_per_device_hour == 2.5
    booked = resolve_pricing(Prices(), "NVIDIA H200")
    assert booked.usd_per_device_hour == 1.74
    assert "2026-04" in booked.source
    assert part_of(Pricing, to_json(booked)) == booked
    with pytest.raises(PriceError, match="--usd-per-device-hour"):
        resolve_pricing(Prices(), "Intel(R) Xeon(R) Processor", num_vcpus=2)


def test_prices_of_an_api_are_read_in_both_spellings() -> None:
    asked = ApiPrices(input=0.15, output=0.6, cached_input=0.02)
    new = resolve_pricing(Prices(usd_per_device_hour=1.0, api=asked), "x")
    old = resolve_pricing(
        Prices(usd_per_device_hour=1.0, api_usd_per_1m_input_tokens=0.15, api_usd_per_1m_output_tokens=0.6), "x"
    )
    names = [f"api_usd_per_1m_{kind}_tokens" for kind in ("input", "output", "cached_input")]
    assert [getattr(new, name) for name in names] == [0.15, 0.6, 0.02]
    assert [getattr(old, name) for name in names] == [0.15, 0.6, None]
    assert old.with_api(asked) == new
    assert parse_api("0.15/0.60/0.02") == asked
    assert parse_api("0.15/0.60") == ApiPrices(input=0.15, output=0.6)


def test_power_apart_needs_a_power_price() -> None:
    with pytest.raises(PriceError, match="usd_per_kwh"):
        resolve_pricing(Prices(usd_per_device_hour=1.0, includes_power=False), "x")


def test_every_cost_metric_has_a_card() -> None:
    cards = {card.name for card in CARDS}
    facts = make_facts()
    assert {value.name for value in cost_metrics([one_request_pass()], CENT_A_SECOND, facts)} == cards
