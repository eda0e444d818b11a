"""What a trace is like: rates, burstiness, lengths, classes, sessions, prefix reuse. Pure functions of a Trace.

Small bar charts as text, in unicode eighths or in ASCII.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from moeprof.core.trace import NO_SESSION, FloatArray, IntArray, Note, Trace

NUM_BINS = 60
MINUTE_S = 60.0
LEFT_OUT = ("dropped_", "skipped_bad_rows")  # codes of notes


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthStats:
    """Percentiles of a length in tokens (linear interpolation, as numpy has it)."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStats:
    """A trace in numbers; None: it does not have this.

    Attributes:
        source: the format's name.
        num_requests: N.
        span_s: from the first to the last arrival.
        request_rate_per_s: (N - 1) / span, None when all arrive at once.
        gap_cv: standard deviation over mean of the gaps; 1 for Poisson traffic.
        burstiness: 1 / gap_cv ** 2, the shape of gamma gaps with this CV; below 1 is burstier than Poisson.
        peak_rate_per_s: largest rate in one of 60 equal parts of the span.
        peak_minute_requests: most requests in one of the whole minutes since the first, None for less than two minutes.
        peak_minute_ratio: that over the mean of a minute.
        input: prompt lengths, None for text (a tokenizer decides).
        output: output lengths, None for text without them.
        num_characters: characters of prompt text, None for length-only traces.
        classes: requests per class.
        num_sessions: sessions with more than one request are what matters; all are counted.
        num_session_requests: requests that belong to a session.
        turns: turns of the sessions that have more than one, None where none has.
        unused: names of the file's columns or keys that are not used, as far as its reader can tell.
        num_left_out: rows of the file that are not replayed.
        num_prefix_blocks: distinct prefix blocks.
        reused_prefix_ratio: share of prompt tokens in blocks that an earlier request had: the most that a prefix cache
            of any size could save.
        arrivals: requests in each of 60 equal parts of the span.
        notes: what the reader and the transforms said.
    """

    source: str
    num_requests: int
    span_s: float
    request_rate_per_s: float | None
    gap_cv: float | None
    burstiness: float | None
    peak_rate_per_s: float | None
    peak_minute_requests: int | None
    peak_minute_ratio: float | None
    input: LengthStats | None
    output: LengthStats | None
    num_characters: int | None
    classes: dict[str, int]
    num_sessions: int
    num_session_requests: int
    turns: LengthStats | None
    unused: str
    num_left_out: int
    num_prefix_blocks: int
    reused_prefix_ratio: float | None
    arrivals: tuple[int, ...]
    notes: tuple[Note, ...]


def describe(trace: Trace) -> TraceStats:
    """The numbers of a trace."""
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    arrivals = np.histogram(trace.arrival_s, bins=NUM_BINS)[0] if span_s > 0 else np.array([len(trace)])
    gap_cv = _gap_cv(trace)
    in_session = [s for s in trace.session or () if s != NO_SESSION]
    sessions = Counter(in_session)
    turns = [number for number in sessions.values() if number > 1]
    peak = _peak_minute(trace.arrival_s)
    return TraceStats(
        source=trace.source,
        num_requests=len(trace),
        span_s=span_s,
        request_rate_per_s=(len(trace) - 1) / span_s if span_s > 0 else None,
        gap_cv=gap_cv,
        burstiness=1 / gap_cv**2 if gap_cv else None,
        peak_rate_per_s=float(arrivals.max()) / (span_s / NUM_BINS) if span_s > 0 else None,
        peak_minute_requests=peak,
        peak_minute_ratio=peak / (len(trace) * MINUTE_S / span_s) if peak is not None else None,
        input=length_stats(trace.input_tokens),
        output=length_stats(trace.output_tokens),
        num_characters=_num_characters(trace),
        classes=dict(Counter(trace.request_class or ()).most_common()),
        num_sessions=len(sessions),
        num_session_requests=len(in_session),
        turns=length_stats(np.array(turns)) if turns else None,
        unused=next((note.text.partition(": ")[2] for note in trace.notes if note.code == "unused_keys"), ""),
        num_left_out=sum(note.count for note in trace.notes if note.code.startswith(LEFT_OUT)),
        num_prefix_blocks=len({block for blocks in trace.prefix_blocks or () for block in blocks}),
        reused_prefix_ratio=reused_prefix_ratio(trace),
        arrivals=tuple(arrivals.tolist()),
        notes=trace.notes,
    )


def _peak_minute(arrival_s: FloatArray) -> int | None:
    if arrival_s[-1] - arrival_s[0] < 2 * MINUTE_S:
        return None
    minutes, counts = np.unique(np.floor((arrival_s - arrival_s[0]) / MINUTE_S), return_counts=True)
    return int(counts[minutes < np.floor(minutes[-1])].max())  # the last minute is not a whole one


def length_stats(tokens: IntArray) -> LengthStats | None:
    """Percentiles of the lengths, None when some are unknown."""
    if (tokens < 0).any():
        return None
    p50, p90, p99 = np.percentile(tokens, [50, 90, 99]).tolist()
    return LengthStats(mean=float(tokens.mean()), p50=p50, p90=p90, p99=p99, max=int(tokens.max()))


def reused_prefix_ratio(trace: Trace) -> float | None:
    """Share of prompt tokens that lie in leading blocks seen in an earlier request; None without prefix blocks."""
    if trace.prefix_blocks is None or trace.prefix_block_tokens is None:
        return None
    seen: set[int] = set()
    reused = 0
    for blocks, num_input in zip(trace.prefix_blocks, trace.input_tokens.tolist(), strict=True):
        known = next((i for i, block in enumerate(blocks) if block not in seen), len(blocks))
        reused += min(num_input, known * trace.prefix_block_tokens)
        seen.update(blocks)
    return reused / int(trace.input_tokens.sum())


def _gap_cv(trace: Trace) -> float | None:
    gaps = np.diff(trace.arrival_s)
    if len(gaps) < 2 or gaps.mean() == 0:
        return None
    return float(gaps.std() / gaps.mean())


def _num_characters(trace: Trace) -> int | None:
    if trace.prompt_text is not None:
        return sum(map(len, trace.prompt_text))
    if trace.messages is not None:
        return sum(len(content) for messages in trace.messages for _, content in messages)
    return None


def flat_values(stats: TraceStats) -> list[tuple[str, Any]]:
    """(name, value) pairs for a table of two columns; None is an empty cell."""
    rows: list[tuple[str, Any]] = []
    for name, value in asdict(stats).items():
        if name == "notes":
            rows += [(f"note_{note['code']}", note["count"]) for note in value]
        elif name == "classes":
            rows += [(f"class_{key}", count) for key, count in value.items()]
        elif isinstance(value, dict):
            unit = "" if name == "turns" else "_tokens"
            rows += [(f"{name}_{key}{unit}", item) for key, item in value.items()]
        elif name != "arrivals":
            rows.append((f"{name}_tokens" if name in ("input", "output") else name, value))
    return rows


EIGHTHS = " ▁▂▃▄▅▆▇█"
ASCII_LEVELS = " .:-=+*%#"
HISTOGRAM_BINS = 30


def bars(counts: Sequence[int], *, width: int, ascii_only: bool) -> str:
    """One row of bars, at most ``width`` wide; neighbours are averaged where there are more counts than columns.

    The tallest bar is full; anything above 0 shows at least the lowest bar.
    """
    levels = ASCII_LEVELS if ascii_only else EIGHTHS
    values = np.array([part.mean() for part in np.array_split(np.asarray(counts), min(width, len(counts)))])
    heights = np.ceil(values / max(values.max(), 1e-9) * (len(levels) - 1)).astype(int)
    return "".join(levels[height] for height in heights)


def length_histogram(tokens: IntArray) -> tuple[tuple[int, ...], int, int]:
    """Counts in logarithmic bins, with the shortest and longest length."""
    low, high = int(tokens.min()), int(tokens.max())
    if low == high:
        return (len(tokens),), low, high
    counts = np.histogram(np.log(np.maximum(tokens, 1)), bins=HISTOGRAM_BINS)[0]
    return tuple(counts.tolist()), low, high
