"""Mistral's own ``params.json``, which its checkpoints for other libraries than transformers come with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from moeprof.capture.models.files import read_object, weight_files
from moeprof.core.description import LayerDescription, described_facts
from moeprof.core.errors import ModelError
from moeprof.core.known_models import CountedModel

NATIVE = "params.json"
_TOWERS = ("vision_encoder", "audio_encoder", "whisper_model_args", "multimodal")


class _Experts(msgspec.Struct, kw_only=True):
    """Its key ``moe``."""

    num_experts: int
    num_experts_per_tok: int
    expert_hidden_dim: int | None = None
    num_shared_experts: int | None = None
    first_k_dense_replace: int | None = None
    route_every_n: int | None = None


class _Params(msgspec.Struct, kw_only=True):
    """The keys that are read; others are of no weight, but for towers."""

    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    vocab_size: int
    head_dim: int | None = None
    n_kv_heads: int | None = None
    kv_lora_rank: int | None = None
    q_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    qk_nope_head_dim: int | None = None
    v_head_dim: int | None = None
    tied_embeddings: bool | None = None
    sliding_window: int | list[int | None] | None = None
    moe: _Experts | None = None


def is_native(file: Path) -> bool:
    """True for a params.json that is not a transformers config under that name.

    Raises:
        ModelError: no JSON object.
    """
    values = read_object(str(file), file)
    return "model_type" not in values or "dim" in values


def read_native(file: Path) -> CountedModel:
    """The model that a params.json describes, counted from its shape.

    Raises:
        ModelError: a key is missing or of the wrong type, sizes do not go together, or no JSON.
    """
    values = read_object(str(file), file)
    try:
        read = msgspec.convert(values, _Params)
        facts = described_facts(_description(read), name=file.stem, source=file.name)
    except (msgspec.ValidationError, ModelError) as error:
        raise ModelError(f"{file}: no params.json as Mistral writes it: {error}") from error
    notes = [f"counted from Mistral's {NATIVE}", *facts.notes]
    towers = [key for key in _TOWERS if values.get(key)]
    if towers:
        notes.append(f"the language model alone: {', '.join(towers)} is not counted")
    weights, _ = weight_files(str(file), file.parent)
    stored = sum(path.stat().st_size for path in weights)
    reason = "weight files beside it" if stored else "no weight files beside it"
    if isinstance(read.sliding_window, list):
        notes.append("windows that differ by layer are left out: keys and values are an upper bound")
    facts = replace(facts, notes=tuple(notes))
    return CountedModel(name=file.stem, facts=facts, stored_bytes=stored or None, stored_reason=reason)


def _description(read: _Params) -> LayerDescription:
    latent = read.kv_lora_rank or 0
    head_dim = read.head_dim or read.dim // max(1, read.n_heads)
    rotary = read.qk_rope_head_dim or 0
    if latent:
        head_dim = (read.qk_nope_head_dim or head_dim - rotary) + rotary
    return LayerDescription(
        hidden_size=read.dim,
        num_layers=read.n_layers,
        vocab_size=read.vocab_size,
        num_heads=read.n_heads,
        head_dim=head_dim,
        num_kv_heads=read.n_kv_heads,
        dense_width=read.hidden_dim,
        tied_embeddings=bool(read.tied_embeddings),
        window=read.sliding_window if isinstance(read.sliding_window, int) else 0,
        kv_lora_rank=latent,
        q_lora_rank=read.q_lora_rank or 0,
        qk_rope_head_dim=rotary,
        v_head_dim=(read.v_head_dim or head_dim) if latent else 0,
        **_experts(read),
    )


def _experts(read: _Params) -> dict[str, Any]:
    if read.moe is None:
        return {}
    width = read.moe.expert_hidden_dim or read.hidden_dim
    return {
        "num_experts": read.moe.num_experts,
        "top_k": read.moe.num_experts_per_tok,
        "expert_width": width,
        "shared_width": (read.moe.num_shared_experts or 0) * width,
        "first_moe_layer": read.moe.first_k_dense_replace or 0,
        "moe_every": read.moe.route_every_n or 1,
    }
