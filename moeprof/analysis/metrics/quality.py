"""Bits per byte: the quality that stands beside cost (METRICS section 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeprof.analysis import stats
from moeprof.core.metric import MetricValue, missing

NAME = "bits_per_byte"
NOT_MEASURED = "not measured: the run ended before, or instruments.quality is off"


def quality_metrics(launches: Sequence[Mapping[str, Any]]) -> list[MetricValue]:
    """``bits_per_byte`` from the first launch.json that tells of it.

    Sum of bits over sum of bytes of all measured outputs; the interval resamples blocks of neighbouring requests.
    """
    told = next((info["quality"] for info in launches if info.get("quality")), None)
    if told is None or not told.get("bytes"):
        return [missing(NAME, (told or {}).get("reason", NOT_MEASURED))]
    pairs = np.array(told["per_request"], dtype=np.float64)
    sample = stats.BlockSample(
        values=pairs[:, 0] / pairs[:, 1], weights=pairs[:, 1], blocks=stats.blocks_of(len(pairs))
    )
    interval = stats.bootstrap_mean(sample)
    low, high = interval or (None, None)
    return [
        MetricValue(
            name=NAME,
            value=float(told["bits"]) / float(told["bytes"]),
            n=len(pairs),
            ci_low=low,
            ci_high=high,
            reasons=() if interval else ("no interval: too few requests",),
        )
    ]
