"""Parts of a schedule, for checks and measurements that need only a few of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moeprof.core.trace import Schedule


def first_requests(schedule: Schedule, n: int, max_tokens: int | None = None) -> Schedule:
    """The first ``n`` requests of a schedule whose prompt and output are at most ``max_tokens`` together."""
    fits = np.ones(len(schedule), dtype=np.bool_)
    if max_tokens is not None:
        fits = schedule.input_tokens + schedule.output_tokens <= max_tokens
    return _rows(schedule, np.flatnonzero(fits)[:n].tolist())


def _rows(schedule: Schedule, rows: list[int]) -> Schedule:
    outputs = schedule.output_ids

    def pick(column: Sequence[Any]) -> Any:
        return tuple(column[row] for row in rows)

    return replace(
        schedule,
        request_id=pick(schedule.request_id),
        arrival_s=schedule.arrival_s[rows],
        input_ids=pick(schedule.input_ids),
        output_tokens=schedule.output_tokens[rows],
        output_ids=None if outputs is None else pick(outputs),
        request_class=pick(schedule.request_class),
        session=pick(schedule.session),
        prefix_blocks=pick(schedule.prefix_blocks),
        num_characters=schedule.num_characters[rows],
    )
