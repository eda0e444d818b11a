"""Candidates for attention of decode steps and for experts: do they agree with a plain form, how fast, in a graph?

Errors are relative to the same computation in float32. The floor is bytes over the bandwidth of a large copy. Captures
come after all timings, because a capture that fails may leave the device in a state that spoils what follows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.kernel_cases import (
    ATTENTION,
    EXPERTS,
    PAGE_TOKENS,
    AttentionCase,
    ExpertsCase,
    attention_candidates,
    experts_candidates,
    plain_experts,
    prefill_candidates,
)
from benchmarks.gpu.probe_tools import Probe, relative_error
from moeprof.capture.kernels.attention import DecodeShape, torch_decode

TOKENS = {"decode": (1, 8, 64), "prefill": (2048,)}
CONTEXTS = (512, 2048)
BATCHES = (1, 8, 64)
PROMPT_TOKENS = 2048
MOST_GATHERED_BYTES = 8e9  # batched_mm copies the weights of every pick

Capture = tuple[str, Callable[[], Any]]


def main(arguments: list[str] | None = None) -> int:
    """Write one row per candidate and shape, then one per capture."""
    probe = Probe(__doc__, arguments)
    bandwidth = _bandwidth(probe)
    probe.found["copy_bytes_per_s"] = bandwidth
    captures: list[Capture] = []
    with torch.inference_mode():
        for shape in EXPERTS:
            captures += _experts(probe, shape.tiny() if probe.is_tiny else shape, bandwidth)
        for case in ATTENTION:
            captures += _attention(probe, case.tiny() if probe.is_tiny else case, bandwidth)
        for case in ATTENTION:
            _prompts(probe, case.tiny() if probe.is_tiny else case)
        for name, work in captures:
            probe.case(f"graph: {name}", lambda work=work: probe.graph_case(work))  # type: ignore[misc]
    return 0


def _bandwidth(probe: Probe) -> float:
    rows = 2**20 if probe.is_tiny else 2**30
    source = torch.ones(rows, device=probe.device)
    target = torch.empty_like(source)
    return 2 * 4 * rows / probe.time_s(lambda: target.copy_(source))


def _attention(probe: Probe, case: AttentionCase, bandwidth: float) -> list[Capture]:
    captures: list[Capture] = []
    batches, contexts = ((2,), (40,)) if probe.is_tiny else (BATCHES, CONTEXTS)
    for batch in batches:
        for context in contexts:
            inputs = case.inputs(batch, context, probe.device)
            reference = torch_decode(
                inputs.query.float(),
                inputs.key.float(),
                inputs.value.float(),
                inputs.table,
                inputs.context,
                inputs.shape,
            )
            floor_s = inputs.num_bytes / bandwidth
            # All tilings where they matter most; elsewhere one each, because every new shape is compiled.
            every = batch == max(batches) and context == max(contexts)
            for name, kernel in attention_candidates(every):
                label = f"attention {case.name} batch {batch} context {context}: {name}"

                def work(kernel: Callable[..., torch.Tensor] = kernel, inputs: Any = inputs) -> torch.Tensor:
                    return kernel(inputs.query, inputs.key, inputs.value, inputs.table, inputs.context, inputs.shape)

                def measure(work: Any = work, reference: Any = reference, floor_s: float = floor_s) -> dict[str, Any]:
                    error = relative_error(work(), reference)
                    seconds = probe.time_s(work, queued=True)
                    return {"seconds": seconds, "error": error, "floor_s": floor_s, "over_floor": seconds / floor_s}

                row = probe.case(label, measure)
                if "reason" not in row and every:
                    captures.append((label, work))
    return captures


def _prompts(probe: Probe, case: AttentionCase) -> None:
    """Attention of one whole prompt; FLOPs are those below the diagonal."""
    num_tokens = 24 if probe.is_tiny else PROMPT_TOKENS
    query, key, value = case.prompt(num_tokens, probe.device)
    shape = DecodeShape(page_tokens=PAGE_TOKENS, scale=case.head_dim**-0.5)
    keys, values = (part.float().repeat_interleave(case.num_heads // case.num_groups, 1) for part in (key, value))
    reference = scaled_dot_product_attention(query.float(), keys, values, is_causal=True, scale=shape.scale)
    flops = 2.0 * case.num_heads * case.head_dim * num_tokens * (num_tokens + 1)
    for name, kernel in prefill_candidates():

        def measure(kernel: Callable[..., torch.Tensor] = kernel) -> dict[str, Any]:
            error = relative_error(kernel(query, key, value, shape), reference)
            seconds = probe.time_s(lambda: kernel(query, key, value, shape), queued=True)
            return {"seconds": seconds, "error": error, "flops_per_s": flops / seconds}

        probe.case(f"prompt {case.name} of {num_tokens}: {name}", measure)


def _experts(probe: Probe, shape: ExpertsCase, bandwidth: float) -> list[Capture]:
    captures: list[Capture] = []
    module = shape.module(probe.device)
    for phase, counts in (("decode", (2,)), ("prefill", (16,))) if probe.is_tiny else TOKENS.items():
        for num_tokens in counts:
            hidden, index, weights = shape.inputs(num_tokens, probe.device)
            reference = plain_experts(module, hidden, index, weights)
            floor_s = int(torch.unique(index).numel()) * shape.expert_bytes(module) / bandwidth
            for name, run in experts_candidates(phase):
                label = f"experts {shape.name} {phase} of {num_tokens}: {name}"
                if name == "batched_mm" and index.numel() * shape.expert_bytes(module) > MOST_GATHERED_BYTES:
                    probe.found["cases"].append({"name": label, "reason": "it would copy the weights of every pick"})
                    continue

                def work(run: Any = run, args: Any = (module, hidden, index, weights)) -> torch.Tensor:
                    found: torch.Tensor = run(*args)
                    return found

                def measure(work: Any = work, reference: Any = reference, floor_s: float = floor_s) -> dict[str, Any]:
                    error = relative_error(work(), reference)
                    seconds = probe.time_s(work, queued=True)
                    return {"seconds": seconds, "error": error, "floor_s": floor_s, "over_floor": seconds / floor_s}

                row = probe.case(label, measure)
                if "reason" not in row and phase == "decode" and num_tokens == max(counts):
                    captures.append((label, work))
    return captures


if __name__ == "__main__":
    sys.exit(main())
