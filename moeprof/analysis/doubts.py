"""Reasons to doubt a report: every check that failed or weakens a figure, as data with a code (METRICS section 10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from moeprof.analysis.document import Doubt
from moeprof.analysis.doubts_device import device_at_start
from moeprof.analysis.doubts_model import MODEL_CHECKS
from moeprof.analysis.summary import Summary

SEVERITIES = ("error", "warning", "note")


def find_doubts(summary: Summary) -> tuple[Doubt, ...]:
    """All doubts, the worst first."""
    found = [doubt for check in RUN_CHECKS for doubt in check(summary)]
    for model in summary.models:
        found += [doubt for check in MODEL_CHECKS for doubt in check(model)]
    return tuple(sorted(_merged(found), key=lambda doubt: SEVERITIES.index(doubt.severity)))


def _merged(doubts: list[Doubt]) -> list[Doubt]:
    """The same sentence about several models becomes one about the run."""
    by_text: dict[tuple[str, str], list[Doubt]] = {}
    for doubt in doubts:
        by_text.setdefault((doubt.code, doubt.text), []).append(doubt)
    merged = []
    for same in by_text.values():
        names = [doubt.model for doubt in same if doubt.model]
        first = same[0]
        merged.append(
            Doubt(
                code=first.code,
                flag=first.flag,
                severity=first.severity,
                model=", ".join(dict.fromkeys(names)) or None,
                text=first.text,
            )
        )
    return merged


def _status(summary: Summary) -> Iterator[Doubt]:
    status = summary.record.status
    if status in ("interrupted", "started"):
        text = "the run did not end: figures speak for what was measured before it stopped"
        yield Doubt(code="incomplete", flag="schedule", severity="error", model=None, text=text)


def _cut(summary: Summary) -> Iterator[Doubt]:
    """What ``max_minutes`` left out: requests of a pass that was cut, and rounds that never began."""
    workload = summary.record.workload
    asked = int(workload.get("rounds", 1)) * int(workload.get("launches", 1))
    for model in summary.models:
        passes = [passed for launch in model.record.launches for passed in launch.passes]
        parts = []
        for passed in (p for p in passes if p.info.get("status") == "cut"):
            schedules = summary.record.experiment.get("schedules") or {}
            total = (schedules.get(model.name) or {}).get("num_requests", "all")
            parts.append(f"{passed.name} sent {passed.info.get('sent', 0)} of {total} requests")
        missing = asked - sum(not passed.is_capacity for passed in passes)
        if missing > 0 and workload.get("max_minutes") is not None and model.record.status == "done":
            parts.append(f"{missing} of {asked} rounds never began")
        if parts:
            text = f"max_minutes ({workload.get('max_minutes')}) ended the run early: {', '.join(parts)}"
            yield Doubt(code="cut", flag="schedule", severity="error", model=model.name, text=text)


def _resumed(summary: Summary) -> Iterator[Doubt]:
    for model in summary.models:
        for launch in model.record.launches:
            processes = {passed.info.get("process", 0) for passed in (*launch.passes, *launch.sweep)}
            if len(processes) > 1:
                text = (
                    f"the run was resumed: passes of {launch.path.name} come from {len(processes)} processes, and "
                    "memory layout and machine state differ between processes"
                )
                yield Doubt(code="resumed", flag="isolation", severity="warning", model=model.name, text=text)


def _launches(summary: Summary) -> Iterator[Doubt]:
    launches = int(summary.record.workload.get("launches", 1))
    if launches == 1:
        text = (
            "one launch: intervals hold for this process only; memory layout and machine state differ between "
            "launches, claims across code, drivers or days need several (launches: 6)"
        )
        yield Doubt(code="one_launch", flag="latency", severity="note", model=None, text=text)


def _realism(summary: Summary) -> Iterator[Doubt]:
    schedules = summary.record.experiment.get("schedules") or {}
    for schedule in _distinct(schedules):
        if schedule.get("realism") != "real_text":
            made_of = str(schedule.get("realism")).replace("_", " ")
            text = f"prompts are {made_of}: routers react to content, so routing is not that of real text"
            yield Doubt(code="prompts_not_real", flag="realism", severity="error", model=None, text=text)
        if schedule.get("outputs") == "forced_length":
            text = "output lengths are forced to the schedule's; the model would have stopped elsewhere"
            yield Doubt(code="forced_length", flag="realism", severity="note", model=None, text=text)
        if schedule.get("outputs") == "forced":
            text = "outputs are the text's true continuation, fed regardless of what the model itself would say"
            yield Doubt(code="forced", flag="realism", severity="note", model=None, text=text)


def _schedule_notes(summary: Summary) -> Iterator[Doubt]:
    for schedule in _distinct(summary.record.experiment.get("schedules") or {}):
        for note in schedule.get("notes", []):
            yield Doubt(code=str(note["code"]), flag="schedule", severity="note", model=None, text=str(note["text"]))


def _tokenizers(summary: Summary) -> Iterator[Doubt]:
    hashes = {s.get("tokenizer_hash") for s in (summary.record.experiment.get("schedules") or {}).values()}
    if len(hashes) > 1:
        text = "the models have different tokenizers: compare them per character and per request, not per token"
        yield Doubt(code="tokenizers_differ", flag="schedule", severity="warning", model=None, text=text)


def _dtypes(summary: Summary) -> Iterator[Doubt]:
    told = {m.name: str(dtype) for m in summary.models if (dtype := (m.launch.get("engine") or {}).get("dtype"))}
    if len(set(told.values())) > 1:
        said = ", ".join(f"{name} {dtype}" for name, dtype in told.items())
        text = f"the models ran in different dtypes ({said}): their ratios hold that difference too"
        yield Doubt(code="dtypes_differ", flag="isolation", severity="warning", model=None, text=text)


def _machine(summary: Summary) -> Iterator[Doubt]:
    environment = summary.record.environment
    load, cores = environment.get("load_average_1min"), environment.get("cpu_cores") or 1
    if load is not None and load > 0.5 * cores:
        text = f"the machine was busy before the run: load average {load:.1f} on {cores} processors"
        yield Doubt(code="busy_machine", flag="isolation", severity="warning", model=None, text=text)
    if not (summary.record.experiment.get("fit") or {}).get("together", True):
        text = "the models did not fit in memory together: they alternated with reloads, so rounds are further apart"
        yield Doubt(code="reloaded", flag="isolation", severity="note", model=None, text=text)


def _distinct(schedules: dict[str, Any]) -> list[dict[str, Any]]:
    return list({str(s.get("sha256")): s for s in schedules.values()}.values())


RUN_CHECKS: tuple[Callable[[Summary], Iterator[Doubt]], ...] = (
    _status,
    _cut,
    _resumed,
    _launches,
    _realism,
    _schedule_notes,
    _tokenizers,
    _dtypes,
    _machine,
    device_at_start,
)
