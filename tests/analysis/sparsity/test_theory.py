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
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables, Traffic
from moeprof.analysis.report.document import Paragraph, Table
from moeprof.analysis.report.sections.memory import held_bytes, memory_section, sentence
from moeprof.analysis.report.sections.theory import theory_section
from moeprof.analysis.sparsity.theory import (
    Speedup,
    in_turn,
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


def decode(step_s: float, *, distinct: int = 4, traffic: Traffic = "closed", name: str = "round-0") -> PassTables:
    """Twenty decode steps of four tokens that touch ``distinct`` of eight experts."""
    counts = np.zeros((NUM_STEPS, 2, 1, 8), dtype=np.int64)
    counts[:, 1, 0, :distinct] = 8 // distinct
    return make_pass(
        name=name,
        traffic=traffic,
        requests=make_requests(4, arrival_s=np.zeros(4)),
        steps=make_steps(NUM_STEPS, step_s=step_s),
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
    assert found.text.startswith("speedup promised by FLOPs 1x, by bytes 0.5x, by the roofline 0.5x, measured 0.5x")


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
    assert any("moe against total in decode: speedup promised by FLOPs 4x, by bytes 2x" in text for text in texts)
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
