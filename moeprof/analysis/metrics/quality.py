"""Bits per byte: the quality that stands beside cost (METRICS section 8).

The machine itself, beside what it measured: a fixed piece of work, timed just before each pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moeprof.analysis.metrics.samples import over_rounds
from moeprof.analysis.stats import intervals
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
    sample = intervals.BlockSample(
        values=pairs[:, 0] / pairs[:, 1], weights=pairs[:, 1], blocks=intervals.blocks_of(len(pairs))
    )
    interval = intervals.bootstrap_mean(sample)
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


REFERENCE_NAME = "reference_kernel_s"
NOT_TIMED = "not timed: the record is older than this figure, or no pass began"


def reference_metrics(passes: Sequence[Mapping[str, Any]]) -> list[MetricValue]:
    """``reference_kernel_s``: mean over the passes of one launch, with its interval over them.

    Where it drifts between launches, other times drift for the machine's reasons too; it corrects none of them.

    Args:
        passes: pass.json of each round and capacity pass.
    """
    return [over_rounds(REFERENCE_NAME, [info.get(REFERENCE_NAME) for info in passes], {}, NOT_TIMED)]
