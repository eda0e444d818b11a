"""One decode step under each way to launch it: eagerly, captured in a graph, one step ahead, with compiled layers.

Slices of the models, so that all ways fit in one short call: what a way saves per layer and step is read off them.
Compiling comes last, because it takes longest and changes the model. Prefill of 2,048 tokens by experts form beside.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.probe_models import Opened, StepEnds, equal_requests, launch_plan, open_shape
from benchmarks.gpu.probe_tools import Probe
from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.instrumented import RoutingInstrument
from moeprof.capture.replay import replay
from moeprof.core.trace import Schedule

SLICES = (("qwen3-30b-a3b", 12), ("mixtral-8x7b", 4))
BATCHES = (1, 8, 64)
INPUT_TOKENS, OUTPUT_TOKENS = 128, 48
SETTINGS: dict[str, dict[str, Any]] = {
    "eager": {"decode_graphs": "off", "run_ahead": "off"},
    "graph": {"decode_graphs": "auto", "run_ahead": "off"},
    "graph, run ahead": {"decode_graphs": "auto", "run_ahead": "auto"},
    "graph, run ahead, torch attention": {"decode_graphs": "auto", "run_ahead": "auto", "decode_attention": "torch"},
    "graph, run ahead, compiled layers": {"decode_graphs": "auto", "run_ahead": "auto", "compile": "layers"},
}


def main(arguments: list[str] | None = None) -> int:
    """One row per slice, way and batch."""
    probe = Probe(__doc__, arguments)
    for name, num_layers in SLICES[:1] if probe.is_tiny else SLICES:
        opened = open_shape(name, probe.device, num_layers=num_layers, is_tiny=probe.is_tiny)
        tapping = _drawn_picks(probe, opened)
        for way, changes in list(SETTINGS.items())[: -1 if probe.is_tiny else None]:
            _way(probe, opened, tapping, f"{name}, {num_layers} layers", way, changes)
        tapping.close()
        del opened, tapping
        if probe.device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


def _drawn_picks(probe: Probe, opened: Opened) -> RoutingInstrument:
    """Put the drawn picks in force; the tap stays off: these are the engine's own times."""
    return RoutingInstrument(
        opened.model, launch_plan(opened, equal_requests(1, 16, 2), Path("."), probe.device, detailed=False)
    )


def _way(
    probe: Probe, opened: Opened, tapping: RoutingInstrument, what: str, way: str, changes: dict[str, Any]
) -> None:
    """One engine, all batches; an engine that cannot be built is the result of each."""
    engine: Any = None

    def measure(batch: int) -> dict[str, Any]:
        nonlocal engine
        if engine is None:
            engine = build_engine(opened.model, replace(opened.settings, **changes), ListenerSet(tapping.always))
        inputs, outputs = (16, 8) if probe.is_tiny else (INPUT_TOKENS, OUTPUT_TOKENS)
        engine.prepare(batch, inputs + outputs)
        return _timed(engine, equal_requests(batch, inputs, outputs), batch) | {"facts": _facts(engine)}

    for batch in (2,) if probe.is_tiny else BATCHES:
        probe.case(f"{what}, batch {batch}: {way}", partial(measure, batch))
    if engine is not None:
        engine.close()


def _timed(engine: Any, schedule: Schedule, batch: int) -> dict[str, Any]:
    for _ in range(2):  # the first pass warms up
        ends = StepEnds(batch)
        replay(engine, schedule, [ends])
        engine.reset()
    seconds, num = ends.step_s
    return {"step_s": seconds, "steps": num}


def _facts(engine: Any) -> dict[str, Any]:
    facts = asdict(engine.facts)
    keys = ("batching", "attention", "experts", "decode", "compiled", "run_ahead", "decode_experts", "notes")
    return {key: facts.get(key) for key in keys}


if __name__ == "__main__":
    sys.exit(main())
