"""Bits per byte: the quality that stands beside cost (METRICS section 8).

The machine itself, beside what it measured: a fixed piece of work, timed just before each pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moeprof.analysis.metrics.samples import over_rounds
from moeprof.analysis.stats import intervals
from moeprof.core.metric import MetricValue, missing
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.record.passes import PassHeader

NAME = "bits_per_byte"
NOT_MEASURED = "not measured: the run ended before, or instruments.quality is off"


def quality_metrics(launches: Sequence[LaunchHeader]) -> list[MetricValue]:
    """``bits_per_byte`` from the first launch.json that tells of it.

    Sum of bits over sum of bytes of all measured outputs; the interval resamples blocks of neighbouring requests.
    """
    told = next((launch.quality for launch in launches if launch.quality is not None), None)
    if told is None or told.bits is None or not told.bytes:
        return [missing(NAME, (told and told.reason) or NOT_MEASURED)]
    pairs = np.array(told.per_request, dtype=np.float64)
    sample = intervals.BlockSample(
        values=pairs[:, 0] / pairs[:, 1], weights=pairs[:, 1], blocks=intervals.blocks_of(len(pairs))
    )
    interval = intervals.bootstrap_mean(sample)
    low, high = interval or (None, None)
    return [
        MetricValue(
            name=NAME,
            value=told.bits / told.bytes,
            n=len(pairs),
            ci_low=low,
            ci_high=high,
            reasons=() if interval else ("no interval: too few requests",),
        )
    ]


REFERENCE_NAME = "reference_kernel_s"
NOT_TIMED = "not timed: the record is older than this figure, or no pass began"


def reference_metrics(passes: Sequence[PassHeader]) -> list[MetricValue]:
    """``reference_kernel_s``: mean over the passes of one launch, with its interval over them.

    Where it drifts between launches, other times drift for the machine's reasons too; it corrects none of them.

    Args:
        passes: pass.json of each round and capacity pass.
    """
    return [over_rounds(REFERENCE_NAME, [info.reference_kernel_s for info in passes], {}, NOT_TIMED)]
