"""Models with random weights and schedules of equal requests, for the probes that step an engine."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.workload_files import tiny_config
from moeprof.capture.models.find import named_configs
from moeprof.capture.models.open import open_model
from moeprof.capture.protocol import LanePlan, SoloPart, WorkerPlan
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prompts, Traffic
from moeprof.core.workload.workload import Instruments, Warmup
from moeprof.sources.schedule import build_schedule
from moeprof.sources.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).resolve().parents[2] / "moeprof" / "data" / "tokenizer" / "tokenizer.json"
EXPONENT = 0.33  # of Zipf's law: random routers send nearly everything to few experts or to all alike


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model on its device, and what it was opened as."""

    model: Any
    spec: ModelSpec
    settings: TransformersSettings


def open_shape(name: str, device: torch.device, *, num_layers: int | None, is_tiny: bool) -> Opened:
    """A named config with random weights and drawn picks, cut to ``num_layers`` layers, or tiny."""
    config = named_configs()[name]
    if num_layers is not None:
        config["num_hidden_layers"] = num_layers
    if is_tiny:
        config = tiny_config(config)
    settings = TransformersSettings(
        dtype="float32" if is_tiny else "bfloat16",
        max_batch_tokens=256 if is_tiny else 8192,
        max_sequences=4 if is_tiny else 64,
        kv_tokens=2048 if is_tiny else 64 * 512,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        spec = ModelSpec(
            name=name, config=str(file), weights="random", routing=RoutingPolicy(policy="zipf", exponent=EXPONENT)
        )
        opened = open_model(spec, None, settings, device)
    return Opened(model=opened.model, spec=spec, settings=settings)


def equal_requests(num: int, input_tokens: int, output_tokens: int) -> Schedule:
    """``num`` requests of one length, all at once, with forced outputs of real text."""
    traffic = Traffic(
        arrivals=Arrivals(pattern="offline"),
        lengths=LengthPair(
            input=Lengths(distribution="fixed", value=input_tokens),
            output=Lengths(distribution="fixed", value=output_tokens),
        ),
        prompts=Prompts(source="packaged"),
        num_requests=num,
    )
    return build_schedule(traffic, tokenizer=load_tokenizer(TOKENIZER), seed=0).measured


def launch_plan(
    opened: Opened, schedule: Schedule, folder: Path, device: torch.device, *, detailed: bool
) -> WorkerPlan:
    """The plan that a worker would get, for the instruments."""
    return WorkerPlan(
        kind="solo",
        lanes=(LanePlan(name=opened.spec.name, model=opened.spec),),
        engine=opened.settings,
        device=str(device),
        threads=None,
        folder=folder,
        schedule_file=folder / "schedule.parquet",
        warmup_file=folder / "schedule.parquet",
        tokenizer_hash=None,
        solo=SoloPart(
            instruments=replace(Instruments(), save_detailed=detailed),
            warmup=Warmup(),
            class_names=schedule.classes,
            measure_peaks=False,
        ),
    )


class StepEnds:
    """A recorder that keeps when pure decode steps of a full batch ended."""

    def __init__(self, batch: int) -> None:
        self._batch, self.ends_s = batch, list[float]()

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Begin anew."""
        self.ends_s = []

    def on_send(self, request: Any, sent_s: float, slack_s: float, refused: str | None) -> None:
        """Nothing to note."""

    def on_step(self, step: Any, num_waiting: int) -> None:
        """Keep the end of a step that counts; another one breaks the chain."""
        counts = step.phase == "decode" and step.decode_tokens == self._batch
        self.ends_s.append(step.end_s if counts else float("nan"))

    def on_end(self, end_s: float) -> None:
        """Nothing to note."""

    @property
    def step_s(self) -> tuple[float, int]:
        """Median seconds from end to end of consecutive steps, and how many there were.

        Raises:
            ValueError: no two such steps in a row.
        """
        between = np.diff(np.asarray(self.ends_s))
        between = between[np.isfinite(between)]
        if not len(between):
            raise ValueError(f"no two decode steps of {self._batch} sequences in a row")
        return float(np.median(between)), len(between)
