"""Bits per byte: the quality that stands beside cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.stats import intervals
from moeprof.core.metric import Card, MetricValue, Place, estimated, missing
from moeprof.core.record.launch import LaunchHeader

NAME = "bits_per_byte"
NOT_MEASURED = "not measured: the run ended before, or instruments.quality is off"

_card = partial(Card, section="quality")
CARDS: tuple[Card, ...] = (
    _card("bits_per_byte", "bits per byte of text", "bits / byte", "lower",
          "sum of -log2 p(output token | all before it) / UTF-8 bytes of the outputs, over forced outputs",
          source="docs/metrics.md#sparsity", kind="quality",
          screen=(Place(80, "bits per byte of text"),), gates=(Place(210, "1%"),), baseline=(Place(120),)),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Of the first launch that tells of it."""
    return quality_metrics([launch.info for launch in context.launches])


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
    value, few = told.bits / told.bytes, "no interval: too few requests"
    return [estimated(NAME, value, intervals.bootstrap_mean(sample), few, n=len(pairs), labels={})]
