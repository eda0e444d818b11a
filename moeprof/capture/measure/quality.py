"""Bits per byte: how well a model foretells the text that it is fed (docs/metrics.md#sparsity).

``-log2 p`` of each forced output given its prompt, summed, over the bytes of those outputs in UTF-8. Each request goes
through a plain forward pass alone, without a cache; probabilities are taken in float32. It is a fact of model and
text, not of speed, and stands beside cost: a cheap model that foretells badly is no bargain.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from moeprof.capture.instrumented import Launched
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec

MAX_REQUESTS = 64
MAX_S = 20.0


def no_quality(spec: ModelSpec, schedule: Schedule) -> str | None:
    """Why a figure would mean nothing, or None."""
    if spec.weights == "random":
        return "random weights"
    if spec.twin_of is not None and spec.initialise == "random":
        return "random weights in the twin's MLPs"
    if spec.routing.policy != "native":
        return f"routing is overridden ({spec.routing.policy})"
    if schedule.output_ids is None:
        return "outputs are not forced, so there is no true continuation"
    return None


def measure(launched: Launched) -> dict[str, Any]:
    """Bits per byte of the forced outputs, or why there are none."""
    reason = no_quality(launched.plan.model, launched.schedule)
    if reason is not None:
        return {"reason": reason}
    max_tokens = launched.model.stepped.facts.max_sequence_tokens
    with launched.model.without_engine():
        return measure_quality(
            launched.model.deployment.module, launched.schedule, launched.output_bytes, max_tokens=max_tokens,
            should_stop=launched.should_stop,
        )  # fmt: skip


def measure_quality(
    model: Any,
    schedule: Schedule,
    output_bytes: Sequence[int | None],
    *,
    max_tokens: int,
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Bits and bytes of the first requests: at most MAX_REQUESTS, and those begun within MAX_S.

    Args:
        model: a causal language model in eval mode; no engine is at work on it.
        schedule: with forced outputs.
        output_bytes: bytes of each output's text; None where it is no whole text, such requests are left out.
        max_tokens: longest prompt and output.
        should_stop: called after every request.
        clock: seconds.

    Returns:
        ``{"bits", "bytes", "tokens", "requests", "per_request": [[bits, bytes], ...]}``, or ``{"reason"}``.
    """
    fits = schedule.input_tokens + schedule.output_tokens <= max_tokens
    rows = [row for row in range(min(len(schedule), len(output_bytes))) if fits[row] and output_bytes[row]]
    per_request: list[list[float]] = []
    tokens, start = 0, clock()
    for row in rows[:MAX_REQUESTS]:
        outputs = schedule.output_ids[row].tolist() if schedule.output_ids is not None else []
        per_request.append(
            [output_bits(model, schedule.input_ids[row].tolist(), outputs), float(output_bytes[row] or 0)]
        )
        tokens += len(outputs)
        if clock() - start >= MAX_S or should_stop():
            break
    if not per_request:
        return {"reason": "no output of the schedule is whole text that the model can hold"}
    bits, size = (math.fsum(column) for column in zip(*per_request, strict=True))
    if not math.isfinite(bits):
        return {"reason": "the model gave a probability that is 0 or no number"}
    return {
        "bits": bits, "bytes": int(size), "tokens": tokens, "requests": len(per_request), "per_request": per_request,
    }  # fmt: skip


def output_bits(model: Any, input_ids: Sequence[int], output_ids: Sequence[int]) -> float:
    """``-log2 p(output | prompt)`` under the model: the sum over output tokens, each given all before it."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*input_ids, *output_ids]], device=device)
    kwargs: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kwargs["logits_to_keep"] = len(output_ids) + 1  # the vocabulary is wide: no logits for the prompt
    with torch.inference_mode():
        logits = model(ids, **kwargs).logits[0, -len(output_ids) - 1 : -1].float()
        picked = logits.log_softmax(-1).gather(1, ids[0, -len(output_ids) :, None])
    return float(-picked.double().sum()) / math.log(2)
