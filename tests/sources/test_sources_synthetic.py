"""Made-up traffic: the numbers it promises, and streams that do not disturb each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.core.errors import TraceError, WorkloadError
from moeprof.core.trace import Trace
from moeprof.core.workload.traffic import (
    Arrivals,
    LengthPair,
    Lengths,
    Prefix,
    Prompts,
    RequestClass,
    TraceSource,
    Traffic,
)
from moeprof.sources.synthetic import synthesise

FIXED = LengthPair(input=Lengths(value=100), output=Lengths(value=10))
LOGNORMAL = Lengths(distribution="lognormal", median=256, p99=2048)


def make(number: int = 1000, *, seed: int = 0, lengths: LengthPair = FIXED, **changes: Any) -> Trace:
    arrivals = changes.pop("arrivals", Arrivals(rate=10))
    return synthesise(Traffic(arrivals=arrivals, lengths=lengths, num_requests=number, **changes), seed=seed)


def gap_cv(trace: Trace) -> float:
    gaps = np.diff(trace.arrival_s)
    return float(gaps.std() / gaps.mean())


@pytest.mark.parametrize("pattern", ["constant", "poisson", "gamma", "burst"])
def test_n_requests_span_n_over_rate(pattern: Any) -> None:
    trace = make(arrivals=Arrivals(pattern=pattern, rate=10, burstiness=2))
    assert trace.arrival_s[0] == 0
    assert 98 < trace.arrival_s[-1] < 100  # 1,000 requests at 10 per second, the last gap after the last request
    assert (np.diff(trace.arrival_s) >= 0).all()


def test_constant_requests_come_every_tenth_of_a_second_and_bursts_together() -> None:
    even = make(3, arrivals=Arrivals(pattern="constant", rate=10)).arrival_s
    bursts = make(4, arrivals=Arrivals(pattern="burst", rate=10, burst_size=2)).arrival_s
    assert even.tolist() == pytest.approx([0, 0.1, 0.2])
    assert bursts.tolist() == pytest.approx([0, 0, 0.2, 0.2])


@pytest.mark.parametrize(("burstiness", "cv"), [(0.25, 2.0), (1.0, 1.0), (4.0, 0.5)])
def test_the_gap_cv_is_one_over_the_root_of_burstiness(burstiness: float, cv: float) -> None:
    trace = make(20_000, arrivals=Arrivals(pattern="gamma", rate=10, burstiness=burstiness))
    assert gap_cv(trace) == pytest.approx(cv, rel=0.05)


def test_a_burstiness_near_zero_is_refused() -> None:
    with pytest.raises(TraceError, match="use pattern burst"):
        make(3, arrivals=Arrivals(pattern="gamma", rate=10, burstiness=1e-9))


def test_closed_loop_and_offline_have_no_times() -> None:
    for arrivals in (Arrivals(pattern="concurrency", concurrency=4), Arrivals(pattern="offline")):
        assert not make(5, arrivals=arrivals).arrival_s.any()


def test_lognormal_lengths_have_the_asked_median_and_p99() -> None:
    lengths = make(50_000, lengths=LengthPair(input=LOGNORMAL, output=Lengths(value=1))).input_tokens
    assert np.percentile(lengths, 50) == pytest.approx(256, rel=0.03)
    assert np.percentile(lengths, 99) == pytest.approx(2048, rel=0.05)


def test_a_highest_length_cuts_the_tail_without_piling_up_there() -> None:
    capped = Lengths(distribution="lognormal", median=256, p99=2048, high=1000)
    lengths = make(20_000, lengths=LengthPair(input=capped, output=Lengths(value=1))).input_tokens
    assert lengths.max() <= 1000
    assert (lengths == lengths.max()).mean() < 0.005


def test_uniform_lengths_reach_both_ends() -> None:
    uniform = Lengths(distribution="uniform", low=3, high=5)
    assert set(make(lengths=LengthPair(input=uniform, output=uniform)).input_tokens.tolist()) == {3, 4, 5}


def test_empirical_lengths_are_rows_of_the_trace_drawn_whole(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens\n1,10\n2,20\n3,30\n")
    empirical = Lengths(distribution="empirical", path=str(path))
    trace = make(lengths=LengthPair(input=empirical, output=empirical))
    assert set(trace.input_tokens.tolist()) == {1, 2, 3}
    assert (trace.output_tokens == 10 * trace.input_tokens).all()


def test_classes_are_drawn_by_weight_and_may_have_their_own_lengths() -> None:
    own = LengthPair(input=Lengths(value=7))
    trace = make(10_000, classes=(RequestClass(name="a", weight=3), RequestClass(name="b", weight=1, lengths=own)))
    is_b = np.array([name == "b" for name in trace.request_class or ()])
    assert is_b.mean() == pytest.approx(0.25, abs=0.02)
    assert set(trace.input_tokens[is_b].tolist()) == {7}
    assert set(trace.input_tokens[~is_b].tolist()) == {100}


def test_prefixes_are_shared_by_count_and_as_long_as_asked() -> None:
    fixed = make(prefix=Prefix(count=3, tokens=40))
    assert {blocks for blocks in fixed.prefix_blocks or ()} == {(0,), (1,), (2,)}
    assert fixed.prefix_block_tokens == 40
    share = make(prefix=Prefix(count=1, ratio=0.5))
    assert {len(blocks) for blocks in share.prefix_blocks or ()} == {3}  # half of 100 tokens: 3 whole blocks of 16


def test_another_rate_keeps_the_lengths_and_another_seed_changes_them() -> None:
    lengths = LengthPair(input=LOGNORMAL, output=LOGNORMAL)
    slow, fast = make(lengths=lengths), make(lengths=lengths, arrivals=Arrivals(rate=99))
    assert np.array_equal(slow.input_tokens, fast.input_tokens)
    assert not np.array_equal(slow.input_tokens, slow.output_tokens)
    assert not np.array_equal(slow.input_tokens, make(lengths=lengths, seed=1).input_tokens)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: Arrivals(pattern="poisson"), "rate: missing"),
        (lambda: Arrivals(rate=-1), "rate: found -1"),
        (lambda: Arrivals(rate=float("nan")), "rate: found nan"),
        (lambda: Arrivals(pattern="concurrency"), "concurrency: missing"),
        (lambda: Lengths(), "value: missing"),
        (lambda: Lengths(value=0), "value: found 0"),
        (lambda: Lengths(distribution="uniform", low=5, high=4), "low: 5, above high"),
        (lambda: Lengths(distribution="lognormal", median=9, p99=3), "p99: 3, below the median"),
        (lambda: Prefix(count=1), "give tokens or ratio"),
        (lambda: Prefix(ratio=1.5), "ratio: 1.5"),
        (lambda: Prompts(source="file"), "path: needed"),
        (lambda: TraceSource(path="t", time_scale=0), "time_scale: found 0"),
        (lambda: TraceSource(path="t", max_total_tokens=1), "max_total_tokens: found 1"),
        (lambda: Traffic(), "give trace"),
        (lambda: Traffic(arrivals=Arrivals(rate=1)), "lengths.input: missing"),
        (lambda: Traffic(trace=TraceSource(path="t"), lengths=FIXED), "lengths.input, prefix and classes"),
        (lambda: RequestClass(name=""), "name: is empty"),
    ],
)
def test_values_out_of_range_name_their_key(build: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        build()


def test_paths_are_resolved_wherever_they_stand() -> None:
    empirical = LengthPair(output=Lengths(distribution="empirical", path="l"))
    traffic = Traffic(
        trace=TraceSource(path="t"), lengths=empirical, prompts=Prompts(source="file", path="p")
    ).with_paths(lambda path: "/at/" + path)
    assert traffic.trace is not None
    assert traffic.lengths.output is not None
    assert (traffic.trace.path, traffic.prompts.path, traffic.lengths.output.path) == ("/at/t", "/at/p", "/at/l")
