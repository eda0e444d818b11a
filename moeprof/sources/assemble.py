"""The last step of every reader: drop what cannot be replayed, sort, count, and say so in Notes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.trace import NO_SESSION, FloatArray, IntArray, Note, Trace
from moeprof.sources.file import SourceFile

MIN_REQUESTS_PER_STAMP = 1.5  # a grid is only worth a warning when requests share its stamps
FINEST_GRID_S = 1e-9
GRID_TOLERANCE = 0.01  # Mooncake's stamps stand up to 3 ms beside its 3 s grid
GRID_SHARE = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Time stamps that were rounded when recorded.

    Attributes:
        step_s: distance of the grid lines.
        num_stamps: distinct stamps.
    """

    step_s: float
    num_stamps: int


def detect_grid(arrival_s: FloatArray) -> Grid | None:
    """The grid that sorted time stamps stand on, or None.

    A grid needs shared stamps (1.5 requests per stamp) and 99 % of the stamps within 1 % of a multiple of the step. No
    clock that records requests is finer than a nanosecond, so closer stamps are no grid.
    """
    stamps = np.unique(arrival_s)
    if len(stamps) < 3 or len(arrival_s) < MIN_REQUESTS_PER_STAMP * len(stamps):
        return None
    gaps = np.diff(stamps)
    if gaps.min() < FINEST_GRID_S:
        return None
    step_s = float(np.median(gaps / np.maximum(1, np.round(gaps / gaps.min()))))
    span_s = float(stamps[-1] - stamps[0])
    step_s = span_s / max(1, round(span_s / step_s))  # an error in the step would add up over a long trace
    multiples = (stamps - stamps[0]) / step_s
    near = np.abs(multiples - np.round(multiples)) <= GRID_TOLERANCE
    return Grid(step_s=step_s, num_stamps=len(stamps)) if near.mean() >= GRID_SHARE else None


def not_before_predecessor(arrival_s: FloatArray, session: tuple[str, ...]) -> FloatArray:
    """Arrivals where no request of a session stands before the one above it in the file: a running maximum."""
    import pandas as pd

    inside = np.array([s != NO_SESSION for s in session])
    result = arrival_s.copy()
    if inside.any():
        names = np.array(session, dtype=object)[inside]
        result[inside] = pd.Series(arrival_s[inside]).groupby(names).cummax().to_numpy()
    return result


def assemble(
    source: str,
    file: SourceFile,
    *,
    arrival_s: FloatArray | None,
    input_tokens: IntArray,
    output_tokens: IntArray,
    keep: npt.NDArray[np.bool_] | None = None,
    notes: tuple[Note, ...] = (),
    **columns: Any,
) -> Trace:
    """A trace from checked columns in file order.

    Args:
        source: the format's name.
        file: for messages.
        arrival_s: times in seconds from any origin, or None when the format has none.
        input_tokens: prompt lengths, -1 where only text is known.
        output_tokens: asked output lengths, -1 where only text is known.
        keep: rows to keep; the reader has already said in a Note why others go.
        notes: the reader's own notes.
        columns: the optional columns of Trace.

    Raises:
        TraceError: nothing is left to replay.
    """
    number = len(input_tokens)
    said = list(notes)
    keep = np.ones(number, dtype=np.bool_) if keep is None else keep
    for code, column, what in (
        ("dropped_no_input", input_tokens, "with an empty prompt"),
        ("dropped_no_output", output_tokens, "that asked for no output"),
    ):
        empty = keep & (column == 0)
        if empty.any():
            said.append(Note(code=code, count=int(empty.sum()), text=f"requests {what} were dropped"))
            keep = keep & ~empty
    if not keep.any():
        raise file.error(None, f"none of its {number} rows is a request that can be replayed")
    if arrival_s is None:
        said.append(
            Note(code="no_times", count=int(keep.sum()), text="the file has no times: all requests are due at 0")
        )
        arrival_s = np.zeros(number, dtype=np.float64)
    trace = Trace(source=source, arrival_s=arrival_s, input_tokens=input_tokens, output_tokens=output_tokens, **columns)
    if not keep.all():
        trace = trace.select(keep)
    return _in_order(trace).with_notes(*said)


def _in_order(trace: Trace) -> Trace:
    notes: list[Note] = []
    arrival_s = trace.arrival_s
    if trace.session is not None:
        ordered = not_before_predecessor(arrival_s, trace.session)
        moved = int((ordered != arrival_s).sum())
        if moved:
            text = "requests stood before their session's previous one and were moved to its time"
            notes.append(Note(code="session_order", count=moved, text=text))
        arrival_s = ordered
    arrival_s = arrival_s - arrival_s.min()
    trace = replace(trace, arrival_s=arrival_s)
    backwards = int((np.diff(arrival_s) < 0).sum())
    if backwards:
        trace = trace.select(np.argsort(arrival_s, kind="stable"))
        notes.append(
            Note(code="sorted", count=backwards, text="times went backwards; the requests were sorted by time")
        )
    grid = detect_grid(trace.arrival_s)
    if grid is not None:
        notes.append(
            Note(
                code="grid_detected",
                count=len(trace),
                text=f"{len(trace)} requests share {grid.num_stamps} time stamps on a {grid.step_s:.4g} s grid: they "
                "arrive in bursts that were not there; `jitter` spreads them inside their cell",
            )
        )
    return trace.with_notes(*notes)
