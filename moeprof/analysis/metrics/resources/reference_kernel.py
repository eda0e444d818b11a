"""The machine itself, beside what it measured: a fixed piece of work, timed just before each pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.samples import over_rounds
from moeprof.core.metric import Card, MetricValue
from moeprof.core.record.passes import PassHeader

_card = partial(Card, section="validity")
CARDS: tuple[Card, ...] = (
    _card("reference_kernel_s", "reference kernel", "s", "lower",
          "median time of a fixed piece of work just before each pass, mean over passes; it corrects no figure",
          source="docs/metrics.md#validity", kind="timed", counts_tokens=False),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Over the passes of a launch."""
    return reference_metrics([found.info for found in context.launches[0].passes])


REFERENCE_NAME = "reference_kernel_s"
NOT_TIMED = "not timed: the record is older than this figure, or no pass began"


def reference_metrics(passes: Sequence[PassHeader]) -> list[MetricValue]:
    """``reference_kernel_s``: mean over the passes of one launch, with its interval over them.

    Where it drifts between launches, other times drift for the machine's reasons too; it corrects none of them.

    Args:
        passes: pass.json of each round and capacity pass.
    """
    return [over_rounds(REFERENCE_NAME, [info.reference_kernel_s for info in passes], {}, NOT_TIMED)]
