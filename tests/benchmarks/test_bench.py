"""The pure parts of the benchmarks: targets, rows, the table, block ratios. Nothing here is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.big_record import make_big_routing
from benchmarks.overhead import judged
from benchmarks.rival_talk import Rival
from benchmarks.rivals import OURS, in_turns, rows_of
from benchmarks.verdict import Row, Target, median_interval, ratios, shown, table

AS_GOOD = Target(at_least=1.0, low_at_least=0.97)


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [
        ((1.0, 1.1, 1.2), "ok"),
        ((0.97, 1.0, 1.0), "ok"),
        ((0.98, 0.99, 1.5), "within noise"),
        ((0.96, 1.1, 1.2), "MISSED"),
    ],
)
def test_a_throughput_target_is_missed_by_its_low_end(samples: tuple[float, ...], verdict: str) -> None:
    assert Row(what="x", target=AS_GOOD, samples=samples).verdict == verdict


def test_a_target_without_a_low_bound_is_missed_by_the_median() -> None:
    row = Row(what="x", target=Target(at_least=2.0), samples=(1.9, 1.9, 2.5))
    assert row.verdict == "MISSED" and not row.ok


def test_overhead_is_missed_only_when_even_the_low_end_is_too_high() -> None:
    target = Target(low_at_most=1.02)
    assert Row(what="x", target=target, samples=(1.03,), interval=(1.01, 1.05)).ok
    assert not Row(what="x", target=target, samples=(1.03,), interval=(1.021, 1.05)).ok


def test_the_interval_of_few_samples_is_their_range() -> None:
    row = Row(what="x", target=AS_GOOD, samples=(1.2, 1.0, 1.1))
    assert (row.value, row.low, row.high) == (1.1, 1.0, 1.2)


@pytest.mark.parametrize(("num", "k"), [(1, 1), (6, 1), (8, 1), (9, 2), (15, 4), (25, 8)])
def test_the_interval_of_many_samples_leaves_out_the_outermost(num: int, k: int) -> None:
    # Table of the sign test: P(fewer than k of n fair coins) <= 0.025.
    assert median_interval([float(i) for i in range(1, num + 1)]) == (k, num + 1 - k)


def test_ratios_are_taken_pair_by_pair() -> None:
    assert ratios([2.0, 30.0], [1.0, 10.0]) == (2.0, 3.0)


def test_targets_and_numbers_read_well() -> None:
    assert AS_GOOD.text == ">= 1.000 (low >= 0.970)"
    assert Target(low_at_most=1.02).text == "low <= 1.020"
    assert Target(at_most=10, unit="s").text == "<= 10 s"
    assert [shown(2.5, ""), shown(2.5, "s"), shown(123.456, "")] == ["2.500", "2.5 s", "123.5"]


def test_the_table_names_what_was_missed_and_counts() -> None:
    rows = [
        Row(what="fast", target=AS_GOOD, samples=(1.5,), details="how"),
        Row(what="slow", target=AS_GOOD, samples=(0.5,)),
    ]
    lines = table(rows).splitlines()
    assert lines[1].startswith("fast") and lines[1].endswith("ok")
    assert lines[2] == "    how"
    assert lines[3].endswith("MISSED")
    assert lines[-1] == "2 targets: 1 ok, 1 MISSED"


def test_overhead_is_the_figure_of_the_reports() -> None:
    num = 200
    seconds = {"bare_s": 0.010, "instrumented_s": 0.0101, "bare_cpu_s": 0.010, "instrumented_cpu_s": 0.0101}
    pairs = pd.DataFrame({"pair": range(num), "phase": "decode", "tokens": 4, **seconds})
    row = judged(pairs)
    assert row.value == pytest.approx(1.01) and row.ok


def test_the_large_records_counts_are_tokens_times_k() -> None:
    prefill = np.array([128, 0, 0, 64])
    routing = make_big_routing(prefill, np.random.default_rng(0))
    per_layer = routing.counts_WPCLE.sum(axis=(0, 2, 4))
    assert (per_layer[1] == 4 * 64 * 8).all(), "four steps decode 64 tokens each, top-8"
    assert routing.step_counts_SPLE is not None and routing.step_counts_SPLE.shape == (4, 2, 48, 128)
    assert routing.distinct_SL.shape == (4, 48)


def test_the_bench_refuses_unknown_parts(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.bench import main

    with pytest.raises(SystemExit):
        main([str(Path("nowhere")), "--only", "everything"])
    assert "invalid choice" in capsys.readouterr().err


def test_rivals_run_in_turn_forwards_then_backwards() -> None:
    order: list[str] = []

    def rival(name: str) -> dict[str, float]:
        order.append(name)
        return {"tokens": 10, "seconds": 2.0}

    rates = in_turns({name: lambda name=name: rival(name) for name in "abc"}, 2, rest_s=0.0)  # type: ignore[misc]
    assert order == ["a", "b", "c", "c", "b", "a"] and rates["b"] == [5.0, 5.0]


def test_ours_is_judged_against_the_fastest_rival_of_each_round() -> None:
    rates = {OURS: [10.0, 30.0], "x": [5.0, 30.0], "y": [10.0, 15.0]}
    rows = rows_of("here", rates, {kind: kind for kind in rates}, {"vllm": "not installed"})
    assert [row.samples for row in rows] == [(2.0, 1.0), (1.0, 2.0), (1.0, 1.0)]
    assert rows[-1].what == "replay / best of 2, here"
    assert "vllm not measured: not installed" in rows[-1].details


def test_a_rival_that_cannot_start_says_why(tmp_path: Path) -> None:
    rival = Rival("x", [sys.executable, "-c", "raise ImportError('no x here')"], {}, tmp_path / "log")
    rival.close()
    assert rival.reason == "ImportError: no x here"
