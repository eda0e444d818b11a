"""Planted queues: an engine whose capacity is known, under arrivals at a known rate.

Eight places; a request needs as many steps as it has output tokens, 16 on average. A full step takes 3.33 ms, so
8 places / (16 steps x 3.33 ms) = 150 requests per second can be served, and no more.
"""

from __future__ import annotations

import numpy as np

from moeprof.analysis.metrics.tables import PassTables
from tests.helpers.records import make_pass, make_requests, make_steps

PLACES, TOKENS, CAPACITY_PER_S = 8, 16, 150.0
FULL_STEP_S = PLACES / (TOKENS * CAPACITY_PER_S)


def open_queue(rate_per_s: float, num: int, seed: int) -> PassTables:
    """A pass of ``num`` requests that arrive at random (Poisson), with step times that vary by 3 %."""
    rng = np.random.default_rng(seed)
    gaps_s = rng.exponential(size=num - 1)
    gaps_s *= (num - 1) / rate_per_s / gaps_s.sum()  # the rate, to the last digit
    arrival_s = np.concatenate([[0.0], np.cumsum(gaps_s)])
    tokens = rng.integers(TOKENS // 2, TOKENS * 3 // 2 + 1, num)
    entered_s, times_s = np.zeros(num), [np.zeros(n) for n in tokens]
    places: list[int] = []
    rows: list[tuple[float, float, int, int]] = []
    made, waiting, now_s = np.zeros(num, dtype=int), 0, 0.0  # waiting: the next request to enter
    while waiting < num or places:
        while waiting < num and arrival_s[waiting] <= now_s and len(places) < PLACES:
            entered_s[waiting] = now_s
            places.append(waiting)
            waiting += 1
        if not places:
            now_s = arrival_s[waiting]
            continue
        end_s = now_s + FULL_STEP_S * (0.4 + 0.6 * len(places) / PLACES) * (1 + 0.03 * rng.standard_normal())
        rows.append((now_s, end_s, len(places), int(np.searchsorted(arrival_s, now_s, side="right")) - waiting))
        now_s = end_s
        for row in places:
            times_s[row][made[row]] = now_s
            made[row] += 1
        places = [row for row in places if made[row] < tokens[row]]
    start, end, batch, queued = (np.array(values) for values in zip(*rows, strict=True))
    requests = make_requests(
        num, arrival_s=arrival_s, output_tokens=tokens, token_times_s=times_s, first_scheduled_s=entered_s
    )
    steps = make_steps(
        len(rows), decode_tokens=batch.astype(int), num_requests=batch.astype(int), num_waiting=queued.astype(int),
        start_s=start, end_s=end, context_tokens=100 * batch.astype(int),
    )  # fmt: skip
    return make_pass(requests=requests, steps=steps)
