"""Energy of a pass (docs/metrics.md#energy): the counter's difference, checked against sampled power.

A figure stands only when the window is bracketed by samples (at most 5 % of it lie outside them), much longer than the
counter's period, sampled without long gaps, when nobody else used the device, and both ways of measuring agree.
Otherwise it is null with a reason code: ``no_counter``, ``window_too_short``, ``window_not_bracketed``, ``sample_gap``,
``counter_reset``, ``counter_stuck``, ``shared_device``, ``no_power_samples``, ``power_gap``, ``counter_disagrees``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.samples import over_rounds
from moeprof.analysis.metrics.tables import PassTables, column
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.metric import Card, MetricValue, Place, measured, missing

if TYPE_CHECKING:
    import pandas as pd

COUNTER_PERIOD_S = 0.1
SHORTEST_WINDOW_S = 20 * COUNTER_PERIOD_S
LONGEST_GAP_S = 3.0
MOST_EXTRAPOLATED = 0.05  # share of the window before the first and after the last sample; mean power fills it
MOST_DISAGREEMENT = 0.05
PER_PASS = ("energy_j", "power_mean_w", "energy_j_per_output_token", "energy_j_per_total_token")

_card = partial(Card, section="energy", source="docs/metrics.md#energy", kind="timed")
_of_run = partial(_card, counts_tokens=False)
_of_tokens = partial(_card, counts_tokens=True)
CARDS: tuple[Card, ...] = (
    _of_run("energy_j", "energy", "J", "lower", "counter difference over the window, within 5 % of sampled power"),
    _of_run("power_mean_w", "mean power", "W", "lower", "energy_j / window"),
    _of_tokens("energy_j_per_output_token", "energy per output token", "J / token", "lower", "energy_j / output tokens",
          screen=(Place(190, "energy / output token"),), gates=(Place(330, "floor"),), baseline=(Place(110),)),
    _of_tokens("energy_j_per_total_token", "energy per token", "J / token", "lower",
          "energy_j / (prompt tokens computed + output tokens)"),
    _of_run("idle_power_w", "idle power", "W", "lower",
          "median of two seconds of samples before anything ran; null where the device was busy"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Energy of passes with the same traffic."""
    return energy_metrics(context.passes, *context.idle_power)


@dataclass(frozen=True, slots=True, kw_only=True)
class PassEnergy:
    """Energy of one pass.

    Attributes:
        joules: over the whole window, or None.
        reason: code when there is none, else None.
        source: ``nvml`` (device), ``rapl`` (processor packages: everything that runs on them), or ``none``.
    """

    joules: float | None
    reason: str | None
    source: str


def pass_energy(tables: PassTables) -> PassEnergy:
    """Energy over the window of a pass: of the device where it has a counter, else of the processor packages."""
    if not len(tables.telemetry):
        return PassEnergy(joules=None, reason="no_counter", source="none")
    for source, name in (("nvml", "energy_counter_j"), ("rapl", "cpu_energy_counter_j")):
        counter = column(tables.telemetry, name)
        known = np.isfinite(counter)
        if known.any():
            joules = _counted(column(tables.telemetry, "t_s")[known], counter[known], tables, source)
            if isinstance(joules, str):
                return PassEnergy(joules=None, reason=joules, source=source)
            return PassEnergy(joules=joules, reason=None, source=source)
    return PassEnergy(joules=None, reason="no_counter", source="none")


def _counted(times: FloatArray, counter: FloatArray, tables: PassTables, source: str) -> float | str:
    """J, or a reason code."""
    start_s, end_s = tables.window_s
    if end_s - start_s < SHORTEST_WINDOW_S:
        return "window_too_short"
    edges_s = max(times[0] - start_s, 0.0), max(end_s - times[-1], 0.0)
    if len(times) < 2 or sum(edges_s) > MOST_EXTRAPOLATED * (end_s - start_s) or max(edges_s) > LONGEST_GAP_S:
        return "window_not_bracketed"
    inside = (times >= start_s - LONGEST_GAP_S) & (times <= end_s + LONGEST_GAP_S)
    if np.diff(times[inside]).max(initial=0.0) > LONGEST_GAP_S:
        return "sample_gap"
    if (np.diff(counter) < 0).any():
        return "counter_reset"
    joules = _between(times, counter, start_s, end_s)
    if source == "nvml":
        return _doubtful(joules, tables) or joules
    return joules if joules > 0 else "counter_stuck"  # a processor that runs a model takes power


def _between(times: FloatArray, counter: FloatArray, start_s: float, end_s: float) -> float:
    """Counter difference over the window, interpolated; an edge without a sample is filled with the mean power."""
    low, high = max(start_s, float(times[0])), min(end_s, float(times[-1]))
    covered = float(np.interp(high, times, counter) - np.interp(low, times, counter))
    return covered * (end_s - start_s) / (high - low)


def _doubtful(joules: float, tables: PassTables) -> str | None:
    """Why the device's counter is not to be believed, or None: the trapezoid of sampled power is within 5 % of it."""
    power, times = column(tables.telemetry, "power_w"), column(tables.telemetry, "t_s")
    start_s, end_s = tables.window_s
    others = column(tables.telemetry, "num_other_processes")[(times >= start_s) & (times <= end_s)]
    if (others > 0).any():  # a comparison with NaN, which is not known, is false
        return "shared_device"
    known = np.isfinite(power)
    if known.sum() < 2:
        return "no_power_samples"
    times, power = times[known], power[known]
    low, high = max(start_s, float(times[0])), min(end_s, float(times[-1]))
    edges = [low, *times[(times > low) & (times < high)], high]
    if high <= low or max(np.diff(edges).max(), low - start_s, end_s - high) > LONGEST_GAP_S:
        return "power_gap"
    grid = np.unique(np.concatenate([[low, high], times[(times > low) & (times < high)]]))
    sampled = float(np.trapezoid(np.interp(grid, times, power), grid)) * (end_s - start_s) / (high - low)
    return None if abs(sampled - joules) <= MOST_DISAGREEMENT * max(joules, sampled) else "counter_disagrees"


def energy_metrics(
    rounds: Sequence[PassTables], idle_power_w: float | None = None, idle_reason: str = "no power meter"
) -> list[MetricValue]:
    """Energy, mean power, and energy per token of the rounds; the device's idle power apart.

    Args:
        rounds: passes with the same traffic.
        idle_power_w: measured before anything ran, or None.
        idle_reason: why there is none.
    """
    if not rounds:
        return []
    labels: dict[str, str] = {"traffic": rounds[0].traffic}
    values = [measured("idle_power_w", idle_power_w, idle_reason, labels)]
    energies = [pass_energy(tables) for tables in rounds]
    failed = next((energy for energy in energies if energy.joules is None), None)
    if failed is not None:
        return [*values, *(missing(name, str(failed.reason), **labels) for name in PER_PASS)]
    labels |= {"energy_source": energies[0].source}
    joules = [float(energy.joules or 0.0) for energy in energies]
    outputs = [output_tokens(tables) for tables in rounds]
    totals = [out + input_tokens(tables) for out, tables in zip(outputs, rounds, strict=True)]
    return [
        *values,
        over_rounds(PER_PASS[0], joules, labels, ""),
        over_rounds(PER_PASS[1], [j / t.duration_s for j, t in zip(joules, rounds, strict=True)], labels, ""),
        over_rounds(PER_PASS[2], _per(joules, outputs), labels, "no output tokens"),
        over_rounds(PER_PASS[3], _per(joules, totals), labels, "no tokens"),
    ]


def _per(joules: Sequence[float], tokens: Sequence[float]) -> list[float | None]:
    return [j / t if t else None for j, t in zip(joules, tokens, strict=True)]


def output_tokens(tables: PassTables) -> float:
    """Output tokens produced in the pass, those of failed requests included."""
    if not len(tables.steps):  # an engine that steps itself tells tokens by request
        return float(np.nansum(column(_served(tables), "output_tokens")))
    return float(np.nansum(column(tables.steps, "new_tokens")))


def input_tokens(tables: PassTables) -> float:
    """Prompt tokens computed in the pass; cached and recomputed ones are counted apart."""
    if not len(tables.steps):
        served = _served(tables)
        prompts = column(served, "input_tokens") - np.nan_to_num(column(served, "cached_tokens"))
        return float(np.nansum(prompts))
    recomputed = float(np.nansum(column(tables.requests, "recomputed_tokens")))
    return float(np.nansum(column(tables.steps, "prefill_tokens"))) - recomputed


def _served(tables: PassTables) -> pd.DataFrame:
    """Requests that got a token; those that were refused got none."""
    requests = tables.requests
    return requests[np.isfinite(column(requests, "first_token_s")) & (requests["status"] != "refused")]
