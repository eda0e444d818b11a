"""One number of one round of a sweep: what is averaged over rounds, and paired by round between models."""

from __future__ import annotations

import numpy as np

from moeprof.analysis.compare.sweep_points import SweptRound
from moeprof.analysis.cost_bill import MILLION
from moeprof.analysis.tables import column, is_phase, token_times


def usd_total(one: SweptRound) -> float | None:
    """Dollars per million tokens that models are compared by: an open loop bills busy seconds only."""
    return one.usd_per_1m_total_tokens_compared


def usd_output(one: SweptRound) -> float | None:
    """The outputs' part of the additive split, billed alike."""
    usd = one.split.usd_per_output_token
    if usd is None:
        return None
    if one.tables.traffic != "open":
        return MILLION * usd
    return None if one.split.busy_ratio is None else MILLION * usd * one.split.busy_ratio


def outputs_per_s(one: SweptRound) -> float | None:
    """Output tokens per second of all devices."""
    duration_s = one.tables.duration_s
    return one.split.output_tokens / duration_s if duration_s > 0 else None


def tokens_per_s_per_user(one: SweptRound) -> float | None:
    """1 / mean gap between tokens, over all gaps of all requests."""
    times, rows = token_times(one.tables.requests)
    gaps = np.diff(times)[rows[1:] == rows[:-1]] if len(times) > 1 else np.empty(0)
    return 1 / float(gaps.mean()) if len(gaps) and gaps.mean() > 0 else None


def decode_step_s(one: SweptRound) -> float | None:
    """Mean wall time of a pure decode step."""
    steps = one.tables.steps
    seconds = (column(steps, "end_s") - column(steps, "start_s"))[is_phase(steps, "decode")]
    return float(seconds.mean()) if len(seconds) else None


def decode_batch(one: SweptRound) -> float | None:
    """Mean tokens of a pure decode step."""
    tokens = column(one.tables.steps, "decode_tokens")[is_phase(one.tables.steps, "decode")]
    return float(tokens.mean()) if len(tokens) else None
