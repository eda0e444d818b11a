"""Builds the paged engine that a workload asks for: kernels, captured steps, compiled layers, each with its reason.

What is asked for by name and cannot be had is an error. What ``auto`` tries and does not work is left out, and the
record says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moeprof.capture.engine.base import ListenerSet
from moeprof.capture.engine.paged.compiled import compile_layers
from moeprof.capture.engine.paged.engine import PagedEngine
from moeprof.capture.engine.paged.graphs import CudaGraphs, GraphBackend
from moeprof.capture.engine.paged.options import PagedOptions
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload import EngineSettings


def build_paged(
    model: Any,
    settings: EngineSettings,
    kv_tokens: int,
    listeners: ListenerSet,
    eos_ids: Sequence[int],
    *,
    in_turn: bool = False,
) -> PagedEngine:
    """The engine; see :func:`moeprof.capture.engine.select.build_engine`.

    Raises:
        UnsupportedModelError: something was asked for by name that this device or model cannot do.
    """
    device = torch.device(model.device)
    options = PagedOptions(
        kv_tokens=kv_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_sequences=settings.max_sequences,
        eos_ids=tuple(eos_ids),
        run_ahead=_runs_ahead(settings, device) and not in_turn,
        graphs=_graphs(settings, device),
        compiled=compile_layers(model) if settings.compile == "layers" else None,
    )
    return PagedEngine(model, options, listeners)


def _runs_ahead(settings: EngineSettings, device: torch.device) -> bool:
    """On a CPU a step has ended when its call returns: there is nothing to be ahead of."""
    return settings.run_ahead == "on" or (settings.run_ahead == "auto" and device.type == "cuda")


def _graphs(settings: EngineSettings, device: torch.device) -> GraphBackend | None:
    if settings.decode_graphs == "on" and device.type != "cuda":
        raise UnsupportedModelError(f"engine.decode_graphs: on needs a CUDA device, this is {device}; set auto or off")
    return CudaGraphs(device) if settings.decode_graphs != "off" and device.type == "cuda" else None
