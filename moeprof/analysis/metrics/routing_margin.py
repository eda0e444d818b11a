"""How near routing was to another choice: quantiles of p_(k) - p_(k+1) over forced tokens (METRICS section 3).

Tokens are those of forced.npz, one request at a time, so the figures are facts of model and text. Tokens of a request
are alike: intervals resample whole requests, and n counts them. Legend: T tokens, L MoE layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moeprof.analysis import stats
from moeprof.analysis.tables import ALL, BoolArray
from moeprof.analysis.validity import judged
from moeprof.core.forced_picks import ForcedPicks
from moeprof.core.metric import MetricValue, missing
from moeprof.core.record import PHASES, LaunchRecord

PERCENTILES = (5.0, 50.0)
NAMES = ("router_margin_p05", "router_margin_p50")
NOT_RECORDED = "not recorded: the run ended before, is older than this figure, or instruments.forced_picks is off"
UNEXPLAINED = "no scores of the gate give the executed picks (group limits, hashed or overridden routing)"


def margin_metrics(launches: Sequence[LaunchRecord]) -> list[MetricValue]:
    """NAMES from the first launch that has forced picks: over all layers, by phase and class, and per layer.

    Raises:
        RecordError: forced.npz is damaged.
    """
    launch = next((launch for launch in launches if launch.forced_picks is not None), None)
    if launch is None or launch.forced_picks is None:
        told = [info["reason"] for info in (x.info.get("forced_picks") for x in launches) if info and "reason" in info]
        return [missing(name, (*told, NOT_RECORDED)[0], phase=ALL) for name in NAMES]
    return judged(picks_margins(launch.forced_picks), launch)


def picks_margins(picks: ForcedPicks) -> list[MetricValue]:
    """The values of NAMES. Layers whose scores do not give the picks are left out; null where that is all of them."""
    known_L = np.isfinite(picks.margin_TL).any(axis=0)
    every_T = np.ones(picks.num_tokens, dtype=np.bool_)
    if not known_L.any():
        return [missing(name, UNEXPLAINED, phase=ALL) for name in NAMES]
    values = _values(picks, every_T, known_L, {"phase": ALL})
    for phase, of_phase_T in zip(PHASES, (~picks.is_output_T, picks.is_output_T), strict=True):
        values += _values(picks, of_phase_T, known_L, {"phase": phase})
    for number, name in enumerate(picks.classes):
        own_T = picks.class_T == number
        if len(picks.classes) > 1 and own_T.any():
            values += _values(picks, own_T, known_L, {"phase": ALL, "request_class": name})
    for number, name in enumerate(picks.layers):
        if known_L[number]:
            own_L = np.arange(len(picks.layers)) == number
            values += _values(picks, every_T, own_L, {"phase": ALL, "layer": name})
    left_out = int((~known_L).sum())
    note = f"{left_out} of {len(known_L)} layers left out: {UNEXPLAINED}"
    whole = [v if "layer" in v.labels else replace(v, reasons=(*v.reasons, note)) for v in values]
    return whole if left_out else values


def _values(picks: ForcedPicks, tokens_T: BoolArray, layers_L: BoolArray, labels: dict[str, str]) -> list[MetricValue]:
    margins = picks.margin_TL[np.ix_(tokens_T, layers_L)].astype(np.float64)
    finite = np.isfinite(margins)
    requests, block_T = np.unique(picks.request_T[tokens_T], return_inverse=True)
    sample = stats.BlockSample(
        values=margins[finite],
        weights=np.ones(int(finite.sum())),
        blocks=np.broadcast_to(block_T[:, None], margins.shape)[finite],
    )
    drawn, found = stats.bootstrap_percentiles(sample, PERCENTILES), []
    for i, (name, percentile) in enumerate(zip(NAMES, PERCENTILES, strict=True)):
        needed = stats.minimum_samples(max(percentile, 100 - percentile))
        if len(margins) < needed:
            found.append(missing(name, f"{len(margins)} tokens, {needed} are needed", **labels))
            continue
        low, high = (None, None) if drawn is None else stats.percentile_interval(drawn[:, i])
        found.append(
            MetricValue(
                name=name,
                value=float(np.percentile(sample.values, percentile)),
                n=len(requests),
                ci_low=low,
                ci_high=high,
                labels=labels,
                reasons=() if drawn is not None else ("no interval: fewer than ten requests",),
            )
        )
    return found
