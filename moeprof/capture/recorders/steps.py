"""Listens for what each engine step did: table ``steps``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moeprof.capture.engines.base import Step
from moeprof.capture.recorders.stream import TableStream
from moeprof.capture.replay import Recorder
from moeprof.core.trace import Schedule


def step_row(step: Step, origin_s: float, windows: Sequence[int] = ()) -> dict[str, Any]:
    """The row of table ``steps`` for one step; ``attention_pairs`` counts query-key pairs under the causal mask.

    One walk over the sequences, because this runs in the gap between two steps.

    Args:
        step: what happened.
        origin_s: of the pass's clock.
        windows: of the model's layers, where some see the last tokens only.
    """
    prefill = decode = context = prefill_context = pairs = num_prefill = new = 0
    for sequence in step.sequences:
        query, past = sequence.query_tokens, sequence.past_tokens
        context += past + query
        pairs += query * past + query * (query + 1) // 2
        if sequence.is_prefill:
            prefill += query
            prefill_context += past + query
            num_prefill += 1
        else:
            decode += query
        if sequence.token is not None:
            new += 1
    return {
        "start_s": step.start_s - origin_s,
        "end_s": step.end_s - origin_s,
        "device_s": step.device_s,
        "phase": "mixed" if prefill and decode else "prefill" if prefill else "decode",
        "prefill_tokens": prefill,
        "decode_tokens": decode,
        "context_tokens": context,
        "prefill_context_tokens": prefill_context,
        "attention_pairs": pairs,
        "num_requests": len(step.sequences),
        "num_prefill_requests": num_prefill,
        "new_tokens": new,
        "kv_tokens_used": step.kv_tokens_used,
        "instrumented": True,
    } | (_through_windows(step, windows) if windows else {})


def _through_windows(step: Step, windows: Sequence[int]) -> dict[str, list[float]]:
    """Keys and pairs of layers whose queries see the last tokens only, themselves included; one number per window."""
    context, prefill_context, pairs = ([0.0] * len(windows) for _ in range(3))
    for sequence in step.sequences:
        query, past = sequence.query_tokens, sequence.past_tokens
        for i, window in enumerate(windows):
            keys = min(past, window - 1) + query  # the first query looks furthest back
            short = min(query, max(0, window - past))  # queries that still see everything: past + 1, past + 2, ...
            context[i] += keys
            prefill_context[i] += keys if sequence.is_prefill else 0
            pairs[i] += short * past + short * (short + 1) // 2 + (query - short) * window
    return {
        "window_context_tokens": context,
        "window_prefill_context_tokens": prefill_context,
        "window_attention_pairs": pairs,
    }


class StepRecorder(Recorder):
    """One row per step, none of an engine that steps itself. ``cpu_s``: processor time since the last step ended."""

    def __init__(
        self,
        folder: Path,
        table: str = "steps",
        cpu_clock: Callable[[], float] = time.process_time,
        windows: Sequence[int] = (),
    ) -> None:
        self._stream = TableStream(folder, table)
        self._cpu_clock = cpu_clock
        self._windows = tuple(windows)
        self._number = 0

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Remember the origin."""
        self._origin_s = origin_s
        self._cpu_s = self._cpu_clock()

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Append the row."""
        cpu_s = self._cpu_clock()
        row = step_row(step, self._origin_s, self._windows)
        row |= {"step": self._number, "cpu_s": cpu_s - self._cpu_s, "num_waiting": num_waiting}
        self._cpu_s = cpu_s
        self._number += 1
        self._stream.append(row)
        self._stream.flush_if_due()

    def on_end(self, end_s: float) -> None:
        """Write parquet."""
        self._stream.close()
