"""Parameters, memory, work and energy as metrics, from small records with round numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.metrics.cards import all_cards
from moeprof.analysis.metrics.resources.energy import energy_metrics, pass_energy
from moeprof.analysis.metrics.resources.memory import memory_metrics
from moeprof.analysis.metrics.resources.parameters import parameter_metrics
from moeprof.analysis.metrics.resources.work import StepWork, limits_of, peaks_of, step_work, work_metrics
from moeprof.analysis.metrics.tables import PassTables
from moeprof.core.metric import MetricValue
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.experiment import ModelFit
from moeprof.core.record.launch import EngineHeader
from tests.helpers.records import launch_header, make_facts, make_pass, make_routing, make_steps, make_telemetry

GIB = 2**30
PEAKS = {"bandwidth_bytes_per_s": 1e9, "flops_per_s": {"bfloat16": 1e12}, "cache_bytes": 1000}
LAUNCH: dict[str, Any] = {"engine": {"experts": "grouped_mm", "dtype": "bfloat16"}, "peaks": PEAKS}


def get(values: list[MetricValue], name: str, **labels: str) -> MetricValue:
    found = [
        value
        for value in values
        if value.name == name
        and all(value.labels.get(key) == label for key, label in labels.items())
        and ({"phase", "group"} & value.labels.keys()) <= labels.keys()
    ]
    assert len(found) == 1, f"{len(found)} values of {name} {labels}"
    return found[0]


def routed_pass(num_steps: int = 10, *, step_s: Any = 0.01, **columns: Any) -> PassTables:
    """Decode steps of 4 tokens with top-2; in each step and both layers 4, 3, 1 and 0 tokens go to the 4 experts."""
    counts = np.zeros((num_steps, 2, 2, 4), dtype=np.uint16)
    counts[:, 1, :] = [4, 3, 1, 0]
    return make_pass(steps=make_steps(num_steps, step_s=step_s, **columns), routing=make_routing(counts))


def of_work(facts: ModelFacts, tables: PassTables, experts: str | None = "grouped_mm") -> StepWork:
    work = step_work(tables, facts, EngineHeader(experts=experts))
    assert isinstance(work, StepWork)
    return work


# 400,000 attention parameters, 300,000 head, 10,000 per expert, two bytes each; 4 tokens, 400 keys, 800 bytes a token.
RESIDENT, HEAD, KV = 800_000, 600_000, 800 * (400 + 4)


def test_grouped_kernels_read_each_distinct_expert_once() -> None:
    work = of_work(make_facts(), routed_pass())
    assert work.bytes_S.tolist() == [RESIDENT + HEAD + KV + 2 * 3 * 20_000] * 10


def test_gathering_kernels_read_three_times_per_token_and_pick() -> None:
    work = of_work(make_facts(), routed_pass(), experts="batched_mm")
    assert work.bytes_S[0] == RESIDENT + HEAD + KV + 2 * 3 * 4 * 2 * 20_000


def test_code_that_runs_all_experts_reads_all_and_computes_all() -> None:
    facts = make_facts()
    everyone = replace(facts, moe_layers=tuple(replace(x, executes_all_experts=True) for x in facts.moe_layers))
    sparse, dense = of_work(facts, routed_pass()), of_work(everyone, routed_pass())
    assert dense.bytes_S[0] == RESIDENT + HEAD + KV + 2 * 4 * 20_000
    assert dense.flops_S[0] - sparse.flops_S[0] == 2 * 4 * 2 * (4 - 2) * 10_000


def test_flops_are_two_per_parameter_and_token_plus_attention_and_head() -> None:
    work = of_work(make_facts(), routed_pass())
    # 4 tokens * (400,000 + 2 layers * 2 experts * 10,000), 4 rows of the head, 400 pairs * 800.
    assert work.flops_S[0] == 2 * (4 * 440_000 + 4 * 300_000) + 400 * 800


def test_a_tied_head_is_the_embedding() -> None:
    facts = make_facts()
    groups = {**facts.params_by_group, "lm_head": 0}
    tied = replace(
        facts, tied_embeddings=True, params_by_group=groups, bytes_by_group={g: 2 * n for g, n in groups.items()}
    )
    assert of_work(tied, routed_pass()).bytes_S[0] == of_work(facts, routed_pass()).bytes_S[0]


def test_touched_parameters_follow_the_measured_experts_and_the_rows_looked_up() -> None:
    values = work_metrics(launch_header(LAUNCH), make_facts(), [routed_pass()])
    # B with 3 of 4 experts: 400,000 + 300,000 + 2 * 3 * 10,000, and 4 rows of 100.
    assert get(values, "touched_params_per_step").value == 760_000 + 400


def test_mbu_is_bytes_over_time_over_the_measured_bandwidth() -> None:
    values = work_metrics(launch_header(LAUNCH), make_facts(), [routed_pass()])
    num_bytes = RESIDENT + HEAD + KV + 120_000
    assert get(values, "mbu_ratio").value == pytest.approx(num_bytes / 0.01 / 1e9)
    assert get(values, "roofline_s").value == pytest.approx(num_bytes / 1e9)
    assert get(values, "time_over_roofline_ratio").value == pytest.approx(0.01 / (num_bytes / 1e9))
    assert get(values, "mfu_ratio", phase="decode").value == pytest.approx((2 * 2_960_000 + 320_000) / 0.01 / 1e12)
    assert get(values, "mbu_ratio", phase="prefill").reasons == ("no pure prefill steps",)


def test_ratios_are_sums_over_sums() -> None:
    values = work_metrics(launch_header(LAUNCH), make_facts(), [routed_pass(step_s=[0.01] * 9 + [0.11])])
    num_bytes = RESIDENT + HEAD + KV + 120_000
    assert get(values, "mbu_ratio").value == pytest.approx(10 * num_bytes / 0.2 / 1e9)


def test_work_of_tokens_that_every_round_repeats_has_its_interval_over_steps() -> None:
    context = 400 + 100 * (np.arange(40) % 7)
    rounds = [routed_pass(40, step_s=time_s, context_tokens=context) for time_s in (0.010, 0.011, 0.012)]
    values = work_metrics(launch_header(LAUNCH), make_facts(), rounds)
    found = get(values, "bytes_per_step")
    assert found.value == pytest.approx(RESIDENT + HEAD + 120_000 + 800 * (context.mean() + 4))
    assert found.n == 40
    assert found.ci_low is not None and found.ci_high is not None and found.value is not None
    assert found.ci_low < found.value < found.ci_high
    assert get(values, "flops_per_step").n == get(values, "roofline_s").n == 40
    mbu = get(values, "mbu_ratio")
    assert (mbu.n, mbu.ci_low is None) == (3, False)  # time differs by round
    idle = get(memory_metrics(launch_header({}), make_facts(), rounds), "idle_expert_bytes_per_step")
    assert (idle.value, idle.n, idle.ci_low, idle.ci_high) == (40_000, 40, 40_000, 40_000)


def test_weights_that_fit_the_cache_have_no_bandwidth_limit() -> None:
    launch = {**LAUNCH, "peaks": {**PEAKS, "cache_bytes": GIB}}
    values = work_metrics(launch_header(launch), make_facts(), [routed_pass()])
    assert get(values, "mbu_ratio").value is None
    assert "fit the last-level cache" in get(values, "mbu_ratio").reasons[0]
    assert get(values, "mfu_ratio").value is not None
    assert get(values, "peak_bandwidth_bytes_per_s").value == 1e9


def test_limits_that_were_not_measured_are_null_with_a_reason() -> None:
    values = work_metrics(launch_header({}), make_facts(), [routed_pass()])
    assert get(values, "mbu_ratio").reasons == ("peaks were not measured",)
    assert get(values, "bytes_per_step").value is not None
    other = limits_of(launch_header({**LAUNCH, "engine": {"dtype": "float16"}}), make_facts())
    assert peaks_of(launch_header(LAUNCH), make_facts()) == (1e9, 1e12)
    assert peaks_of(launch_header({}), make_facts()) is None
    assert other.flops_reason == "no matrix rate was measured in float16"


def test_without_routing_the_work_of_a_moe_is_unknown_and_of_a_dense_model_is_not() -> None:
    tables = make_pass()
    assert get(work_metrics(launch_header(LAUNCH), make_facts(), [tables]), "mbu_ratio").reasons == (
        "routing was not recorded",
    )
    assert get(work_metrics(launch_header(LAUNCH), make_facts(num_experts=0), [tables]), "mbu_ratio").value is not None


def test_steps_that_the_hooks_did_not_see_are_left_out() -> None:
    tables = routed_pass(instrumented=[True] * 4 + [None] + [False] * 5)
    assert len(of_work(make_facts(), tables).bytes_S) == 5


def test_a_model_is_reported_in_three_conventions() -> None:
    values = parameter_metrics(make_facts())
    assert get(values, "total_params").value == 1_080_000
    assert get(values, "active_params").value == 1_040_000
    assert get(values, "active_params_ratio").value == pytest.approx(1.04 / 1.08)
    assert get(values, "params", group="routed_experts").value == 80_000
    assert (get(values, "num_experts").value, get(values, "top_k").value) == (4, 2)
    assert all(value.exact or value.value is None for value in values)
    assert get(parameter_metrics(make_facts(num_experts=0)), "num_experts").reasons == ("dense model",)


MEMORY = {
    "kind": "device",
    "load_peak_bytes": 9 * GIB,
    "kv_cache_bytes": 2 * GIB,
    "peak_allocated_bytes": 6 * GIB,
    "peak_reserved_bytes": 8 * GIB,
    "activation_peak_bytes": None,
    "host_rss_peak_bytes": GIB,
    "device_total_bytes": 2_510_000,
    "reasons": {"activation_peak_bytes": "the engine hides it"},
}


def test_memory_is_what_the_launch_measured_and_null_with_its_reason() -> None:
    values = memory_metrics(launch_header({"memory": MEMORY}), make_facts(), [routed_pass()])
    assert get(values, "weights_bytes").value == 2_160_000
    assert get(values, "weights_bytes", group="attention").value == 800_000
    assert get(values, "fragmentation_ratio").value == pytest.approx(0.25)
    assert get(values, "peak_memory_bytes").value == 8 * GIB
    assert get(values, "peak_memory_bytes").labels == {"memory": "device"}
    assert get(values, "activation_peak_bytes").reasons == ("the engine hides it",)
    assert get(values, "kv_cache_peak_used_bytes").value == 400 * 800
    # 0.9 * 2,510,000 - 2,160,000 = 99,000 bytes for requests of (8 + 4) * 800: room for ten.
    assert get(values, "max_concurrent_sequences").value == 10


def test_fragmentation_is_of_one_moment_or_says_that_it_is_not() -> None:
    at_peak = {"reserved_at_peak_bytes": 15 * GIB // 2, "reserved_at_peak_is_exact": True}
    exact = get(
        memory_metrics(launch_header({"memory": MEMORY | at_peak}), make_facts(), [routed_pass()]),
        "fragmentation_ratio",
    )
    assert exact.value == pytest.approx(0.2) and exact.reasons == ()
    loose = get(memory_metrics(launch_header({"memory": MEMORY}), make_facts(), [routed_pass()]), "fragmentation_ratio")
    assert "another moment" in loose.reasons[0]


def test_a_cpu_run_needs_what_is_resident() -> None:
    values = memory_metrics(launch_header({"memory": {**MEMORY, "kind": "host"}}), make_facts(), [routed_pass()])
    assert get(values, "peak_memory_bytes").value == GIB
    assert get(values, "peak_memory_bytes").labels == {"memory": "host"}


def test_what_was_predicted_stands_beside_what_was_measured() -> None:
    """9 GB predicted, 0.6 of it a context that torch does not see: 8.4; the run took 8 GiB, 2.2 % more."""
    fit = ModelFit(needed_bytes=9 * 10**9, base_bytes=6 * 10**8)
    values = memory_metrics(launch_header({"memory": MEMORY}), make_facts(), [routed_pass()], fit)
    assert get(values, "predicted_memory_bytes").value == 8.4e9
    assert get(values, "predicted_memory_error_ratio").value == pytest.approx(8.4e9 / (8 * GIB) - 1)
    host = {"memory": MEMORY | {"kind": "host", "after_warmup_bytes": 10**7, "kv_cache_bytes": 40_000}}
    values = memory_metrics(launch_header(host), make_facts(), [routed_pass()], ModelFit(needed_bytes=2 * GIB))
    assert get(values, "predicted_memory_error_ratio").value == 1.0
    assert get(values, "process_base_bytes").value == 10**7 - 2_160_000 - 40_000
    values = memory_metrics(launch_header({"memory": {**MEMORY, "kind": "host"}}), make_facts(), [routed_pass()])
    for name in ("predicted_memory_bytes", "predicted_memory_error_ratio", "process_base_bytes"):
        assert get(values, name).value is None and get(values, name).reasons


def test_a_launch_without_memory_figures_gives_reasons_only() -> None:
    values = memory_metrics(launch_header({}), make_facts(), [routed_pass()])
    for name in ("load_peak_bytes", "reserved_bytes", "fragmentation_ratio", "max_concurrent_sequences"):
        assert get(values, name).value is None
        assert get(values, name).reasons


def test_idle_cold_and_hot_experts() -> None:
    values = memory_metrics(launch_header({}), make_facts(), [routed_pass()])
    assert get(values, "idle_expert_bytes_per_step").value == 2 * 1 * 20_000
    assert get(values, "cold_expert_bytes").value == 2 * 20_000
    # 4, 4, 3, 3, 1, 1 of 16 assignments: five experts serve 94 %, six all.
    assert get(values, "hot_set_bytes_90").value == 5 * 20_000
    assert get(values, "hot_set_bytes_99").value == 6 * 20_000
    dense = memory_metrics(launch_header({}), make_facts(num_experts=0), [make_pass()])
    assert get(dense, "cold_expert_bytes").reasons == ("dense model: no routed experts",)


def measured_pass(power_w: float | None = 100.0, end_s: float = 10.0, **columns: Any) -> PassTables:
    """Ten seconds of constant power, sampled five times a second, 4 new tokens per step of 1 s."""
    times = 0.2 * np.arange(51)
    telemetry = make_telemetry(51, **{"power_w": power_w, "energy_counter_j": 7.0 + 100.0 * times, **columns})
    return make_pass(steps=make_steps(10, step_s=end_s / 10), telemetry=telemetry, window_s=(0.0, end_s))


def test_energy_is_the_counters_difference_over_the_window() -> None:
    values = energy_metrics([measured_pass()], idle_power_w=60.0)
    assert get(values, "energy_j").value == pytest.approx(1000.0)
    assert get(values, "energy_j").labels["energy_source"] == "nvml"
    assert get(values, "power_mean_w").value == pytest.approx(100.0)
    assert get(values, "energy_j_per_output_token").value == pytest.approx(25.0)
    assert get(values, "idle_power_w").value == 60.0


@pytest.mark.parametrize(
    ("reason", "tables"),
    [
        ("no_counter", make_pass()),
        ("no_counter", measured_pass(energy_counter_j=None)),
        ("window_too_short", measured_pass(end_s=1.0)),
        ("window_not_bracketed", measured_pass(end_s=30.0)),
        ("window_not_bracketed", measured_pass(end_s=2.2, t_s=0.15 + 0.04 * np.arange(51))),  # 0.15 s of 2.2 s
        ("counter_disagrees", measured_pass(energy_counter_j=110.0 * 0.2 * np.arange(51))),
        ("counter_disagrees", measured_pass(power_w=100.0, energy_counter_j=5.0)),
        ("counter_reset", measured_pass(energy_counter_j=20.0 * (np.arange(51) % 30))),
        ("sample_gap", measured_pass(t_s=np.r_[0.2 * np.arange(26), 9.0 + 0.2 * np.arange(25)])),
    ],
)
def test_energy_that_fails_a_check_is_null_with_its_code(reason: str, tables: PassTables) -> None:
    assert pass_energy(tables).reason == reason
    value = get(energy_metrics([tables]), "energy_j")
    assert value.value is None
    assert value.reasons == (reason,)


def test_a_twentieth_of_the_window_may_lie_outside_the_samples() -> None:
    assert pass_energy(measured_pass(end_s=10.4)).joules == pytest.approx(1040.0)  # 0.4 s at the mean power
    assert pass_energy(measured_pass(end_s=10.6)).reason == "window_not_bracketed"


def test_a_disagreement_within_five_percent_is_accepted() -> None:
    close = measured_pass(energy_counter_j=104.0 * 0.2 * np.arange(51))
    assert pass_energy(close).joules == pytest.approx(1040.0)


def test_without_a_gpu_the_packages_counter_is_used_and_named() -> None:
    cpu = measured_pass(power_w=None, energy_counter_j=None, cpu_energy_counter_j=50.0 * 0.2 * np.arange(51))
    value = get(energy_metrics([cpu]), "energy_j")
    assert value.value == pytest.approx(500.0)
    assert value.labels["energy_source"] == "rapl"


def test_every_resource_metric_has_a_card_and_every_card_a_metric() -> None:
    facts, tables = make_facts(), routed_pass()
    values = [
        *parameter_metrics(facts),
        *memory_metrics(launch_header({}), facts, [tables]),
        *work_metrics(launch_header(LAUNCH), facts, [tables]),
        *energy_metrics([tables]),
    ]
    assert {value.name for value in values} == {
        card.name for card in all_cards() if card.section in ("parameters", "memory", "work", "energy")
    }
