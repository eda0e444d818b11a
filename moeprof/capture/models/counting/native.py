"""Mistral's own ``params.json``, which its checkpoints for other libraries than transformers come with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from moeprof.core.errors import ModelError
from moeprof.core.files import UnreadableError, read_json_value
from moeprof.core.known_models import CountedModel, LayerDescription, described_facts

NATIVE = "params.json"
_NEEDED = ("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size")


def read_native(file: Path) -> CountedModel | None:
    """The model that a params.json describes, counted from its shape; None for a file of another kind.

    Raises:
        ModelError: sizes that do not go together, or no JSON.
    """
    try:
        values = read_json_value(file, non_finite="keep")
    except UnreadableError as fault:
        raise ModelError(f"model {file}: {file.name} cannot be read as JSON ({fault.why})") from fault
    if not isinstance(values, dict) or any(not isinstance(values.get(key), int) for key in _NEEDED):
        return None
    facts = described_facts(_description(values), name=file.stem, source=file.name)
    notes = [f"counted from Mistral's {NATIVE}", *facts.notes]
    towers = [key for key in values if key.endswith(("vision_encoder", "audio_encoder", "whisper_model_args"))]
    if any(values[key] for key in towers):
        notes.append(f"the language model alone: {', '.join(towers)} is not counted")
    stored = sum(path.stat().st_size for path in sorted(file.parent.glob("*.safetensors")))
    reason = "weight files beside it" if stored else "no weight files beside it"
    if isinstance(values.get("sliding_window"), list):
        notes.append("windows that differ by layer are left out: keys and values are an upper bound")
    facts = replace(facts, notes=tuple(notes))
    return CountedModel(name=file.stem, facts=facts, stored_bytes=stored or None, stored_reason=reason)


def _description(values: dict[str, Any]) -> LayerDescription:
    moe: dict[str, Any] = values.get("moe") or {}
    expert = moe.get("expert_hidden_dim") or values["hidden_dim"]
    latent = values.get("kv_lora_rank") or 0
    head_dim = values.get("head_dim") or values["dim"] // values["n_heads"]
    rotary = values.get("qk_rope_head_dim") or 0
    if latent:
        head_dim = (values.get("qk_nope_head_dim") or head_dim - rotary) + rotary
    return LayerDescription(
        hidden_size=values["dim"],
        num_layers=values["n_layers"],
        vocab_size=values["vocab_size"],
        num_heads=values["n_heads"],
        head_dim=head_dim,
        num_kv_heads=values.get("n_kv_heads"),
        dense_width=values["hidden_dim"],
        num_experts=moe.get("num_experts", 0),
        top_k=moe.get("num_experts_per_tok", 0),
        expert_width=expert if moe else 0,
        shared_width=(moe.get("num_shared_experts") or 0) * expert,
        first_moe_layer=moe.get("first_k_dense_replace") or 0,
        moe_every=moe.get("route_every_n") or 1,
        tied_embeddings=bool(values.get("tied_embeddings")),
        window=window if isinstance(window := values.get("sliding_window"), int) else 0,
        kv_lora_rank=latent,
        q_lora_rank=values.get("q_lora_rank") or 0,
        qk_rope_head_dim=rotary,
        v_head_dim=(values.get("v_head_dim") or head_dim) if latent else 0,
    )
