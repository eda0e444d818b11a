"""Builds the paged engine that a workload asks for: kernels, captured steps, compiled layers, each with its reason.

What is asked for by name and cannot be had is an error. What ``auto`` tries and does not work is left out, and the
record says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.paged.engine import PagedEngine, PagedOptions
from moeprof.capture.engines.paged.graphs import CudaGraphs, GraphBackend
from moeprof.capture.engines.paged.kernels import chooser
from moeprof.capture.engines.paged.model import as_written, compile_layers
from moeprof.capture.kernels.choose_experts import ChosenExperts, apply_experts, choose_experts
from moeprof.capture.kernels.modules import fuse, unfuse
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload.engine import TransformersSettings

CHOSEN = "moeprof_chosen_experts"


def build_paged(
    model: Any,
    settings: TransformersSettings,
    kv_tokens: int,
    listeners: ListenerSet,
    eos_ids: Sequence[int],
    *,
    in_turn: bool = False,
) -> PagedEngine:
    """The engine; see :func:`moeprof.capture.engines.hf.build_engine`.

    Raises:
        UnsupportedModelError: something was asked for by name that this device or model cannot do.
    """
    device = torch.device(model.device)
    experts = _experts(model, settings, device)
    notes = [] if experts is None else [f"experts of decode: {experts.decode}, {experts.reason}"]
    if settings.compile == "off":
        as_written(model)
    if settings.fuse == "auto" and settings.compile == "off" and device.type == "cuda":
        fused = fuse(model)
        notes += [f"one launch each: {fused.norms} norms, {fused.rotary} kinds of rotation", *fused.notes]
    else:
        unfuse(model)
    options = PagedOptions(
        kv_tokens=kv_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        max_sequences=settings.max_sequences,
        prefix_cache=settings.prefix_cache,
        eos_ids=tuple(eos_ids),
        run_ahead=_runs_ahead(settings, device) and not in_turn,
        graphs=_graphs(settings, device),
        kernels=chooser(settings.decode_attention, device),
        experts=None if experts is None else experts.prefill,
        decode_experts=None if experts is None or experts.decode == experts.prefill else experts.decode,
        compiled=compile_layers(model) if settings.compile == "layers" else None,
        notes=tuple(notes),
    )
    return PagedEngine(model, options, listeners)


def _experts(model: Any, settings: TransformersSettings, device: torch.device) -> ChosenExperts | None:
    """On a GPU with ``auto``: what is fastest on the model's own experts, tried once per model and put in force.

    A later engine with larger steps has it tried again: what was tried on steps of one token says nothing of 64.
    """
    if settings.experts != "auto" or device.type != "cuda":
        return None
    largest = min(settings.max_sequences, settings.max_batch_tokens)
    tried, chosen = getattr(model, CHOSEN, (0, None))
    if chosen is None or tried < largest:
        with torch.inference_mode():
            chosen = choose_experts(model, max_tokens=largest)
        apply_experts(model, chosen)
        object.__setattr__(model, CHOSEN, (largest, chosen))
    found: ChosenExperts = chosen
    return found if found.decode is not None else None


def _runs_ahead(settings: TransformersSettings, device: torch.device) -> bool:
    """On a CPU a step has ended when its call returns: there is nothing to be ahead of."""
    return settings.run_ahead == "on" or (settings.run_ahead == "auto" and device.type == "cuda")


def _graphs(settings: TransformersSettings, device: torch.device) -> GraphBackend | None:
    if settings.decode_graphs == "on" and device.type != "cuda":
        raise UnsupportedModelError(f"engine.decode_graphs: on needs a CUDA device, this is {device}; set auto or off")
    return CudaGraphs(device) if settings.decode_graphs != "off" and device.type == "cuda" else None
