"""Targets of the evidence for one card, and figures read from planted records. Numbers can be checked in the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.figures import roofline_figures
from benchmarks.gpu.goals import GOALS, Figure, Goal, goals_of, judge, judged, tally
from benchmarks.gpu.parts import PLAN
from tests.helpers.records import (
    make_facts,
    make_pass,
    make_requests,
    make_routing,
    make_steps,
    write_pass,
    write_record,
)

# -- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "figure", "verdict"),
    [
        (Goal(key="a", title="", bound=1.4), Figure(key="a", value=1.4), "met"),
        (Goal(key="a", title="", bound=1.4), Figure(key="a", value=1.41), "missed"),
        (Goal(key="a", title="", bound=0.5, at_most=False), Figure(key="a", value=0.49), "missed"),
        (Goal(key="a", title="", bound=1.01, by="low"), Figure(key="a", value=1.02, low=1.0, high=1.04), "met"),
        (Goal(key="a", title="", bound=1.01, by="low"), Figure(key="a", value=1.0), "not measured"),
        (Goal(key="a", title="", bound=1.4), Figure(key="a", reason="no step"), "not measured"),
        (Goal(key="a", title="", bound=1.4), None, "not measured"),
    ],
)
def test_a_target_is_judged_by_its_bound(goal: Goal, figure: Figure | None, verdict: str) -> None:
    assert judge(goal, figure) == verdict


def test_qwen_at_small_batches_may_take_twice_its_bytes_and_all_else_1_4() -> None:
    bounds = {goal.key: goal.bound for goal in GOALS if goal.key.startswith("decode")}
    assert {key for key, bound in bounds.items() if bound == 2.0} == {
        "decode-over-roofline/qwen3-30b/1", "decode-over-roofline/qwen3-30b/8",
    }  # fmt: skip
    assert set(bounds.values()) == {1.4, 2.0} and len(bounds) == 8


def test_every_target_belongs_to_one_step_of_the_script() -> None:
    steps = [one.name for part in PLAN.values() for one in part]
    assert sorted(goal.key for step in steps for goal in goals_of(step)) == sorted(goal.key for goal in GOALS)


def test_a_later_figure_with_a_value_stands_and_one_without_does_not() -> None:
    key = "overhead/1"
    told = [Figure(key=key, reason="cut"), Figure(key=key, value=1.0, low=0.99, high=1.01), Figure(key=key, reason="x")]
    row = next(row for row in judged(told) if row.goal.key == key)
    assert row.verdict == "met" and row.measured == "1 [0.99, 1.01]"
    assert tally(judged(told)) == f"{len(GOALS)} targets: 1 met, {len(GOALS) - 1} not measured"


# -- figures of a record -------------------------------------------------------------------------------------------
# Planted: attention 0.8 MB, two experts of 20 kB in each of two layers, 25 tokens of cache at 800 bytes, head 0.6 MB:
# 1.5 MB a decode step. At 1.5 GB/s that is 1 ms, and each step takes 2 ms.

NUM_STEPS = 60


def roofline_record(folder: Path, *, ahead_s: float = 0.0) -> Path:
    info = {
        "engine": {"experts": "batched_mm", "dtype": "bfloat16"},
        "peaks": {"bandwidth_bytes_per_s": 1.5e9, "flops_per_s": {"bfloat16": 3.60568e9}, "cache_bytes": 1000},
        "memory": {"kind": "device", "load_peak_bytes": 2_203_200},
    }
    record = write_record(folder, {"moe": (make_facts(), [[make_pass()]])}, launch_info=info)
    launch = record / "moe" / "launch-0"
    _swept(launch, 0, decode_pass(ahead_s), {"concurrency": 8, "input_tokens": 128})
    _swept(launch, 1, prefill_pass(), {"concurrency": 1, "input_tokens": 2048})
    return record


def decode_pass(ahead_s: float) -> Any:
    counts = np.zeros((NUM_STEPS, 2, 2, 4), dtype=np.int64)
    counts[:, 1, :, :2] = 8
    steps = make_steps(NUM_STEPS, step_s=0.002, decode_tokens=8, context_tokens=17, new_tokens=8)
    steps["start_s"] -= ahead_s
    return make_pass(name="round-7", traffic="closed", requests=make_requests(8), steps=steps,
                     routing=make_routing(counts))  # fmt: skip


def prefill_pass() -> Any:
    counts = np.zeros((4, 2, 2, 4), dtype=np.int64)
    counts[:, 0, :, :2] = 2048
    steps = make_steps(4, step_s=1.0, phase="prefill", prefill_tokens=2048, decode_tokens=0, context_tokens=2048,
                       new_tokens=1, num_prefill_requests=1, attention_pairs=0)  # fmt: skip
    return make_pass(name="round-8", traffic="closed", requests=make_requests(4), steps=steps,
                     routing=make_routing(counts))  # fmt: skip


def _swept(launch: Path, number: int, tables: Any, point: dict[str, int]) -> None:
    empty = {"concurrency": None, "request_rate": None, "input_tokens": None, "max_batch_tokens": None}
    written = write_pass(launch, tables, info={"sweep": empty | point, "round": 0})
    written.rename(launch / f"sweep-{number}-0")


def figures_of(record: Path) -> dict[str, Figure]:
    return {figure.key: figure for figure in roofline_figures("mixtral", record)}


def test_a_decode_step_of_twice_its_bytes_reads_as_2(tmp_path: Path) -> None:
    figure = figures_of(roofline_record(tmp_path / "roofline-mixtral"))["decode-over-roofline/mixtral/8"]
    assert figure.value == pytest.approx(2.0) and figure.n == NUM_STEPS
    assert figure.low == pytest.approx(2.0) and figure.high == pytest.approx(2.0)


def test_steps_that_start_before_the_last_one_ends_are_not_counted_twice(tmp_path: Path) -> None:
    figure = figures_of(roofline_record(tmp_path / "r", ahead_s=0.0015))["decode-over-roofline/mixtral/8"]
    # The first step of the pass has no step before it, so it alone shows its early start.
    assert figure.value == pytest.approx((59 * 2.0 + 3.5) / 60)


def test_a_prompt_at_half_the_matrix_rate_reads_as_a_half(tmp_path: Path) -> None:
    # 2 x (2,048 tokens x (400,000 attention + 2 layers x 2 experts x 10,000) + 300,000 of the head) = 1.80284 GFLOP.
    figure = figures_of(roofline_record(tmp_path / "r"))["prefill-of-matmul/mixtral/1"]
    assert figure.value == pytest.approx(0.5) and figure.n == 4


def test_the_load_peak_is_over_the_bytes_of_the_weights(tmp_path: Path) -> None:
    assert figures_of(roofline_record(tmp_path / "r"))["load-peak/mixtral"].value == pytest.approx(1.02)


def test_a_load_that_was_not_measured_says_which(tmp_path: Path) -> None:
    figures = figures_of(roofline_record(tmp_path / "r"))
    assert figures["decode-over-roofline/mixtral/64"].reason == "no pass with 64 requests in flight"
    assert figures["prefill-of-matmul/mixtral/8"].reason == "no pass with 8 prompts of 2,048 tokens at once"


def test_a_damaged_record_gives_its_reason_to_every_figure(tmp_path: Path) -> None:
    record = roofline_record(tmp_path / "r")
    (record / "moe" / "model.json").write_text("{")
    figures = roofline_figures("mixtral", record)
    assert all(figure.value is None and "cannot be read" in figure.reason for figure in figures)
