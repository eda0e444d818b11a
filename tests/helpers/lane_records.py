"""Planted lock-step measurements: every lane's seconds are chosen, so that ratios and taxes can be checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moeprof.core.files import write_json
from moeprof.core.record.lanes import LanePass
from moeprof.core.record.tables import LANE_COLUMNS, arrow_schema


def lane(name: str, rung: str = "dense", **more: Any) -> dict[str, Any]:
    """What pass.json says about a lane."""
    return {"name": name, "model": more.pop("model", name), "rung": rung, "twin_of": None, "match": None, **more}


def write_lanes(
    folder: Path,
    seconds: Mapping[str, Any],
    *,
    lanes: Sequence[dict[str, Any]] = (),
    launch: int = 0,
    concurrency: int = 8,
    num_steps: int = 40,
    num_cycles: int = 3,
    phase: str | Sequence[str] = "decode",
    tokens: int = 8,
    distinct: Mapping[str, int] | None = None,
    cpu_s: Mapping[str, Any] | None = None,
    queued_s: Mapping[str, Any] | None = None,
) -> LanePass:
    """A measurement on disk. ``seconds`` (and ``cpu_s``, which defaults to it): per lane a number or one per turn."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / f"launch-{launch}" / f"c{concurrency}"
    path.mkdir(parents=True)
    num = num_steps * num_cycles
    phases = [phase] * num if isinstance(phase, str) else list(phase) * num_cycles
    frames = []
    for place, (name, wall) in enumerate(seconds.items()):
        wall_s: npt.NDArray[np.float64] = np.broadcast_to(np.asarray(wall, dtype=float), num)
        prefill = np.array([tokens if p == "prefill" else 0 for p in phases])
        data: dict[str, Any] = {
            "cycle": np.arange(num) // num_steps,
            "step": np.arange(num) % num_steps,
            "lane": name,
            "place": place,
            "phase": phases,
            "prefill_tokens": prefill,
            "decode_tokens": tokens - prefill,
            "context_tokens": 100,
            "num_requests": concurrency,
            "wall_s": wall_s,
            "cpu_s": np.broadcast_to((cpu_s or {}).get(name, wall_s), num),
            "queued_s": None if queued_s is None else np.broadcast_to(queued_s[name], num),
            "device_s": None,
            "distinct_experts": (distinct or {}).get(name),
            "max_expert_load": None,
        }
        frames.append(pd.DataFrame(data))
    table = pd.concat([frame.astype(object) for frame in frames], ignore_index=True)
    arrays = {name: list(table[name]) for name in LANE_COLUMNS}
    pq.write_table(pa.table(arrays, schema=arrow_schema("lanes")), path / "lanes.parquet")
    described = list(lanes) or [lane(name) for name in seconds]
    write_json(path / "pass.json", {"kind": "lockstep", "concurrency": concurrency, "lanes": described})
    return LanePass(path)
