"""The machine itself, beside what it measured: a fixed piece of work, timed just before each pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moeprof.analysis.metrics.summary import over_rounds
from moeprof.core.metric import MetricValue

NAME = "reference_kernel_s"
NOT_TIMED = "not timed: the record is older than this figure, or no pass began"


def reference_metrics(passes: Sequence[Mapping[str, Any]]) -> list[MetricValue]:
    """``reference_kernel_s``: mean over the passes of one launch, with its interval over them.

    Where it drifts between launches, other times drift for the machine's reasons too; it corrects none of them.

    Args:
        passes: pass.json of each round and capacity pass.
    """
    return [over_rounds(NAME, [info.get(NAME) for info in passes], {}, NOT_TIMED)]
