"""How the sweep of each model ended, in a line for the end of a run: where it saturated, or that nothing was stable."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from moeprof.core.record import LaunchRecord, Record


def sweep_lines(record: Record) -> Iterator[str]:
    """One line per model and launch whose sweep met a saturated rate or was cut."""
    for model in record.models:
        for launch in model.launches:
            where = f"sweep, {model.name}" + (f", launch {launch.number}" if len(model.launches) > 1 else "")
            yield from (f"{where}: {said}" for said in launch_lines(launch))


def launch_lines(launch: LaunchRecord) -> Iterator[str]:
    """What one launch's sweep has to say."""
    judged: dict[float, list[bool | None]] = {}
    cut = []
    for swept in launch.sweep:
        point = swept.sweep_point
        if swept.info.get("status") == "cut":
            cut.append(swept.name)
        if point is not None and point.request_rate is not None and "saturation" in swept.info:
            judged.setdefault(point.request_rate, []).append(swept.info["saturation"]["saturated"])
    stopped: dict[str, Any] = launch.info.get("sweep_stopped") or {}
    if judged and not any(False in said for said in judged.values()):
        rate = min(judged)
        if any(True in said for said in judged.values()):
            yield f"no stable point: even {rate:g} requests/s is saturated; give lower rates"
        else:
            yield f"no stable point is known: the passes are too short to tell from {rate:g} requests/s on"
    elif stopped:
        yield str(stopped["reason"])
    if cut:
        yield f"cut before all requests were served: {', '.join(cut)}"
