"""Why a model does not fit, in one line: what it needs, what is there, and which setting to lower to which value."""

from __future__ import annotations

from typing import Protocol

from moeprof.capture.model_memory import DeviceMemory, ModelMemory
from moeprof.core.units import num_bytes
from moeprof.core.workload import EngineSettings

LEAST_KV_TOKENS = 256
PAGE_TOKENS = 16
LEAST_BATCH_TOKENS = 16


class Prediction(Protocol):
    """What of a Fit is told."""

    @property
    def memory(self) -> DeviceMemory:
        """Of the device."""

    @property
    def margin_bytes(self) -> int:
        """Stays free."""

    @property
    def usable_bytes(self) -> int:
        """Free less the margin."""

    @property
    def kv_tokens(self) -> int:
        """KV slots of every model."""


def refusal(name: str, model: ModelMemory, fit: Prediction, settings: EngineSettings) -> str:
    """One line for a model that does not fit."""
    needed = model.needed_bytes(fit.kv_tokens) or 0
    free, total = num_bytes(fit.memory.free_bytes), num_bytes(fit.memory.total_bytes)
    return (
        f"model {name}: needs about {num_bytes(needed)} ({parts(model, fit.kv_tokens)}), but {free} of {total} is "
        f"free and {num_bytes(fit.margin_bytes)} stays as margin (engine.memory_margin_ratio "
        f"{settings.memory_margin_ratio:g}); {remedy(model, fit.usable_bytes, fit.kv_tokens, settings)}"
    )


def parts(model: ModelMemory, kv_tokens: int) -> str:
    """What a model needs, part by part, the large ones only."""
    found = [
        (model.weights_bytes or 0, "weights"),
        (model.kv_bytes(kv_tokens), f"KV cache of {kv_tokens:,} tokens"),
        (model.activation_bytes, "activations"),
        (model.load_extra_bytes, "more while loading"),
        (model.workspace_bytes, "captured steps and libraries' workspace"),
        (model.base_bytes, "for the process itself"),
    ]
    return ", ".join(f"{num_bytes(size)} {what}" for size, what in found if size)


def remedy(model: ModelMemory, usable_bytes: int, kv_tokens: int, settings: EngineSettings) -> str:
    """Which setting to lower to which value, the mildest that helps."""
    left = usable_bytes - model.fixed_bytes
    if model.kv_bytes_per_token and left >= LEAST_KV_TOKENS * model.kv_bytes_per_token:
        fitting = left // model.kv_bytes_per_token // PAGE_TOKENS * PAGE_TOKENS
        if fitting < kv_tokens:
            return f"lower engine.kv_tokens from {kv_tokens} to {fitting}"
    without = model.fixed_bytes - model.activation_bytes + model.kv_bytes(LEAST_KV_TOKENS)
    ratio = (usable_bytes - without) / model.activation_bytes if model.activation_bytes else 0.0
    tokens = int(settings.max_batch_tokens * ratio) // PAGE_TOKENS * PAGE_TOKENS
    if LEAST_BATCH_TOKENS <= tokens < settings.max_batch_tokens:
        return (
            f"lower engine.max_batch_tokens from {settings.max_batch_tokens} to {tokens} "
            f"and engine.kv_tokens to {LEAST_KV_TOKENS}"
        )
    layers = int(model.layers_to_cut * (usable_bytes - without + (model.weights_bytes or 0) - model.activation_bytes)
                 // max(1, model.weights_bytes or 0))  # fmt: skip
    fewer = f", {layers} of {model.layers_to_cut} layers (override: {{num_hidden_layers: {layers}}})"
    return (
        "its weights leave no room for a step: choose a smaller model or dtype"
        f"{fewer if 0 < layers < model.layers_to_cut else ''}, or free memory"
    )
