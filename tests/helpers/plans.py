"""The plan of a worker whose one model is measured alone, with what a test leaves open filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeprof.capture.protocol import LanePlan, SoloPart, WorkerPlan
from moeprof.core.workload.engine import EngineSettings
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.workload import Instruments, Warmup


def solo_plan(spec: ModelSpec, here: Path, engine: EngineSettings, **more: Any) -> WorkerPlan:
    """Everything ``here``; ``more`` are fields of the plan or of its part."""
    part: dict[str, Any] = {
        "instruments": Instruments(), "warmup": Warmup(), "class_names": ("all",), "measure_peaks": False
    }  # fmt: skip
    plan: dict[str, Any] = {
        "device": "cpu", "threads": 1, "folder": here, "schedule_file": here / "schedule.parquet",
        "warmup_file": here / "schedule.parquet", "tokenizer_hash": None,
    }  # fmt: skip
    for key, value in more.items():
        (plan if key in WorkerPlan.__dataclass_fields__ else part)[key] = value
    lane = LanePlan(name=spec.name, model=spec)
    return WorkerPlan(kind="solo", lanes=(lane,), engine=engine, solo=SoloPart(**part), **plan)
