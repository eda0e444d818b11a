"""Theory beside measurement: promised and measured ratios of models with FLOPs and bytes to count in the head."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.compare.lanes import LockstepPair
from moeprof.analysis.metrics.lookup import pick
from moeprof.analysis.metrics.resources.work import Limits
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables, Traffic
from moeprof.analysis.report.document import Paragraph, Table
from moeprof.analysis.report.sections.memory import held_bytes, memory_section, sentence
from moeprof.analysis.report.sections.theory import theory_section
from moeprof.analysis.sparsity.theory import (
    Speedup,
    in_turn,
    one_token_steps,
    paired_times,
    theoretical_speedups,
    theory_metrics,
    twin_facts,
)
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.model_facts import ModelFacts, MoeLayerFacts, TwinFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from tests.helpers.records import make_facts, make_pass, make_requests, make_routing, make_steps, write_record

NUM_STEPS = 20
EXPERT = 1_000_000
PEAKS = {"peaks": {"bandwidth_bytes_per_s": 1e9, "flops_per_s": {"float32": 1e12}, "bandwidth_method": "copy"}}
ENGINE = {"engine": {"device": "cpu", "dtype": "float32", "experts": "grouped_mm"}}


def sparse(*, num_experts: int = 8, top_k: int = 2, shared: int = 0) -> ModelFacts:
    """One MoE layer and nothing else: a million parameters per expert, two bytes each, no cache."""
    layer = MoeLayerFacts(name="model.layers.0.mlp", num_experts=num_experts, top_k=top_k, expert_params=EXPERT,
                          expert_bytes=2 * EXPERT)  # fmt: skip
    groups = {"routed_experts": num_experts * EXPERT, "shared_experts": shared * EXPERT}
    total, active = (num_experts + shared) * EXPERT, (top_k + shared) * EXPERT
    return replace(
        make_facts(),
        moe_layers=(layer,),
        params_by_group=groups,
        bytes_by_group={name: 2 * size for name, size in groups.items()},
        total_params=total,
        active_params=active,
        active_params_no_embedding=active,
        active_params_no_embedding_no_head=active,
        kv_bytes_per_token=0,
        attention_flops_per_pair=0,
        num_layers=1,
    )


def decode(
    step_s: float, *, distinct: int = 4, traffic: Traffic = "closed", name: str = "round-0", **columns: Any
) -> PassTables:
    """Twenty decode steps of four tokens that touch ``distinct`` of eight experts."""
    counts = np.zeros((NUM_STEPS, 2, 1, 8), dtype=np.int64)
    counts[:, 1, 0, :distinct] = 8 // distinct
    return make_pass(
        name=name,
        traffic=traffic,
        requests=make_requests(4, arrival_s=np.zeros(4)),
        steps=make_steps(NUM_STEPS, step_s=step_s, **columns),
        routing=make_routing(counts),
    )


def dense(match: str, **changes: Any) -> ModelFacts:
    facts = twin_facts(sparse(), "total" if match == "total" else "active")
    twin = TwinFacts(of="moe", match=match, width=80 if match == "total" else 20, active_width=20, total_width=80,
                     target_params=facts.total_params)  # fmt: skip
    return replace(facts, name=match, twin=twin, **changes)


def summary_of(
    folder: Path,
    measured: Mapping[str, tuple[ModelFacts, list[PassTables]]],
    *,
    schedules: Mapping[str, Any] | None = None,
    info: Mapping[str, Any] | None = None,
) -> Summary:
    launches = {name: (facts, [passes]) for name, (facts, passes) in measured.items()}
    path = write_record(folder / "run", launches, launch_info={**ENGINE, **(PEAKS if info is None else info)})
    experiment = json.loads((path / "experiment.json").read_text())
    experiment["schedules"] = dict(schedules or {})
    (path / "experiment.json").write_text(json.dumps(experiment))
    return summarise(open_record(path), Pricing(usd_per_device_hour=3.6))


def rounds(*step_s: float, **options: Any) -> list[PassTables]:
    return [decode(s, name=f"round-{i}", **options) for i, s in enumerate(step_s)]


def ran(folder: Path, **options: Any) -> Summary:
    """An MoE at 10 ms per step, its total-matched twin at 20 ms, its active-matched one at 5 ms."""
    measured = {
        "moe": (sparse(), rounds(0.010, 0.010, 0.010)),
        "total": (dense("total"), [replace(t, routing=None) for t in rounds(0.020, 0.020, 0.020)]),
        "active": (dense("active"), [replace(t, routing=None) for t in rounds(0.005, 0.005, 0.005)]),
    }
    return summary_of(folder, measured, **options)


def against(summary: Summary, dense_name: str, phase: str = "decode") -> Speedup:
    (found,) = [s for s in theoretical_speedups(summary) if (s.dense, s.phase) == (dense_name, phase)]
    return found


def test_eight_experts_of_which_two_work_promise_four_by_flops(tmp_path: Path) -> None:
    found = against(ran(tmp_path), "total")
    assert found.flops.value == pytest.approx(4)  # 8 experts' width against 2
    assert found.num_bytes.value == pytest.approx(2)  # a step reads 8 experts' bytes against 4 distinct ones
    assert found.roofline.value == pytest.approx(2)  # bytes are what takes time here
    assert found.measured.value == pytest.approx(2)  # 20 ms against 10 ms
    assert (found.measured.low, found.measured.high) == pytest.approx((2, 2))
    assert (found.total_params, found.active_params) == pytest.approx((1, 4))


def test_the_active_matched_twin_does_the_same_work_and_reads_less(tmp_path: Path) -> None:
    found = against(ran(tmp_path), "active")
    assert (found.flops.value, found.num_bytes.value) == pytest.approx((1, 0.5))
    assert found.measured.value == pytest.approx(0.5)
    assert found.text.startswith("speedup bound by counting FLOPs 1x, bytes 0.5x, least time 0.5x; measured 0.5x")


def test_each_side_is_told_its_distance_from_its_own_least_time(tmp_path: Path) -> None:
    """A step of the MoE moves 4 experts of 2 MB at 1 GB/s in 10 ms, one of the total-matched twin 16 MB in 20 ms."""
    found = against(ran(tmp_path), "total")
    assert found.limits == (
        "A ratio of least times is no limit: total takes 1.2 times its own; moe takes 1.2 times its own"
    )
    section = theory_section(ran(tmp_path / "b"))
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table))
    row = next(row for row in table.rows if row.label == "measured over its own least time")
    over = [value.value for value in row.values if value is not None]
    assert over == pytest.approx([10 / 8, 20 / 16, 5 / 4])


def test_an_moe_whose_step_fits_the_cache_has_no_least_time_although_its_weights_do_not_fit(tmp_path: Path) -> None:
    """Cache of 10 MB: the MoE holds 16 MB and moves 8 a step; its total-matched twin moves 16 MB every step."""
    info = {"peaks": {**PEAKS["peaks"], "cache_bytes": 10_000_000}}
    summary = ran(tmp_path, info=info)
    found, why = against(summary, "total"), "the bytes of a step (7.63 MiB) fit the last-level cache (9.54 MiB)"
    assert (found.roofline.value, found.roofline.reason) == (None, why)
    assert found.num_bytes.value == pytest.approx(2)  # bytes are counted all the same
    assert found.limits == (
        "A ratio of least times is no limit: total takes 1.2 times its own; moe 1.2 times if all its bytes came from "
        f"memory, but {why}"
    )
    assert against(summary, "active").limits.startswith("No least time is known: the bytes of a step (3.81 MiB) fit")
    moe, total, _ = summary.models
    used = {m.name: pick(m, "mbu_ratio", phase="decode") for m in (moe, total)}
    assert used["moe"] is not None and (used["moe"].value, used["moe"].reasons) == (None, (why,))
    assert used["total"] is not None and used["total"].value == pytest.approx(16 / 20)


def test_where_some_steps_fit_the_cache_it_is_the_bytes_of_those_that_count() -> None:
    """4 of 100 bytes are moved by steps that fit a cache of 10, less than a twentieth; then 4 of 40."""
    limits = Limits(bandwidth_bytes_per_s=1.0, flops_per_s=1.0, cache_bytes=10.0)
    assert limits.cached(np.array([48.0, 48.0, 4.0])) is None
    assert (
        limits.cached(np.array([36.0, 4.0]))
        == "10% of the bytes are moved by steps that fit the last-level cache (10 B)"
    )
    assert replace(limits, cache_bytes=None).cached(np.array([1.0])) is None


def test_steps_of_one_token_are_compared_where_both_models_had_enough(tmp_path: Path) -> None:
    """Twenty a round: 10 ms and 14 ms against 10 ms: 1.18 in the geometric mean; open loops may be compared in this."""
    one = {"decode_tokens": 1, "traffic": "open"}
    measured = {
        "moe": (sparse(), rounds(0.010, 0.014, **one)),
        "active": (dense("active"), [replace(t, routing=None) for t in rounds(0.010, 0.010, **one)]),
    }
    (found,) = one_token_steps(summary_of(tmp_path, measured))
    assert found.ratio.value == pytest.approx(1.4**0.5)
    assert (found.num_moe, found.num_dense) == (40, 40)
    assert (found.moe_params, found.dense_params) == (2 * EXPERT, 2 * EXPERT)
    assert found.text.startswith("At one token a decode step of moe takes 1.18x")
    assert "(40 and 40 steps of the workload's own rounds; one token uses 2 M and 2 M parameters)" in found.text
    assert one_token_steps(ran(tmp_path / "four")) == ()  # four tokens a step


def test_the_published_quickstart_takes_1_42_times_as_long_at_one_token() -> None:
    record = open_record(Path(__file__).resolve().parents[3] / "reports" / "published" / "quickstart-cpu")
    (found,) = one_token_steps(summarise(record, Pricing(usd_per_device_hour=0.1)))
    assert found.ratio.value == pytest.approx(1.42, abs=0.005)


def test_twins_that_did_not_run_are_computed(tmp_path: Path) -> None:
    alone = summary_of(tmp_path, {"moe": (sparse(), rounds(0.010))})
    found = against(alone, "total-matched, computed")
    assert (found.flops.value, found.num_bytes.value) == pytest.approx((4, 2))
    assert found.measured.value is None
    assert found.measured.reason == "this twin did not run: its work is computed from the MoE's shape"
    assert [s.dense for s in theoretical_speedups(ran(tmp_path / "b")) if "computed" in s.dense] == []


def test_a_computed_twin_folds_shared_experts_in_and_drops_the_router() -> None:
    facts = sparse(shared=1)
    facts = replace(facts, params_by_group={**facts.params_by_group, "router": 100}, total_params=9 * EXPERT + 100)
    total, active = twin_facts(facts, "total"), twin_facts(facts, "active")
    assert total.params_by_group == {"dense_mlp": 9 * EXPERT}
    assert active.params_by_group == {"dense_mlp": 3 * EXPERT}
    assert (total.total_params, active.total_params) == (9 * EXPERT, 3 * EXPERT)
    assert total.bytes_by_group == {"dense_mlp": 18 * EXPERT}
    assert not total.is_moe


def test_gathering_kernels_promise_less_by_bytes(tmp_path: Path) -> None:
    gathers = {**PEAKS, "engine": {**ENGINE["engine"], "experts": "batched_mm"}}
    found = against(summary_of(tmp_path, {"moe": (sparse(), rounds(0.010))}, info=gathers), "total-matched, computed")
    assert found.num_bytes.value == pytest.approx(8 / 24)  # 3 times 4 tokens times 2 picks


def test_without_measured_peaks_there_is_no_roofline(tmp_path: Path) -> None:
    found = against(ran(tmp_path, info={}), "total")
    assert found.roofline.value is None
    assert found.flops.value == pytest.approx(4)
    assert "peaks were not measured" in str(found.roofline.reason)


def test_models_with_other_requests_have_no_measured_ratio(tmp_path: Path) -> None:
    schedules = {"moe": {"sha256": "a"}, "total": {"sha256": "b"}, "active": {"sha256": "a"}}
    summary = ran(tmp_path, schedules=schedules)
    assert against(summary, "total").measured.reason == "the models were sent different requests"
    assert against(summary, "active").measured.value is not None


def test_open_loops_without_capacity_passes_ran_other_batches(tmp_path: Path) -> None:
    measured = {
        "moe": (sparse(), rounds(0.010, traffic="open")),
        "total": (dense("total"), rounds(0.020, traffic="open")),
    }
    assert "other batches" in str(against(summary_of(tmp_path, measured), "total").measured.reason)


def test_rounds_that_differ_give_the_ratio_an_interval(tmp_path: Path) -> None:
    measured = {
        "moe": (sparse(), rounds(0.010, 0.010, 0.010)),
        "total": (dense("total"), rounds(0.019, 0.020, 0.021)),
    }
    measured_ratio = against(summary_of(tmp_path, measured), "total").measured
    assert measured_ratio.low is not None and measured_ratio.high is not None
    assert measured_ratio.low < 2 < measured_ratio.high


def test_models_stepped_in_turn_stand_beside_their_lone_runs() -> None:
    ratios: dict[str | None, Estimate] = {"decode": Estimate(value=0.5, low=0.4, high=0.8, n=20)}
    pairs = [LockstepPair(moe="moe", dense="total", concurrency=4, ratios=ratios, medians={})]
    found = in_turn(pairs, "moe", "total", "decode", 4)
    assert (found.value, found.low, found.high) == pytest.approx((2, 1.25, 2.5))  # the dense model over the MoE
    assert in_turn(pairs, "moe", "total", "decode", 8).value is None  # another load


def test_several_launches_pair_by_launch() -> None:
    found = paired_times([2.0, 2.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0], (2, 2))
    assert found.value == pytest.approx(8**0.5)  # of 2 and 4
    assert found.n == 2


def test_unequal_numbers_of_rounds_give_no_interval() -> None:
    found = paired_times([2.0, 2.0], [1.0], (1, 1))
    assert found.value == 2
    assert found.reason == "no interval: 2 rounds against 1"


def test_a_run_without_an_moe_has_no_theory(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, {"total": (dense("total"), rounds(0.020))})
    assert theory_section(summary) is None
    assert memory_section(summary) is None


def test_the_section_says_it_in_a_sentence_and_a_table(tmp_path: Path) -> None:
    section = theory_section(ran(tmp_path))
    assert section is not None
    texts = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert any("moe against total in decode: speedup bound by counting FLOPs 4x, bytes 2x" in text for text in texts)
    table = next(block for block in section.blocks if isinstance(block, Table) and block.compares)
    assert table.columns == ("moe", "total", "active")
    assert [row.ratios[1].value for row in table.rows if row.ratios[1]] == pytest.approx([4, 2, 2, 2])


def test_speedups_are_metrics_with_labels(tmp_path: Path) -> None:
    values = theory_metrics(theoretical_speedups(ran(tmp_path)))
    wanted = {"moe": "moe", "against": "total", "phase": "decode", "by": "flops"}
    (value,) = [v for v in values if v.name == "theoretical_speedup" and v.labels == wanted]
    assert value.value == pytest.approx(4)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_memory_is_counted_by_what_a_token_uses() -> None:
    held = held_bytes(sparse(shared=1))
    assert (held.shared, held.used, held.idle) == (2 * EXPERT, 4 * EXPERT, 12 * EXPERT)
    assert held.held_over_used == pytest.approx(3)


def test_code_that_runs_all_experts_leaves_none_idle() -> None:
    facts = sparse()
    everyone = replace(facts, moe_layers=(replace(facts.moe_layers[0], executes_all_experts=True),))
    assert held_bytes(everyone).held_over_used == 1


def test_the_sentence_says_what_is_held_and_what_is_cold(tmp_path: Path) -> None:
    info = {**PEAKS, "memory": {"device_total_bytes": 160 * EXPERT}}
    summary = summary_of(
        tmp_path, {"moe": (sparse(), rounds(0.010)), "total": (dense("total"), rounds(0.02))}, info=info
    )
    text = sentence(summary.model("moe"))
    assert text is not None
    assert "4x the bytes that a token uses" in text
    assert "experts without a single token hold 7.63 MiB" in text  # 4 of 8 experts, 2 MB each
    assert "rent for at most $0.18 per hour" in text  # a twentieth of the device at 3.6 per hour
    assert sentence(summary.model("total")) is None


def test_the_memory_table_sets_models_against_the_moe(tmp_path: Path) -> None:
    section = memory_section(ran(tmp_path))
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table) and block.compares)
    by_name = {row.name: row for row in table.rows}
    ratios = by_name["weights_bytes"].ratios
    assert ratios[0] is None
    assert [ratio.value for ratio in ratios if ratio] == pytest.approx([1, 0.25])
