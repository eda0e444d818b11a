"""Listens for what each engine step did: table ``steps``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moeprof.capture.engine.base import Step
from moeprof.capture.streams import TableStream
from moeprof.core.trace import Request, Schedule


def step_row(step: Step, origin_s: float) -> dict[str, Any]:
    """The row of table ``steps`` for one step; ``attention_pairs`` counts query-key pairs under the causal mask."""
    sequences = step.sequences
    pairs = sum(s.query_tokens * s.past_tokens + s.query_tokens * (s.query_tokens + 1) // 2 for s in sequences)
    return {
        "start_s": step.start_s - origin_s,
        "end_s": step.end_s - origin_s,
        "device_s": step.device_s,
        "phase": step.phase,
        "prefill_tokens": step.prefill_tokens,
        "decode_tokens": step.decode_tokens,
        "context_tokens": step.context_tokens,
        "prefill_context_tokens": sum(s.past_tokens + s.query_tokens for s in sequences if s.is_prefill),
        "attention_pairs": pairs,
        "num_requests": len(sequences),
        "num_prefill_requests": sum(s.is_prefill for s in sequences),
        "new_tokens": sum(s.token is not None for s in sequences),
        "kv_tokens_used": step.kv_tokens_used,
        "instrumented": True,
    }


class StepRecorder:
    """One row per step. ``cpu_s`` is processor time since the last step ended, so idle waiting is not in it."""

    def __init__(self, folder: Path, table: str = "steps", cpu_clock: Callable[[], float] = time.process_time) -> None:
        self._stream = TableStream(folder, table)
        self._cpu_clock = cpu_clock
        self._number = 0

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Remember the origin."""
        self._origin_s = origin_s
        self._cpu_s = self._cpu_clock()

    def on_send(self, request: Request, sent_s: float, slack_s: float, refused: str | None) -> None:
        """Nothing to note."""

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Append the row."""
        cpu_s = self._cpu_clock()
        row = step_row(step, self._origin_s)
        row |= {"step": self._number, "cpu_s": cpu_s - self._cpu_s, "num_waiting": num_waiting}
        self._cpu_s = cpu_s
        self._number += 1
        self._stream.append(row)
        self._stream.flush_if_due()

    def on_end(self, end_s: float) -> None:
        """Write parquet."""
        self._stream.close()
