"""The two models of the throughput rows: the demo MoE, and the 211 M shape with weights drawn once and saved.

Every rival loads the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "workloads" / "models" / "demo-moe"
SHAPE_CONFIG = "cpu-moe-211m"


def load(folder: Path) -> Any:
    """The model as a run loads it, dtype chosen by what this CPU computes in."""
    from moeprof.core.workload.models import ModelSpec

    return _load(ModelSpec(name="bench", path=str(folder)))


def save_shape(folder: Path) -> Path:
    """Write the 211 M shape in float32 into ``folder``, random weights; returns it."""
    from moeprof.core.workload.models import ModelSpec

    model = _load(ModelSpec(name="bench", config=SHAPE_CONFIG, weights="random"))
    model.save_pretrained(folder)
    return folder


def dtype_name(folder: Path) -> str:
    """The dtype in which a run computes it here."""
    import torch
    from transformers import AutoConfig

    from moeprof.capture.models.load import choose_dtype

    dtype, _ = choose_dtype("auto", AutoConfig.from_pretrained(folder), torch.device("cpu"))
    return str(dtype).removeprefix("torch.")


def _load(spec: Any) -> Any:
    import torch

    from moeprof.capture.models.find import find_model
    from moeprof.capture.models.load import load_model, read_blueprint
    from moeprof.core.workload.engine import TransformersSettings

    settings, device = TransformersSettings(), torch.device("cpu")
    source = find_model(spec)
    return load_model(spec, source, read_blueprint(spec, source, settings, device), settings, device).model
