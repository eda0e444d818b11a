"""Itemised steps over their roofline, from planted points; every figure can be checked in the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.metrics.resources.breakdown import (
    HOST,
    LAUNCHES,
    REST,
    ItemisedStep,
    gap_metrics,
    itemised_steps,
    stage_work,
    total_of,
)
from moeprof.analysis.metrics.resources.work import StepWork, step_work
from moeprof.analysis.report.sections.breakdown import sentence
from moeprof.core.errors import RecordError
from moeprof.core.files import write_json
from moeprof.core.record.breakdown import Gap
from moeprof.core.record.headers import part_of, read_header, to_json
from moeprof.core.record.launch import EngineHeader, LaunchHeader
from tests.helpers.gap_points import LAYERS, PEAKS, ROOFLINE_MS, make_launch, make_point, make_profiled
from tests.helpers.records import make_facts, make_pass, make_routing, make_steps


def itemised(*args: Any, **more: Any) -> ItemisedStep:
    (step,) = itemised_steps(make_launch(*args, **more), make_facts())
    assert sum(part.seconds for part in step.parts) == pytest.approx(step.wall_s, rel=1e-12)
    return step


def ms(step: ItemisedStep) -> dict[str, float]:
    return {part.name: round(1e3 * part.seconds, 9) for part in step.parts}


# -- the parts add up --------------------------------------------------------------------------------------------------


def test_on_a_device_launches_are_between_kernels_and_the_host_is_beyond_the_device() -> None:
    step = itemised(make_point(wall_ms=4, device_ms=3), clock="kernels")
    assert ms(step) | {"embedding": 0} == {
        "embedding": 0,
        "attention_projections": 1.0,
        "attention": 0.5,
        "experts": 0.5,
        "lm_head": 0.6,
        LAUNCHES: 0.4,  # 3 on the device, 2.6 in kernels
        HOST: 1.0,
    }


def test_on_a_cpu_the_host_is_what_is_between_operations() -> None:
    assert ms(itemised(make_point(wall_ms=4)))[HOST] == 1.4
    assert REST not in ms(itemised(make_point(wall_ms=4)))


def test_the_host_of_a_cpu_is_no_more_than_the_profiled_step_had() -> None:
    """6 ms as configured, 5 ms profiled: something else held the step up, and that is not itemised."""
    found = ms(itemised(make_point(wall_ms=6)))
    assert (found[HOST], found[REST]) == (2.4, 1.0)


def test_parts_that_profiling_made_longer_than_the_step_leave_a_negative_rest() -> None:
    found = ms(itemised(make_point(wall_ms=2)))
    assert HOST not in found
    assert found[REST] == -0.6


def test_kernels_that_overlap_leave_a_negative_rest() -> None:
    found = ms(itemised(make_point(wall_ms=4, device_ms=2), clock="kernels"))
    assert (found[HOST], found[REST]) == (2.0, -0.6)
    assert LAUNCHES not in found


def test_kernels_without_an_owner_are_not_itemised() -> None:
    profiled = make_profiled(unplaced_s=0.1e-3)
    found = ms(itemised(make_point(wall_ms=4, device_ms=3, profiled_P=(profiled,)), clock="kernels"))
    assert (found[LAUNCHES], found[REST]) == (0.3, 0.1)


def test_without_a_profile_device_host_and_roofline_stand() -> None:
    point = make_point(wall_ms=4, device_ms=3, profiled_P=(), reason="the profiler saw no kernels")
    step = itemised(point, clock="kernels")
    assert ms(step) == {HOST: 1.0, REST: 3.0}
    assert step.time_over_roofline_ratio == pytest.approx(4 / ROOFLINE_MS)
    assert step.gap_s == pytest.approx((4 - ROOFLINE_MS) / 1e3)


def test_a_part_is_its_median_over_the_profiled_steps() -> None:
    """In one of three steps something else took the processor for 8 ms."""
    disturbed = make_profiled({"attention": 8.5, "experts": 0.5}, wall_ms=20)
    calm = make_profiled({"attention": 0.5, "experts": 0.5})
    assert ms(itemised(make_point(profiled_P=(calm, disturbed, calm))))["attention"] == 0.5


# -- floors ------------------------------------------------------------------------------------------------------------


def test_every_part_has_its_own_floor_and_the_excesses_add_up_to_the_gap() -> None:
    step = itemised(make_point(wall_ms=4))
    floors = {part.name: round(1e3 * (part.floor_s or 0), 9) for part in step.parts}
    assert floors == {
        "embedding": 0.0008,
        "attention_projections": 0.8,
        "attention": 0.3232,
        "experts": 0.12,
        "lm_head": 0.6,
        HOST: 0.0,
    }
    assert step.roofline_s == pytest.approx(ROOFLINE_MS / 1e3)
    assert step.gap_s == pytest.approx((4 - ROOFLINE_MS) / 1e3)
    assert sum(part.excess_s or 0 for part in step.parts) == pytest.approx(step.gap_s)


def test_the_floor_of_projections_inside_the_attention_kernel_is_the_attention_kernels() -> None:
    step = itemised(make_point(wall_ms=4, profiled_P=(make_profiled({"attention": 1.5, "experts": 0.5}),)))
    floors = {part.name: round(1e3 * (part.floor_s or 0), 9) for part in step.parts}
    assert floors["attention"] == 0.8 + 0.3232
    assert "attention_projections" not in floors
    assert step.gap_s == pytest.approx((4 - ROOFLINE_MS) / 1e3)


def test_the_work_of_all_parts_is_the_work_of_the_step() -> None:
    import numpy as np

    counts = np.zeros((1, 2, 2, 4), dtype=np.uint16)
    counts[:, 1, :] = [4, 3, 1, 0]  # four tokens, top-2: three experts
    tables = make_pass(steps=make_steps(1), routing=make_routing(counts))
    for kernel in ("grouped_mm", "batched_mm"):
        whole = step_work(tables, make_facts(), EngineHeader(experts=kernel))
        parts = stage_work(make_point(), LAYERS, make_facts(), EngineHeader(experts=kernel))
        assert isinstance(whole, StepWork)
        assert not isinstance(parts, str)
        assert total_of(parts).num_bytes - parts["embedding"].num_bytes == whole.bytes_S[0]
        assert total_of(parts).flops == whole.flops_S[0]


def test_kernels_that_gather_weights_copy_them_in_dispatch() -> None:
    parts = stage_work(make_point(), LAYERS, make_facts(), EngineHeader(experts="batched_mm"))
    assert not isinstance(parts, str)
    assert parts["experts"].num_bytes == 2 * 4 * 2 * 20_000  # layers, tokens, picks
    assert parts["dispatch"].num_bytes == 2 * parts["experts"].num_bytes


def test_the_experts_kernel_of_decode_is_its_own() -> None:
    engine = EngineHeader(experts="batched_mm", decode_experts="grouped_mm")
    decode, prefill = (
        stage_work(make_point(phase=phase), LAYERS, make_facts(), engine) for phase in ("decode", "prefill")
    )
    assert not isinstance(decode, str)
    assert not isinstance(prefill, str)
    assert decode["experts"].num_bytes == 2 * 3 * 20_000
    assert prefill["experts"].num_bytes == 2 * 8 * 20_000


@pytest.mark.parametrize(
    ("point", "more", "reason"),
    [
        (make_point(distinct_L=None), {}, "routing was not recorded"),
        (make_point(), {"peaks": None}, "peaks were not measured"),
        (make_point(), {"peaks": PEAKS | {"cache_bytes": 10**9}}, "fit the last-level cache"),
    ],
)
def test_without_a_roofline_the_shares_stand_with_the_reason(point: Any, more: dict[str, Any], reason: str) -> None:
    step = itemised(point, **more)
    assert step.roofline_s is step.gap_s is step.time_over_roofline_ratio is None
    assert reason in step.reason
    assert all(part.excess_s is None for part in step.parts)
    assert sentence("moe", (step,)).startswith("At batch 4 a decode step of moe takes 4 ms: host 35 %, attention proj")


def test_a_dense_model_needs_no_routing() -> None:
    dense = make_facts(num_experts=0)
    point = make_point(distinct_L=None, profiled_P=(make_profiled({"mlp": 1.0}),))
    (step,) = itemised_steps(make_launch(point), dense)
    assert step.roofline_s == pytest.approx((ROOFLINE_MS - 0.12) / 1e3)


# -- metrics, sentence, record -----------------------------------------------------------------------------------------


def test_the_sentence_tells_the_largest_excesses_in_multiples_of_the_roofline() -> None:
    facts = replace(make_facts(), kv_bytes_per_token=0)
    point = make_point(wall_ms=3.0416)  # twice the roofline of 1.5208 ms without keys and values
    (step,) = itemised_steps(make_launch(point), facts)
    told = sentence("moe", (step,))
    assert told.startswith("At batch 4 a decode step of moe takes 2x its roofline (1.52 ms). Above it: attention 0.33x")
    assert "host 0.29x, experts 0.25x, attention projections 0.13x." in told


def test_the_sentence_is_about_the_batch_nearest_to_eight() -> None:
    points = [make_point(sequences=n) for n in (1, 8, 32)] + [make_point(phase="prefill", sequences=9)]
    assert sentence("moe", itemised_steps(make_launch(*points), make_facts())).startswith("At batch 8 a decode step")


def test_every_metric_has_a_card_and_labels_that_tell_sizes_apart() -> None:
    points = [make_point(wall_ms=4, device_ms=3), make_point(phase="prefill", tokens=512)]
    values = gap_metrics(make_launch(*points, clock="kernels"), make_facts())
    assert {card_for(value.name).section for value in values} == {"gap"}
    keys = [(value.name, *sorted(value.labels.items())) for value in values]
    assert len(set(keys)) == len(keys)
    device = [value for value in values if value.name == "gap_step_device_s"]
    assert [value.value for value in device] == [pytest.approx(0.003), None]
    assert device[1].labels == {"phase": "prefill", "tokens": "512"}
    assert all(value.reasons for value in values if value.value is None)


def test_a_launch_without_itemised_steps_has_no_such_metrics() -> None:
    assert gap_metrics(LaunchHeader(), make_facts()) == []


def test_what_is_written_is_read_again() -> None:
    gap = Gap(clock="kernels", layers=LAYERS, points=(make_point(device_ms=3),), spent_s=2.0, notes=("left out",))
    assert part_of(Gap, to_json(gap)) == gap
    assert part_of(Gap, to_json(gap) | {"of_a_newer_version": 1}) == gap


@pytest.mark.parametrize("damage", [{"points": None}, {"points": [{}]}, {"points": [3]}])
def test_a_damaged_gap_is_named(tmp_path: Path, damage: dict[str, Any]) -> None:
    whole = to_json(Gap(clock="kernels", layers=LAYERS, points=(make_point(),), spent_s=2.0))
    write_json(tmp_path / "launch.json", {"gap": whole | damage})
    with pytest.raises(RecordError, match=r"launch\.json: damaged, .*gap\.points"):
        read_header(tmp_path / "launch.json", LaunchHeader)
