"""Will it fit? Memory predicted before anything is loaded, and the KV space that the schedule needs.

Weights: the size of the weight files, or for random weights the parameters of the config. KV: 2 * layers * KV heads *
head size * bytes, per token; architectures whose cache is of another kind give None and get no prediction for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from moeprof.capture.gpu import Gpu
from moeprof.capture.model_source import ModelSource
from moeprof.core.errors import ModelError
from moeprof.core.trace import Schedule
from moeprof.core.units import num_bytes
from moeprof.core.workload import ModelSpec

PAGE_TOKENS = 16
SPARE_PAGES = 8
KV_SHARE = 0.5  # at most this share of what the weights leave free goes to the KV cache
HEADROOM = 0.9  # of the free memory is counted on
ACTIVATION_BYTES = 256 * 2**20  # room for activations, logits and the libraries
MIN_KV_TOKENS = 256
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The prediction.

    Attributes:
        free_bytes: device (or host) memory free before the run.
        weights_bytes: by model; None when unknown.
        kv_bytes_per_token: by model; None when unknown.
        kv_tokens: KV slots that every model gets.
        wanted_kv_tokens: slots that would hold all requests that can be in flight at once.
        together: True when all models fit at once.
    """

    free_bytes: int
    weights_bytes: dict[str, int | None]
    kv_bytes_per_token: dict[str, int | None]
    kv_tokens: int
    wanted_kv_tokens: int
    together: bool

    def needed_bytes(self, name: str) -> int | None:
        """Weights, KV cache and activations of one model; None when the weights are unknown."""
        weights = self.weights_bytes[name]
        if weights is None:
            return None
        return weights + self.kv_tokens * (self.kv_bytes_per_token[name] or 0) + ACTIVATION_BYTES


def predict(
    specs: Iterable[ModelSpec],
    sources: dict[str, ModelSource],
    schedules: Iterable[Schedule],
    *,
    asked_kv_tokens: int | None,
    free_bytes: int,
    weights_bytes: dict[str, int | None],
) -> Fit:
    """Predict memory and choose the KV space: equal for all models, all requests at once if there is room.

    Raises:
        ModelError: a model's weights alone do not fit, or leave no room for the longest request.
    """
    names = [spec.name for spec in specs]
    per_token = {name: kv_bytes_per_token(sources[name].config) for name in names}
    wanted = max((all_at_once_tokens(schedule) for schedule in schedules), default=MIN_KV_TOKENS)
    kv_tokens = asked_kv_tokens or max(MIN_KV_TOKENS, min([wanted, *_room(per_token, weights_bytes, free_bytes)]))
    fit = Fit(
        free_bytes=free_bytes,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=per_token,
        kv_tokens=kv_tokens,
        wanted_kv_tokens=wanted,
        together=False,
    )
    needs = [fit.needed_bytes(name) for name in names]
    for name, need in zip(names, needs, strict=True):
        if need is not None and need > free_bytes * HEADROOM:
            raise ModelError(
                f"model {name}: needs about {num_bytes(need)} ({num_bytes(weights_bytes[name] or 0)} weights, "
                f"{kv_tokens} KV tokens), {num_bytes(free_bytes)} is free; "
                "choose a smaller model, a smaller dtype, or lower engine.kv_tokens"
            )
    known = [need for need in needs if need is not None]
    together = len(names) == 1 or (len(known) == len(names) and sum(known) <= free_bytes * HEADROOM)
    return Fit(**{**{f: getattr(fit, f) for f in fit.__slots__}, "together": together})


def kv_bytes_per_token(config: dict[str, Any]) -> int | None:
    """Bytes of keys and values per token over all layers, from a config.json; None for other kinds of cache."""
    config = config.get("text_config", config)
    if any(key in config for key in ("kv_lora_rank", "linear_num_value_heads", "mamba_d_state", "ssm_state_size")):
        return None
    try:
        layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return 2 * layers * kv_heads * head_dim * DTYPE_BYTES.get(str(config.get("dtype", "float32")), 4)


def free_memory_bytes(device: str, gpu: Gpu | None) -> int:
    """Free memory of the device, or of the host for a CPU run."""
    reading = gpu.read() if gpu is not None and device != "cpu" else None
    if reading is not None and reading.memory_total_bytes and reading.memory_used_bytes is not None:
        return reading.memory_total_bytes - reading.memory_used_bytes
    return int(psutil.virtual_memory().available)


def _room(per_token: dict[str, int | None], weights_bytes: dict[str, int | None], free_bytes: int) -> list[int]:
    """Slots that fit beside each model's weights, if all models had to share the memory."""
    taken = sum(size or 0 for size in weights_bytes.values())
    left = max(0, int(free_bytes * HEADROOM) - taken) * KV_SHARE / max(1, len(per_token))
    return [int(left // size) for size in per_token.values() if size]


def all_at_once_tokens(schedule: Schedule) -> int:
    """KV slots for as many requests as can be in flight at once (the longest ones), in whole pages, and some spare."""
    lengths = np.sort(schedule.input_tokens + schedule.output_tokens)[::-1][: schedule.concurrency]
    pages = int(((lengths + PAGE_TOKENS - 1) // PAGE_TOKENS + 1).sum()) + SPARE_PAGES
    # The scheduler keeps a share of the cache free before it admits prompts; without this it would hold some back.
    return int(pages * PAGE_TOKENS * 1.2)
