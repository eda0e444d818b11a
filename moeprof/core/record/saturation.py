"""Does the queue of an open loop grow without bound? Decided from one pass, by a rule that can be checked by hand.

The wing that measures asks it while a sweep runs, the wing that reads asks it of every open pass of a record.

A queue is stable when work arrives more slowly than it can be served (Loynes 1962); above that the number of requests
in the system grows by (arrival rate - service rate) per second, for ever. A pass is short, so growth has to be told
from the start (an empty system fills up to rate x latency, Little's law) and from bursts (which pass). Of
conversations whose turns wait for answers, first turns alone are requests here.

The rule. H is the last arrival, or the end of a pass that was cut before it. The start is left out: t0 is a third of
H, or the median latency of the first five requests if that is longer. N(t) is requests arrived and not finished. The
pass is saturated when all three hold:

1. trend: over eight equal windows of [t0, H] the mean of N rises, one-sided t-test of the least-squares slope at 1 %
   (batch means; Law and Kelton, Simulation Modeling and Analysis, section 9.5);
2. size: fewer than 0.9 requests finish in [t0, H] for each that arrives;
3. not a burst: N(H) - N(t0) is more than the longest queue that a server with 0.9 load would have had before it on the
   very same arrivals (Lindley's recursion, 1952).

Cannot tell: the first requests take more than half of H, so the system may just be filling up; or the last two hold
without the first: the queue is long, and whether it goes on growing the pass does not show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moeprof.core.record.passes import Saturation
from moeprof.core.trace import FloatArray

if TYPE_CHECKING:
    import pandas as pd

WINDOWS = 8
T_99 = 3.143  # Student's t, one-sided 1 %, WINDOWS - 2 degrees of freedom
ENOUGH = 0.9  # of the arriving requests are served: also the load of the server that bursts are judged by
MIN_REQUESTS = 16
START_SHARE = 1 / 3
FIRST = 5  # requests whose median latency says how long an empty system takes to fill
NO_RATE = {"closed": "closed loop: requests wait for a place", "offline": "all requests were sent at once"}


def judge_requests(requests: pd.DataFrame, traffic: str, end_s: float) -> Saturation:
    """The rule on table ``requests`` of a pass; ``end_s`` is when the pass ended, seconds from its start."""
    if traffic != "open":
        return Saturation(saturated=False, reason=f"{NO_RATE[traffic]}, so there is no rate to keep up with")
    return judge(*open_times(requests), end_s)


def first_turns(requests: pd.DataFrame) -> pd.DataFrame:
    """The requests that waited for no answer: all of them where sessions are open, or there are none."""
    return requests[requests["after"].isna()]


def open_times(requests: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """When each request that was let in arrived, ascending, and was finished; NaN where the pass ended first.

    Turns that waited for an answer do not arrive at a rate of their own: first turns alone are judged.
    """
    ran = first_turns(requests)
    ran = ran[ran["status"].isin(["done", "unfinished"])].sort_values("arrival_s", kind="stable")
    finished = ran["last_token_s"].where(ran["status"] == "done")
    return ran["arrival_s"].to_numpy(dtype=float), finished.to_numpy(dtype=float, na_value=np.nan)


def settled_from_s(arrival_s: FloatArray, finished_s: FloatArray, horizon_s: float) -> float:
    """t0 of the rule: from when on an engine that started empty is full; infinite where nothing ended."""
    first = np.median(np.where(np.isnan(finished_s), np.inf, finished_s - arrival_s)[:FIRST])
    return max(horizon_s * START_SHARE, float(first))


def judge(arrival_s: FloatArray, finished_s: FloatArray, end_s: float) -> Saturation:
    """The rule of this file.

    Args:
        arrival_s: ascending, seconds from the start of the pass, shape [N].
        finished_s: likewise; NaN where the pass ended first, shape [N].
        end_s: the end of the pass.
    """
    number = len(arrival_s)
    if number < MIN_REQUESTS:
        return Saturation(saturated=None, reason=f"cannot tell: {number} requests, the rule needs {MIN_REQUESTS}")
    horizon_s = min(float(arrival_s[-1]), end_s)
    start_s = settled_from_s(arrival_s, finished_s, horizon_s)
    finished_s = np.where(np.isnan(finished_s), np.inf, finished_s)
    if not start_s <= horizon_s / 2:
        taking = "does not end" if np.isinf(start_s) else f"takes {start_s:.3g} s"
        return Saturation(
            saturated=None,
            reason=f"cannot tell: requests arrive within {horizon_s:.3g} s and one of them {taking}, so the system is "
            "still filling up; send more requests, for longer",
        )
    arrived = _between(arrival_s, start_s, horizon_s)
    served = _between(finished_s, start_s, horizon_s)
    growth = arrived - served
    burst = longest_queue(arrival_s, ENOUGH)
    trend = _trend(arrival_s, finished_s, start_s, horizon_s)
    text = f"{served} of {arrived} requests were served while the last {horizon_s - start_s:.3g} s of them arrived"
    if served >= ENOUGH * arrived or growth <= burst:
        return Saturation(saturated=False, reason=text)
    text += f"; the queue grew by {growth}, bursts explain {burst} (trend t = {trend:.1f})"
    if trend > T_99:
        return Saturation(saturated=True, reason=text)
    return Saturation(saturated=None, reason=f"cannot tell: {text}: it did not grow steadily; send more requests")


def longest_queue(arrival_s: FloatArray, load: float) -> int:
    """Requests in the system of one server with equal service times, at most, at the given load, on these arrivals.

    Lindley: the wait of request i + 1 is max(0, wait_i + service - gap_i); waits / service requests stand before it.
    """
    span_s = float(arrival_s[-1] - arrival_s[0])
    service_s = load * span_s / (len(arrival_s) - 1)
    if service_s == 0:
        return len(arrival_s)
    wait_s = longest_s = 0.0
    for gap_s in np.diff(arrival_s).tolist():
        wait_s = max(0.0, wait_s + service_s - gap_s)
        longest_s = max(longest_s, wait_s)
    return int(np.ceil(longest_s / service_s)) + 1


def _between(times_s: FloatArray, start_s: float, end_s: float) -> int:
    return int(((times_s > start_s) & (times_s <= end_s)).sum())


def _trend(arrival_s: FloatArray, finished_s: FloatArray, start_s: float, end_s: float) -> float:
    """Student's t of the slope of the mean number in the system over the windows; infinity for a straight rise."""
    edges = np.linspace(start_s, end_s, WINDOWS + 1)
    # Request-seconds inside each window: how long each request was in the system there.
    inside = np.minimum(finished_s[:, None], edges[1:]) - np.maximum(arrival_s[:, None], edges[:-1])
    means = np.maximum(inside, 0.0).sum(axis=0) / (edges[1] - edges[0])
    x = np.arange(WINDOWS) - (WINDOWS - 1) / 2
    slope = float((x * means).sum() / (x * x).sum())
    left = means - means.mean() - slope * x
    error = float(np.sqrt((left * left).sum() / (WINDOWS - 2) / (x * x).sum()))
    if error <= 1e-12 * max(1.0, abs(slope)):
        return float(np.sign(slope)) * np.inf if slope else 0.0
    return slope / error
