"""What each call does: three parts of under ten minutes, each a list of steps with limits. The order is that of worth.

Expected seconds are arithmetic from the workloads' headers, not measurements. A limit is about one and a half times
the expectation, so that one slow step cannot take the others' time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.gpu.steps import Step
from benchmarks.gpu.workload_files import full_size, tiny

PARTS = ("1", "2", "3")
Kind = Literal["probe", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A step of a part.

    Attributes:
        name: of the workload, or of the probe (module ``benchmarks.gpu.probe_<name>``).
        kind: ``run`` a workload, or ``probe``.
        expected_s: how long it should take.
        limit_s: when it is ended.
    """

    name: str
    kind: Kind
    expected_s: float
    limit_s: float


PLAN: dict[str, tuple[Planned, ...]] = {
    "1": (
        Planned(name="environment", kind="probe", expected_s=25, limit_s=60),
        Planned(name="kernels", kind="probe", expected_s=85, limit_s=130),
        Planned(name="roofline-mixtral", kind="run", expected_s=165, limit_s=230),
        Planned(name="overhead", kind="probe", expected_s=95, limit_s=140),
        Planned(name="roofline-qwen3-30b", kind="run", expected_s=120, limit_s=180),
    ),
    "2": (
        Planned(name="mixtral-against-dense", kind="run", expected_s=240, limit_s=330),
        Planned(name="mixtral-8-layers", kind="run", expected_s=150, limit_s=210),
        Planned(name="engine", kind="probe", expected_s=90, limit_s=150),
    ),
    "3": (
        Planned(name="qwen3-30b-against-dense", kind="run", expected_s=225, limit_s=310),
        Planned(name="azure-olmoe", kind="run", expected_s=270, limit_s=330),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Steps to run, and those that cannot be.

    Attributes:
        steps: in order.
        impossible: name -> reason.
        notes: name -> what was replaced.
    """

    steps: tuple[Step, ...]
    impossible: dict[str, str] = field(default_factory=dict)
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)


def build(parts: tuple[str, ...], work: Path, *, is_tiny: bool, only: tuple[str, ...] = ()) -> Built:
    """The steps of these parts.

    Args:
        parts: of PARTS.
        work: folder for records and probes' results.
        is_tiny: tiny twins on the CPU.
        only: names of steps to run; empty: all.
    """
    planned = [p for part in parts for p in PLAN[part] if not only or p.name in only]
    steps: list[Step] = []
    impossible: dict[str, str] = {}
    notes: dict[str, tuple[str, ...]] = {}
    for one in planned:
        if one.kind == "probe":
            steps.append(_probe(one, work, is_tiny))
            continue
        ready = (tiny if is_tiny else full_size)(one.name, work / "workloads")
        if ready.notes:
            notes[one.name] = ready.notes
        if ready.path is None:
            impossible[one.name] = "; ".join(ready.notes)
        else:
            steps.append(_run(one, ready.path, work))
    return Built(steps=tuple(steps), impossible=impossible, notes=notes)


def _probe(one: Planned, work: Path, is_tiny: bool) -> Step:
    file = work / f"{one.name}.json"
    arguments = ["-m", f"benchmarks.gpu.probe_{one.name}", "--out", str(file), "--seconds", str(int(one.limit_s * 0.8))]
    return Step(
        name=one.name,
        arguments=(*arguments, *(["--tiny"] if is_tiny else [])),
        limit_s=one.limit_s,
        makes=file,
    )


def _run(one: Planned, workload: Path, work: Path) -> Step:
    record = work / one.name
    options = ("--output-dir", str(record), "--no-content", "--write", "json", "--quiet")
    return Step(
        name=one.name,
        arguments=("-m", "moeprof", "run", str(workload), *options),
        limit_s=one.limit_s,
        makes=record,
        module_limit=True,
    )
