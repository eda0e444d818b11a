"""Itemised steps with round numbers, as launch.json holds them. Four tokens decode with three of four experts."""

from __future__ import annotations

from typing import Any

from moeprof.core.record.breakdown import Clock, Gap, GapPoint, ProfiledStep
from moeprof.core.record.launch import LaunchHeader
from tests.helpers.records import launch_header

LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")
# Of make_facts(): 800,000 bytes of attention, 600,000 of the head, 120,000 of experts, 323,200 of keys and values, and
# 800 of embedding rows. At 1 GB/s that is 0.8, 0.6, 0.12, 0.3232 and 0.0008 ms.
PEAKS: dict[str, Any] = {
    "bandwidth_bytes_per_s": 1e9,
    "bandwidth_method": "copy",
    "flops_per_s": {"bfloat16": 1e12},
    "cache_bytes": 1000,
    "threads": 1,
}
ROOFLINE_MS = 0.8 + 0.6 + 0.12 + 0.3232 + 0.0008
STAGES_MS = {"attention_projections": 1.0, "attention": 0.5, "experts": 0.5, "lm_head": 0.6}  # 2.6 ms together


def make_profiled(stages_ms: dict[str, float] | None = None, *, wall_ms: float = 5.0, **more: Any) -> ProfiledStep:
    stages = STAGES_MS if stages_ms is None else stages_ms
    stage_s = {name: ms / 1e3 for name, ms in stages.items()}
    return ProfiledStep(wall_s=wall_ms / 1e3, stage_s=stage_s, **{"launches": 30, **more})


def make_point(*, wall_ms: float = 4.0, device_ms: float | None = None, **more: Any) -> GapPoint:
    values: dict[str, Any] = {
        "phase": "decode",
        "sequences": 4,
        "tokens": 4,
        "new_tokens": 4,
        "context_tokens": 400.0,
        "attention_pairs": 400.0,
        "distinct_L": (3.0, 3.0),
        "wall_S": (wall_ms / 1e3,) * 3,
        "device_S": None if device_ms is None else (device_ms / 1e3,) * 3,
        "profiled_P": (make_profiled(),),
    }
    return GapPoint(**values | more)


def make_launch(*points: GapPoint, clock: Clock = "operations", peaks: Any = PEAKS, **engine: Any) -> LaunchHeader:
    gap = Gap(clock=clock, layers=LAYERS, points=points, spent_s=1.0)
    own = {"experts": "grouped_mm", "dtype": "bfloat16"} | engine
    return launch_header({"engine": own, "peaks": peaks, "gap": gap})
