"""The measured side of theory beside measurement: times of two models on the same steps, paired."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moeprof.analysis.compare.estimate import Estimate
from moeprof.analysis.compare.lockstep_page import LockstepPair
from moeprof.analysis.compare.sweep_points import log_ratio_estimate
from moeprof.analysis.headline import why_incomparable
from moeprof.analysis.tables import ALL

if TYPE_CHECKING:
    from moeprof.analysis.summary import ModelSummary, Summary

OTHER_BATCHES = "open loop without a capacity pass: the models ran other batches"
OTHER_REQUESTS = "the models were sent different requests"
NOT_IN_TURN = "these models were not stepped in turn at this load"


def why_not_measured(summary: Summary, moe: ModelSummary, dense: ModelSummary) -> str | None:
    """Why measured times of two models must not be compared, or None."""
    if "open" in (moe.priced[0].traffic, dense.priced[0].traffic):
        return OTHER_BATCHES
    mine, theirs = (_schedule(summary, m).get("sha256") for m in (moe, dense))
    return OTHER_REQUESTS if mine != theirs else why_incomparable(moe, dense)


def own_load(summary: Summary, model: ModelSummary) -> int | None:
    """Requests in flight in the passes that headline dollars come from; None when all were sent at once."""
    concurrency = _schedule(summary, model).get("concurrency")
    return int(concurrency) if concurrency and model.priced[0].traffic == "closed" else None


def _schedule(summary: Summary, model: ModelSummary) -> dict[str, Any]:
    return dict((summary.record.experiment.get("schedules") or {}).get(model.name) or {})


def paired_times(above: Sequence[float], below: Sequence[float], launches: tuple[int, int]) -> Estimate:
    """The ratio of times, paired by round; by launch where both have the same number of several.

    Args:
        above: of the model in the numerator, one per round, launch after launch.
        below: likewise of the denominator.
        launches: how many launches each comes from.
    """
    if len(above) != len(below):
        ratio = float(np.mean(above) / np.mean(below))
        return Estimate(value=ratio, reason=f"no interval: {len(above)} rounds against {len(below)}")
    logs = np.log(np.asarray(above) / np.asarray(below))
    if launches[0] > 1 and launches[0] == launches[1] and len(logs) % launches[0] == 0:
        logs = logs.reshape(launches[0], -1).mean(axis=1)
    return log_ratio_estimate(np.exp(logs).tolist())


def in_turn(pairs: Sequence[LockstepPair], moe: str, dense: str, phase: str, load: int | None) -> Estimate:
    """Step time of the dense model over the MoE's, stepped in turn at the same load; less noise than lone runs.

    Args:
        pairs: all lock-step measurements of the run.
        moe: name of the MoE.
        dense: name of the dense model.
        phase: prefill, decode or all.
        load: requests in flight; None when all are sent at once.
    """
    for pair in pairs:
        told = pair.phases.get(None if phase == ALL else phase)
        if (pair.moe, pair.dense, pair.concurrency) == (moe, dense, load) and told is not None:
            return inverse(told.ratio)
    return Estimate(value=None, reason=NOT_IN_TURN)


def inverse(ratio: Estimate) -> Estimate:
    """1 / ratio, its interval turned around."""
    if not ratio.value:
        return Estimate(value=None, n=ratio.n, reason=ratio.reason or "the ratio is 0")
    low, high = (1 / end if end else None for end in (ratio.high, ratio.low))
    known = low is not None and high is not None
    return Estimate(
        value=1 / ratio.value, low=low if known else None, high=high if known else None, n=ratio.n, reason=ratio.reason
    )
