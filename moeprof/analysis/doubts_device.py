"""Reasons to doubt that come from the device: neighbours, throttling, clocks, limits, errors (METRICS section 10)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moeprof.analysis.device_state import findings
from moeprof.analysis.document import Doubt
from moeprof.analysis.summary import ModelSummary, Summary
from moeprof.analysis.tables import PassTables, column
from moeprof.analysis.throttle import GPU_IDLE, in_words, throttle_codes, throttled_ratio

CLOCK_SPREAD = 1.1


def device_at_start(summary: Summary) -> Iterator[Doubt]:
    """What others did on the device before the run, its limits and modes, and errors during it."""
    experiment = summary.record.experiment
    seen = experiment.get("device_at_start")
    if seen is not None:
        for found in findings(seen, experiment.get("device_at_end")):
            yield Doubt(code=found.code, flag="isolation", severity=found.severity, model=None, text=found.text)


def throttled(model: ModelSummary) -> Iterator[Doubt]:
    """Reasons, and for how much of the time."""
    passes = _sampled(model)
    masks = [column(tables.telemetry, "throttle_reasons") for tables in passes]
    seen = {int(mask) for found in masks for mask in found[np.isfinite(found)]}
    codes = tuple(dict.fromkeys(code for mask in sorted(seen) for code in throttle_codes(mask)))
    if codes:
        times = [column(tables.telemetry, "t_s") for tables in passes]
        shares = [s for t, m in zip(times, masks, strict=True) if (s := throttled_ratio(t, m)) is not None]
        most = f" for up to {100 * max(shares):.0f} % of a pass" if shares else ""
        text = f"the device slowed itself down{most}: {in_words(codes)}"
        yield Doubt(code="throttled", flag="isolation", severity="warning", model=model.name, text=text)


def clocks_changed(model: ModelSummary) -> Iterator[Doubt]:
    """While there was work: a device that idles between requests lowers its clock, and that is no fault."""
    found = []
    for tables in _sampled(model):
        clock, mask = column(tables.telemetry, "sm_clock_mhz"), column(tables.telemetry, "throttle_reasons")
        idle = np.array([np.isfinite(m) and bool(int(m) & GPU_IDLE) for m in mask], dtype=np.bool_)
        inside = column(tables.telemetry, "t_s") >= 0
        found.append(clock[np.isfinite(clock) & ~idle & inside])
    clocks = np.concatenate(found) if found else np.empty(0)
    if len(clocks) and clocks.max() > CLOCK_SPREAD * clocks.min():
        text = f"the device's clock moved between {clocks.min():.0f} and {clocks.max():.0f} MHz while it had work"
        yield Doubt(code="clocks_changed", flag="isolation", severity="warning", model=model.name, text=text)


def other_processes(model: ModelSummary) -> Iterator[Doubt]:
    """During passes; in how many of the samples."""
    others = [column(tables.telemetry, "num_other_processes") for tables in _sampled(model)]
    known = np.concatenate(others) if others else np.empty(0)
    known = known[np.isfinite(known)]
    if (known > 0).any():
        text = f"other processes used the device in {100 * (known > 0).mean():.0f} % of the samples, up to "
        text += f"{int(known.max())} at once"
        yield Doubt(code="other_processes", flag="isolation", severity="warning", model=model.name, text=text)


def _sampled(model: ModelSummary) -> list[PassTables]:
    return [tables for tables in (*model.rounds, *model.capacity) if len(tables.telemetry)]
