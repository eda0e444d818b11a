"""What there is to choose from: per operation its kernels, the plain form first.

A kernel is one row here. ``choose`` tries the rows of an operation that the machine can have; norms, linear layers,
attention blocks and rotations are a module's own, so each module is compared with its own code (``modules.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from moeprof.capture.kernels import attention, norms, prefill
from moeprof.capture.kernels.attention import AttentionKind, DecodeKernel
from moeprof.capture.kernels.choose import Candidate
from moeprof.capture.kernels.cpu import block as cpu_block
from moeprof.capture.kernels.cpu import experts as cpu_experts
from moeprof.capture.kernels.cpu import layers as cpu_layers
from moeprof.capture.kernels.experts import ExpertsKernel, grouped_mm
from moeprof.capture.kernels.prefill import PrefillKernel
from moeprof.capture.kernels.trials import LAST_BITS
from moeprof.capture.kernels.triton import attention as triton_attention
from moeprof.capture.kernels.triton import experts as triton_experts
from moeprof.capture.kernels.triton import rotary

DECODE: tuple[Candidate[AttentionKind, DecodeKernel], ...] = (
    Candidate(name="torch", kernel=attention.torch_decode),
    Candidate(name="varlen", kernel=attention.varlen_decode, device="cuda", why_not=attention.why_no_varlen),
    *(
        Candidate(
            name="triton",
            variant=f" {tiling.block_keys}x{tiling.programs_per_processor}x{tiling.num_stages}",
            kernel=partial(triton_attention.triton_decode, tiling=tiling),
            device="cuda",
            why_not=triton_attention.why_not,
        )
        for tiling in triton_attention.TILINGS
    ),
)

PREFILL: tuple[Candidate[AttentionKind, PrefillKernel], ...] = (
    Candidate(name="plain", kernel=prefill.plain_prefill),
    Candidate(name="sdpa", kernel=prefill.sdpa_prefill, why_not=prefill.why_no_sdpa),
    Candidate(name="varlen", kernel=prefill.varlen_prefill, device="cuda", why_not=prefill.why_no_varlen),
)

EXPERTS: tuple[Candidate[Sequence[nn.Module], ExpertsKernel], ...] = (
    Candidate(name="grouped_mm", kernel=grouped_mm),
    *(
        Candidate(
            name="triton",
            variant=f" {tiling.most_columns}x{tiling.depth}x{tiling.num_stages}",
            kernel=partial(triton_experts.triton_experts, tiling=tiling),
            device="cuda",
            why_not=triton_experts.why_not,
        )
        for tiling in triton_experts.TILINGS
    ),
    Candidate(name="moeprof_cpu", kernel=cpu_experts.cpu_experts, device="cpu", why_not=cpu_experts.why_not),
)

# What makes the kernel of one module.
ModuleKernel = Callable[[nn.Module], Callable[..., torch.Tensor | None]]

NORM: tuple[Candidate[nn.Module, ModuleKernel], ...] = (
    Candidate(name="torch", kernel=norms.torch_norm, device="cuda", why_not=norms.why_no_torch, tolerance=LAST_BITS),
    Candidate(name="moeprof_cpu", kernel=cpu_layers.norm, device="cpu", why_not=cpu_layers.why_no_norm),
)

LINEAR: tuple[Candidate[nn.Module, ModuleKernel], ...] = (
    Candidate(name="moeprof_cpu", kernel=cpu_layers.linear, device="cpu", why_not=cpu_layers.why_no_linear),
)

BLOCK: tuple[Candidate[nn.Module, Callable[[nn.Module, cpu_block.StepOf], Any]], ...] = (
    Candidate(name="moeprof_cpu", kernel=cpu_block.attention_block, device="cpu", why_not=cpu_block.why_not),
)

ROTATION: tuple[Candidate[rotary.Rotation, Callable[..., rotary.Rotary]], ...] = (
    Candidate(name="triton", kernel=rotary.Rotary, device="cuda", why_not=rotary.why_not, tolerance=LAST_BITS),
)
