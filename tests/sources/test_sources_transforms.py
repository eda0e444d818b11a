"""Changes to a trace do what they say, and say what they did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.core.errors import TraceError
from moeprof.core.trace import Trace
from moeprof.core.workload.traffic import TraceSource
from moeprof.sources import transforms
from moeprof.sources.formats.columns import detect_grid
from tests.helpers.shared_data import shared


def make_trace(arrival_s: list[float], input_tokens: list[int], output_tokens: list[int], **columns: Any) -> Trace:
    return Trace(
        source="test",
        arrival_s=np.array(arrival_s, dtype=np.float64),
        input_tokens=np.array(input_tokens, dtype=np.int64),
        output_tokens=np.array(output_tokens, dtype=np.int64),
        **columns,
    )


def codes(trace: Trace) -> dict[str, int]:
    return {note.code: note.count for note in trace.notes}


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_window_is_half_open_and_counts_time_from_its_start() -> None:
    trace = make_trace([0, 10, 15, 20], [1, 2, 3, 4], [1, 1, 1, 1])
    window = transforms.time_window(trace, 10, 10)
    assert window.arrival_s.tolist() == [0.0, 5.0]
    assert window.input_tokens.tolist() == [2, 3]
    assert codes(window) == {"window": 2}


def test_an_empty_window_is_an_error_that_says_the_span() -> None:
    with pytest.raises(TraceError, match="spans 0 to 20 s"):
        transforms.time_window(make_trace([0, 20], [1, 1], [1, 1]), 5, 5)


def test_scaled_lengths_round_half_up_and_stay_at_least_one() -> None:
    trace = transforms.scale_lengths(make_trace([0, 1, 2], [1, 10, 14], [2, 6, 1000]), 0.25)
    assert trace.input_tokens.tolist() == [1, 3, 4]  # 0.25 -> 1, 2.5 -> 3, 3.5 -> 4
    assert trace.output_tokens.tolist() == [1, 2, 250]


def test_prefix_blocks_shrink_with_the_lengths() -> None:
    trace = make_trace([0], [1024], [8], prefix_blocks=((1, 2),), prefix_block_tokens=512)
    half = transforms.scale_lengths(trace, 0.5)
    assert half.prefix_block_tokens == 256
    assert half.prefix_blocks == ((1, 2),)


def test_text_has_no_length_scale() -> None:
    with pytest.raises(TraceError, match="carries text"):
        transforms.scale_lengths(make_trace([0], [-1], [-1], prompt_text=("a",)), 0.5)


def test_too_long_requests_are_dropped_cut_or_all_scaled_and_never_silently() -> None:
    trace = make_trace([0, 1], [10, 100], [5, 50])
    dropped = transforms.limit_lengths(trace, max_input_tokens=50, too_long="drop")
    cut = transforms.limit_lengths(trace, max_input_tokens=50, too_long="truncate")
    scaled = transforms.limit_lengths(trace, max_input_tokens=50, too_long="scale")
    assert (dropped.input_tokens.tolist(), codes(dropped)) == ([10], {"dropped_too_long": 1})
    assert (cut.input_tokens.tolist(), cut.output_tokens.tolist(), codes(cut)) == ([10, 50], [5, 50], {"truncated": 1})
    assert (scaled.input_tokens.tolist(), scaled.output_tokens.tolist()) == ([5, 50], [3, 25])
    assert codes(scaled) == {"length_scaled": 2, "scaled_to_fit": 2}


def test_a_total_limit_cuts_the_prompt_before_the_output() -> None:
    cut = transforms.limit_lengths(make_trace([0], [100], [30]), max_total_tokens=50, too_long="truncate")
    assert (cut.input_tokens.tolist(), cut.output_tokens.tolist()) == ([20], [30])


def test_dropping_everything_is_an_error() -> None:
    with pytest.raises(TraceError, match="every request"):
        transforms.limit_lengths(make_trace([0], [100], [30]), max_output_tokens=5)


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=20),
    st.integers(1, 1000),
    st.integers(1, 1000),
    st.integers(2, 1500),
    st.sampled_from(["truncate", "scale"]),
)
def test_cut_or_scaled_requests_always_fit(
    rows: list[tuple[int, int]], max_input: int, max_output: int, max_total: int, too_long: Any
) -> None:
    trace = make_trace([0.0] * len(rows), [row[0] for row in rows], [row[1] for row in rows])
    fitted = transforms.limit_lengths(
        trace,
        max_input_tokens=max_input,
        max_output_tokens=max_output,
        max_total_tokens=max_total,
        too_long=too_long,
    )
    assert 1 <= fitted.input_tokens.min() <= fitted.input_tokens.max() <= max_input
    assert 1 <= fitted.output_tokens.min() <= fitted.output_tokens.max() <= max_output
    assert (fitted.input_tokens + fitted.output_tokens).max() <= max_total


def test_times_scale_and_a_rate_sets_the_mean_gap() -> None:
    trace = make_trace([0, 1, 4], [1, 1, 1], [1, 1, 1])
    assert transforms.scale_times(trace, 0.5).arrival_s.tolist() == [0, 0.5, 2]
    assert transforms.rescale_rate(trace, 4).arrival_s.tolist() == [0, 0.125, 0.5]  # 2 gaps of 1/4 s on average
    with pytest.raises(TraceError, match="at once"):
        transforms.rescale_rate(make_trace([0, 0], [1, 1], [1, 1]), 1)


def test_asking_for_more_requests_than_there_are_is_said() -> None:
    trace = make_trace([0, 1], [1, 1], [1, 1])
    assert codes(transforms.first_requests(trace, 5)) == {"fewer_requests": 3}
    assert codes(transforms.first_requests(trace, 1)) == {"num_requests": 1}


def test_jitter_fills_the_cells_of_a_grid_and_keeps_sessions_in_order() -> None:
    stamps = [3.0 * (i // 4) for i in range(40)]
    session = tuple(str(i // 2) for i in range(40))
    turns = make_trace(stamps, list(range(1, 41)), [1] * 40, session=session)
    spread = transforms.jitter(turns, rng())
    assert len(np.unique(spread.arrival_s)) > 20
    assert (np.diff(spread.arrival_s) >= 0).all()
    assert spread.session is not None
    for name in set(session):
        rows = [i for i, s in enumerate(spread.session) if s == name]
        assert spread.input_tokens[rows].tolist() == sorted(spread.input_tokens[rows].tolist())
    assert codes(spread) == {"jittered": 40}


def test_jitter_leaves_a_trace_without_a_grid_alone() -> None:
    trace = make_trace([0, 0.31, 1.77], [1, 1, 1], [1, 1, 1])
    assert transforms.jitter(trace, rng()).arrival_s.tolist() == [0, 0.31, 1.77]


def test_poisson_times_are_no_grid_and_rounded_ones_are() -> None:
    arrival_s = np.cumsum(np.random.default_rng(1).exponential(0.1, 2000))
    assert detect_grid(arrival_s) is None
    grid = detect_grid(np.floor(arrival_s))
    assert grid is not None
    assert grid.step_s == 1.0


def test_a_scaled_window_of_the_real_azure_trace_equals_an_independent_reading() -> None:
    import pandas as pd

    from moeprof.sources.formats import read_trace

    path = shared("traces/AzureLLMInferenceTrace_conv.csv")
    source = TraceSource(path=str(path), duration_s=60, length_scale=0.25)
    trace = transforms.transform(read_trace(path), source, rng=rng())

    rows = pd.read_csv(path, parse_dates=["TIMESTAMP"])
    second = (rows.TIMESTAMP - rows.TIMESTAMP.min()).dt.total_seconds()
    rows, second = rows[second < 60], second[second < 60]
    assert len(trace) == len(rows) > 100
    assert np.abs(trace.arrival_s - second.to_numpy()).max() < 1e-9
    for ours, theirs in ((trace.input_tokens, rows.ContextTokens), (trace.output_tokens, rows.GeneratedTokens)):
        assert ours.tolist() == [max(1, int(n * 0.25 + 0.5)) for n in theirs]
