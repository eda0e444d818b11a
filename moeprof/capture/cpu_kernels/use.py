"""Puts our kernels in force on a model, as ``engine.cpu_kernels`` asks."""

from __future__ import annotations

from typing import Any

from moeprof.capture.cpu_kernels.build import why_no_kernels
from moeprof.capture.cpu_kernels.experts import use_cpu_experts
from moeprof.capture.cpu_kernels.swap import swap_modules, swapped_counts
from moeprof.capture.moe_structure import find_moe_layers
from moeprof.core.errors import UnsupportedModelError


def use_cpu_kernels(model: Any, asked: str) -> None:
    """``experts`` or ``all``. A dense model beside an MoE has no experts to run, which is no reason to stop.

    Raises:
        UnsupportedModelError: what was asked for cannot be had; says why.
    """
    reason = why_no_kernels()
    if reason is None and find_moe_layers(model):
        reason = use_cpu_experts(model)
    if reason is None and asked == "all":
        reason = swap_modules(model)
    if reason is not None:
        raise UnsupportedModelError(f"engine.cpu_kernels: {asked} cannot be had: {reason}; set it to off")


def cpu_kernel_facts(model: Any) -> dict[str, int]:
    """For launch.json: how many swapped modules agreed with their own code, differed (and kept it), never ran."""
    found = swapped_counts(model)
    return {"agreed": found[True], "differed": found[False], "unused": found[None]}
