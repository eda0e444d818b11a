"""Changes to a trace: pure functions Trace -> Trace. Whatever changes a request is counted in a Note."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import TraceError
from moeprof.core.trace import FloatArray, IntArray, Note, Trace
from moeprof.core.turns import NONE, added_lengths, whole_lengths
from moeprof.core.workload.traffic import Sessions, TooLong, TraceSource
from moeprof.sources.formats.columns import detect_grid, not_before_predecessor, round_half_up
from moeprof.sources.formats.turns import whole_blocks


def transform(trace: Trace, source: TraceSource, *, rng: np.random.Generator) -> Trace:
    """Everything that a workload's ``traffic.trace`` asks for, in the order given there.

    Raises:
        TraceError: nothing is left, or lengths of a text trace were to be scaled.
    """
    if source.jitter:
        trace = jitter(trace, rng)
    trace = time_window(trace, source.start_s, source.duration_s)
    trace = scale_times(trace, source.time_scale)
    trace = scale_lengths(trace, source.length_scale)
    if trace.prompt_text is not None or trace.messages is not None:
        return trace  # lengths that a log states beside text are another tokenizer's; the schedule counts and limits
    return limit_lengths(
        trace,
        max_input_tokens=source.max_input_tokens,
        max_output_tokens=source.max_output_tokens,
        max_total_tokens=source.max_total_tokens,
        too_long=source.too_long,
    )


def time_window(trace: Trace, start_s: float = 0.0, duration_s: float | None = None) -> Trace:
    """Requests of [start_s, start_s + duration_s); times then count from the start of the window.

    Raises:
        TraceError: no request arrived then.
    """
    if start_s == 0 and duration_s is None:
        return trace
    end_s = np.inf if duration_s is None else start_s + duration_s
    inside = (trace.arrival_s >= start_s) & (trace.arrival_s < end_s)
    if not inside.any():
        raise TraceError(
            f"the window from {start_s:g} s to {end_s:g} s holds no request; the {trace.source} trace spans 0 to "
            f"{trace.arrival_s[-1]:g} s"
        )
    kept = trace.select(inside)
    note = Note(code="window", count=len(trace) - len(kept), text="requests outside the time window were left out")
    return replace(kept, arrival_s=kept.arrival_s - start_s).with_notes(note)


def first_requests(trace: Trace, num_requests: int | None) -> Trace:
    """The first ``num_requests``; fewer if there are fewer, which a Note says."""
    if num_requests is None or num_requests == len(trace):
        return trace
    if num_requests > len(trace):
        text = f"{num_requests} requests were asked for, the trace has {len(trace)}"
        return trace.with_notes(Note(code="fewer_requests", count=num_requests - len(trace), text=text))
    note = Note(code="num_requests", count=len(trace) - num_requests, text="later requests were left out")
    return trace.select(np.arange(num_requests)).with_notes(note)


def scale_times(trace: Trace, time_scale: float) -> Trace:
    """Every time multiplied by ``time_scale``: 0.5 replays twice as fast."""
    if time_scale == 1:
        return trace
    note = Note(code="time_scaled", count=len(trace), text=f"times were multiplied by {time_scale:g}")
    delay_s = None if trace.delay_s is None else trace.delay_s * time_scale
    return replace(trace, arrival_s=trace.arrival_s * time_scale, delay_s=delay_s).with_notes(note)


def rescale_rate(trace: Trace, rate: float) -> Trace:
    """Times scaled so that N requests take N / rate seconds on average: (N - 1) gaps over (N - 1) / rate seconds.

    Raises:
        TraceError: all requests arrive at once, so there is no rate to change.
    """
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    if span_s == 0:
        raise TraceError("all requests of the trace arrive at once; a request rate needs a trace with times")
    return scale_times(trace, (len(trace) - 1) / rate / span_s)


def sessions_of(trace: Trace, asked: Sessions | None) -> Sessions | None:
    """Whether turns wait for answers: as asked, else where the trace has turns; None: it has none.

    Raises:
        TraceError: closed sessions of a trace that has none.
    """
    if (trace.waits != NONE).any():
        return asked or "closed"
    if asked == "closed":
        raise TraceError(
            f"traffic.trace.sessions: closed, but no request of the {trace.source} trace belongs to the session of "
            "another; name the column that says so (traffic.trace.columns: session), or leave sessions out"
        )
    return None


def with_closed_sessions(trace: Trace, first_s: FloatArray | None = None) -> Trace:
    """Later turns stand where they would arrive if answers took no time, in order of time.

    That is a stated pause after the turn before, or where none is stated as long after it as in the file.

    Args:
        trace: requests that wait for others.
        first_s: other arrivals of the first turns, ascending; None: their own.
    """
    after, old_s = trace.waits, trace.arrival_s
    arrival_s = old_s.copy()
    if first_s is not None:
        arrival_s[after == NONE] = first_s
    pause_s = np.full(len(trace), np.nan) if trace.delay_s is None else trace.delay_s
    for i in np.flatnonzero(after != NONE).tolist():
        before = int(after[i])
        gap_s = old_s[i] - old_s[before] if np.isnan(pause_s[i]) else pause_s[i]
        arrival_s[i] = arrival_s[before] + max(0.0, float(gap_s))
    waiting = replace(trace, arrival_s=arrival_s, after=after)
    return waiting.select(np.argsort(arrival_s, kind="stable"))


def scale_lengths(trace: Trace, length_scale: float) -> Trace:
    """Lengths multiplied: ``max(1, floor(x * scale + 0.5))``; prefix blocks shrink with them, so sharing is kept.

    Raises:
        TraceError: the trace carries text, whose length is a fact.
    """
    if length_scale == 1:
        return trace
    has_text = trace.prompt_text is not None or trace.messages is not None
    if has_text or (trace.input_tokens < 0).any() or (trace.output_tokens < 0).any():
        raise TraceError("length_scale needs a trace of lengths; this one carries text (use max_input_tokens instead)")
    outputs = round_half_up(trace.output_tokens * length_scale)
    # What turns add is scaled, not what they hold: rounding would add up over a conversation.
    context_of = trace.context_of
    added = added_lengths(trace.input_tokens, trace.output_tokens, context_of)
    inputs = whole_lengths(round_half_up(added * length_scale), outputs, context_of)
    scaled = replace(trace, input_tokens=inputs, output_tokens=outputs)
    if trace.prefix_block_tokens is not None:
        block_tokens = int(round_half_up(np.array(trace.prefix_block_tokens * length_scale)))
        scaled = _fitting_blocks(replace(scaled, prefix_block_tokens=block_tokens))
    return scaled.with_notes(
        Note(code="length_scaled", count=len(trace), text=f"lengths were multiplied by {length_scale:g}")
    )


def limit_lengths(
    trace: Trace,
    *,
    max_input_tokens: int | None = None,
    max_output_tokens: int | None = None,
    max_total_tokens: int | None = None,
    too_long: TooLong = "drop",
) -> Trace:
    """Requests within limits: longer ones are dropped, cut, or all are scaled by one factor until the longest fits.

    Cutting for ``max_total_tokens`` shortens the prompt first (the output's length is what decode costs), down to one
    token. Rows of unknown length (text not yet tokenised) pass; the schedule checks them once they are counted.

    Raises:
        TraceError: nothing is left.
    """
    limits = (max_input_tokens, max_output_tokens, max_total_tokens)
    if all(limit is None for limit in limits):
        return trace
    over = too_long_rows(trace, *limits)
    if not over.any():
        return trace
    count = int(over.sum())
    if too_long == "drop":
        if over.all():
            raise TraceError(f"every request of the trace is longer than allowed ({_said(*limits)}); raise the limits")
        text = f"requests longer than allowed ({_said(*limits)}) were dropped"
        return trace.select(~over).with_notes(Note(code="dropped_too_long", count=count, text=text))
    if too_long == "scale":
        factor = _fitting_factor(trace, *limits)
        text = f"all lengths were multiplied by {factor:.6g} so that {count} too long requests fit ({_said(*limits)})"
        scaled = scale_lengths(trace, factor).with_notes(Note(code="scaled_to_fit", count=len(trace), text=text))
        # Rounding half up can leave a length one token above its limit.
        return limit_lengths(
            scaled,
            max_input_tokens=max_input_tokens,
            max_output_tokens=max_output_tokens,
            max_total_tokens=max_total_tokens,
            too_long="truncate",
        )
    return _truncated(trace, *limits).with_notes(
        Note(code="truncated", count=count, text=f"requests were cut to what is allowed ({_said(*limits)})")
    )


def too_long_rows(
    trace: Trace, max_input: int | None, max_output: int | None, max_total: int | None
) -> npt.NDArray[np.bool_]:
    """Which rows are over a limit, shape [N]; unknown lengths are not."""
    over = np.zeros(len(trace), dtype=np.bool_)
    known = (trace.input_tokens >= 0) & (trace.output_tokens >= 0)
    if max_input is not None:
        over |= trace.input_tokens > max_input
    if max_output is not None:
        over |= trace.output_tokens > max_output
    if max_total is not None:
        over |= known & (trace.input_tokens + trace.output_tokens > max_total)
    return over


def jitter(trace: Trace, rng: np.random.Generator) -> Trace:
    """Requests spread evenly over the cell of the grid that their times were rounded to.

    A stamp at k * step becomes a uniform time in [k * step, (k + 1) * step); the order inside a session is kept.
    """
    grid = detect_grid(trace.arrival_s)
    if grid is None:
        return trace.with_notes(Note(code="no_grid", count=0, text="no time grid was found: jitter changed nothing"))
    arrival_s = trace.arrival_s + rng.uniform(0.0, grid.step_s, len(trace))
    if trace.session is not None:
        arrival_s = not_before_predecessor(arrival_s, trace.session, trace.after)
    order = np.argsort(arrival_s, kind="stable")
    spread = replace(trace, arrival_s=arrival_s - arrival_s.min()).select(order)
    text = f"times on a {grid.step_s:.4g} s grid were spread evenly inside their cell"
    return replace(spread, notes=tuple(n for n in spread.notes if n.code != "grid_detected")).with_notes(
        Note(code="jittered", count=len(trace), text=text)
    )


def _said(max_input: int | None, max_output: int | None, max_total: int | None) -> str:
    named = (("input", max_input), ("output", max_output), ("total", max_total))
    return ", ".join(f"{name} {limit} tokens" for name, limit in named if limit is not None)


def _fitting_factor(trace: Trace, max_input: int | None, max_output: int | None, max_total: int | None) -> float:
    pairs = (
        (max_input, trace.input_tokens),
        (max_output, trace.output_tokens),
        (max_total, trace.input_tokens + trace.output_tokens),
    )
    return min(limit / float(column.max()) for limit, column in pairs if limit is not None)


def with_outputs(trace: Trace, output_tokens: IntArray) -> Trace:
    """Other output lengths; prompts that grow with the answers before them grow with these."""
    context_of = trace.context_of
    if trace.stated == "whole" or (trace.input_tokens < 0).any():
        return replace(trace, output_tokens=output_tokens)
    added = added_lengths(trace.input_tokens, trace.output_tokens, context_of)
    inputs = whole_lengths(added, output_tokens, context_of)
    grown = replace(trace, input_tokens=inputs, output_tokens=output_tokens)
    size = trace.prefix_block_tokens
    if trace.prefix_blocks is None or size is None:
        return grown
    first = [() if before >= 0 else ids for ids, before in zip(trace.prefix_blocks, context_of.tolist(), strict=True)]
    return replace(grown, prefix_blocks=whole_blocks(first, inputs, context_of, size))


def _truncated(trace: Trace, max_input: int | None, max_output: int | None, max_total: int | None) -> Trace:
    if max_output is not None and trace.stated == "added":
        trace = with_outputs(trace, np.minimum(trace.output_tokens, max_output))
    input_tokens = trace.input_tokens if max_input is None else np.minimum(trace.input_tokens, max_input)
    output_tokens = trace.output_tokens if max_output is None else np.minimum(trace.output_tokens, max_output)
    if max_total is not None:
        known = (input_tokens >= 0) & (output_tokens >= 0)
        output_tokens = np.where(known, np.minimum(output_tokens, max_total - 1), output_tokens)
        input_tokens = np.where(known, np.minimum(input_tokens, max_total - output_tokens), input_tokens)
    return _fitting_blocks(replace(trace, input_tokens=input_tokens, output_tokens=output_tokens))


def _fitting_blocks(trace: Trace) -> Trace:
    """Only the prefix blocks that the prompt still reaches into."""
    if trace.prefix_blocks is None or trace.prefix_block_tokens is None:
        return trace
    needed = -(-trace.input_tokens // trace.prefix_block_tokens)
    blocks = tuple(ids[:n] for ids, n in zip(trace.prefix_blocks, needed.tolist(), strict=True))
    return replace(trace, prefix_blocks=blocks)
