"""The built-in list of models and routing schemes: shapes, published figures with their source, and our count.

Shapes and published figures are facts from model cards and papers. Where transformers has a class, ``config`` holds
what it is built from, and the count of that class is stored beside the list, so that counting a known system needs
neither transformers nor torch; a test counts every one of them again.

Elsewhere ``layers`` describes the model. The count of a description is arithmetic on matrices and norm vectors, without
biases, so it also works for models that only a paper describes.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from moeprof.core import yamlfile
from moeprof.core.errors import ModelError
from moeprof.core.model_facts import GROUPS, LayerAttention, ModelFacts, MoeLayerFacts

BYTES_PER_PARAM = 2  # descriptions are counted as bfloat16
TWO_STACKS = "KV bytes unknown: encoder and decoder"
_MAY_BE_ZERO = {"dense_width", "first_moe_layer", "shared_width", "residual_width", "cross_attention_layers",
                "encoder_layers", "norms_per_layer", "num_experts", "top_k", "expert_width",
                "window", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim"}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription:
    """A transformer in numbers. Widths are units of an MLP's hidden layer.

    Attributes:
        hidden_size: d.
        num_layers: blocks, those of encoder and decoder together.
        vocab_size: rows of the embedding.
        num_heads: query heads.
        head_dim: width of one head.
        num_kv_heads: key and value heads; as many as query heads when left out.
        dense_width: MLP of the layers without experts.
        dense_matrices: 3 with a gate, 2 without.
        num_experts: E per MoE layer; 0 for a dense model.
        top_k: k.
        expert_width: of one expert.
        expert_matrices: 3 with a gate, 2 without; shared experts alike.
        shared_width: of all shared experts of a layer together.
        residual_width: of a dense MLP beside the experts, with ``dense_matrices``.
        first_moe_layer: layers before this one are dense.
        moe_every: from there on, the n-th, 2n-th... layer has experts.
        norms_per_layer: vectors of length d per layer.
        encoder_layers: how many of the layers are an encoder's; 0 for a decoder alone.
        cross_attention_layers: layers with a second attention, to the encoder.
        tied_embeddings: True when the head is the embedding.
        window: tokens that a query of any layer sees; 0 for all.
        kv_lora_rank: width of the latent that keys and values of all heads are made of; 0 for plain attention. Then
            ``head_dim`` is that of a query and key, rotary part included.
        q_lora_rank: width of the latent of the queries; 0 where they are projected at once.
        qk_rope_head_dim: rotary part of a key, beside the latent.
        v_head_dim: width of a value.
    """

    hidden_size: int
    num_layers: int
    vocab_size: int
    num_heads: int
    head_dim: int
    num_kv_heads: int | None = None
    dense_width: int = 0
    dense_matrices: int = 3
    num_experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    expert_matrices: int = 3
    shared_width: int = 0
    residual_width: int = 0
    first_moe_layer: int = 0
    moe_every: int = 1
    norms_per_layer: int = 2
    encoder_layers: int = 0
    cross_attention_layers: int = 0
    tied_embeddings: bool = False
    window: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0

    def __post_init__(self) -> None:
        for own in fields(self):
            value = getattr(self, own.name)
            least = 0 if own.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ModelError(f"{own.name}: found {value}; {least} or more is allowed")
        if self.num_experts and not (1 <= self.top_k <= self.num_experts and self.expert_width):
            raise ModelError(
                f"top_k: found {self.top_k} of {self.num_experts} experts with expert_width {self.expert_width}; "
                "1 to num_experts and a width of 1 or more are allowed"
            )
        if max(self.first_moe_layer, self.encoder_layers, self.cross_attention_layers) > self.num_layers:
            raise ModelError(f"num_layers: found {self.num_layers}, fewer than the layers named by another key")

    @property
    def attention_params(self) -> int:
        """Of one attention: queries, keys, values and output; for latents their projections down and up, and norms."""
        if not self.kv_lora_rank:
            return 2 * self.hidden_size * self.head_dim * (self.num_heads + (self.num_kv_heads or self.num_heads))
        queries = self.num_heads * self.head_dim
        own = self.q_lora_rank
        query = self.hidden_size * own + own * queries + own if own else self.hidden_size * queries
        up = self.num_heads * (self.head_dim - self.qk_rope_head_dim + self.v_head_dim)
        latent = self.hidden_size * (self.kv_lora_rank + self.qk_rope_head_dim) + self.kv_lora_rank * (up + 1)
        return query + latent + self.num_heads * self.v_head_dim * self.hidden_size

    @property
    def attention(self) -> LayerAttention:
        """What its layers keep and compute, all alike."""
        if self.kv_lora_rank:
            kept, rotary = self.kv_lora_rank, self.qk_rope_head_dim
            return LayerAttention(
                kind="latent", layers=self.num_layers, kv_bytes_per_token=(kept + rotary) * BYTES_PER_PARAM,
                flops_per_pair=2 * self.num_heads * (self.head_dim + self.v_head_dim),
                decode_flops_per_pair=2 * self.num_heads * (2 * kept + rotary), window=self.window or None,
            )  # fmt: skip
        pair = 4 * self.num_heads * self.head_dim
        return LayerAttention(
            kind="window" if self.window else "full", layers=self.num_layers, flops_per_pair=pair,
            kv_bytes_per_token=2 * (self.num_kv_heads or self.num_heads) * self.head_dim * BYTES_PER_PARAM,
            decode_flops_per_pair=pair, window=self.window or None,
        )  # fmt: skip

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Numbers of the layers with experts."""
        if not self.num_experts:
            return ()
        first = self.first_moe_layer + self.moe_every - 1
        return tuple(range(first, self.num_layers, self.moe_every))


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsOnly:
    """All that a rumour says: so many experts of such a size, so many used by a token.

    Attributes:
        num_experts: E.
        expert_params: parameters of one.
        top_k: k.
    """

    num_experts: int
    expert_params: int
    top_k: int


def described_facts(description: LayerDescription | ExpertsOnly, *, name: str, source: str) -> ModelFacts:
    """Count a described model: formulas of docs/metrics.md#parameters on matrices and norm vectors, biases left out.

    Args:
        description: its layers.
        name: what to call it.
        source: where the description comes from.
    """
    if isinstance(description, ExpertsOnly):
        return _experts_only(description, name, source)
    d, layers = description, description.moe_layers
    dense_unit, expert_unit = d.dense_matrices * d.hidden_size, d.expert_matrices * d.hidden_size
    table = d.vocab_size * d.hidden_size
    params = dict.fromkeys(GROUPS, 0) | {
        "embedding": table,
        "attention": (d.num_layers + d.cross_attention_layers) * d.attention_params,
        "dense_mlp": dense_unit * ((d.num_layers - len(layers)) * d.dense_width + len(layers) * d.residual_width),
        "router": len(layers) * d.num_experts * d.hidden_size,
        "shared_experts": len(layers) * d.shared_width * expert_unit,
        "routed_experts": len(layers) * d.num_experts * d.expert_width * expert_unit,
        "norm": (d.num_layers * d.norms_per_layer + (d.norms_per_layer > 0)) * d.hidden_size,
        "lm_head": 0 if d.tied_embeddings else table,
    }
    one = d.expert_width * expert_unit
    moe = MoeLayerFacts(
        name="", num_experts=d.num_experts, top_k=d.top_k, expert_params=one, expert_bytes=one * BYTES_PER_PARAM,
        shared_params=d.shared_width * expert_unit, router_params=d.num_experts * d.hidden_size,
    )  # fmt: skip
    is_decoder = not d.encoder_layers
    return _facts(
        params, tuple(replace(moe, name=f"layers.{i}") for i in layers), name=name, source=source,
        tied=d.tied_embeddings, shape=(d.num_layers, d.hidden_size, d.vocab_size),
        attention=(d.attention,) if is_decoder else (),
        notes=("counted from a description of its layers, without biases", *(() if is_decoder else (TWO_STACKS,))),
    )  # fmt: skip


def _experts_only(described: ExpertsOnly, name: str, source: str) -> ModelFacts:
    layer = MoeLayerFacts(
        name="all layers",
        num_experts=described.num_experts,
        top_k=described.top_k,
        expert_params=described.expert_params,
        expert_bytes=described.expert_params * BYTES_PER_PARAM,
    )
    return _facts(
        {"routed_experts": described.num_experts * described.expert_params}, (layer,), name=name, source=source,
        tied=False, shape=(0, 0, 0), attention=(),
        notes=("only the number of experts and their size are said: attention, embedding and router are not counted",
               "KV bytes unknown: nothing is said about attention"),
    )  # fmt: skip


def _facts(
    params: dict[str, int],
    layers: tuple[MoeLayerFacts, ...],
    *,
    name: str,
    source: str,
    tied: bool,
    shape: tuple[int, int, int],
    attention: tuple[LayerAttention, ...],
    notes: tuple[str, ...],
) -> ModelFacts:
    total = sum(params.values())
    active = total - sum((layer.num_experts - layer.top_k) * layer.expert_params for layer in layers)
    embedding, head = params.get("embedding", 0), params.get("lm_head", 0)
    no_embedding = active if tied else active - embedding
    return ModelFacts(
        name=name,
        source=source,
        model_type="described",
        architecture="description of layers",
        dtype="bfloat16",
        total_params=total,
        active_params=active,
        active_params_no_embedding=no_embedding,
        active_params_no_embedding_no_head=no_embedding - (embedding if tied else head),
        params_by_group=params,
        bytes_by_group={group: BYTES_PER_PARAM * count for group, count in params.items()},
        tied_embeddings=tied,
        moe_layers=layers,
        num_layers=shape[0],
        hidden_size=shape[1],
        vocab_size=shape[2],
        kv_bytes_per_token=sum(x.keeps_bytes_per_token for x in attention) if attention else None,
        attention_flops_per_pair=sum(x.layers * x.flops_per_pair for x in attention) if attention else None,
        weights="random",
        notes=notes,
        attention=attention,
    )


SYSTEMS = Path(__file__).resolve().parents[1] / "data" / "systems.yaml"
FACTS = SYSTEMS.with_name("system_facts.json")  # written by tests/helpers/system_facts.py
CONVENTIONS = {"A": "active_params", "B": "active_params_no_embedding", "C": "active_params_no_embedding_no_head"}
STATUS = {
    "model": "published",
    "rumour": "unconfirmed rumour",
    "scheme": "routing scheme, not a model",
    "shape": "shape for measurements",
}
# A vendor's figure further than this from every convention follows none of them.
MAX_CONVENTION_ERROR_RATIO = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row of the list.

    Attributes:
        name: what people type.
        title: what people call it.
        kind: ``model``; ``rumour`` (marked so wherever it is shown); ``scheme`` (a way to route, no model);
            ``shape`` (for measurements).
        source: where the published figures stand.
        hub_id: Hugging Face id.
        published_total_params, published_active_params: the vendor's figures, or None.
        convention: which one the vendor's active figure follows, where its source or its rounding settles that.
        published_as: the figures as the vendor words them, where a number alone would mislead.
        config: what transformers builds it from, with ``model_type``.
        layers: description of its layers, where there is no class.
        experts_only: all that a rumour says.
        stored_bits: bits per parameter and group in the vendor's checkpoint, where other than the config's dtype.
        stored_bytes: of all its tensors, where no rule per group gives them.
        stored_as: how, in words.
        note: what a reader should know; for a scheme, what active means there.
    """

    name: str
    title: str
    source: str
    kind: Literal["model", "rumour", "scheme", "shape"] = "model"
    hub_id: str | None = None
    published_total_params: float | None = None
    published_active_params: float | None = None
    convention: Literal["A", "B", "C"] | None = None
    published_as: str = ""
    config: dict[str, Any] | None = None
    layers: LayerDescription | None = None
    experts_only: ExpertsOnly | None = None
    stored_bits: dict[str, float] = field(default_factory=dict)
    stored_bytes: int | None = None
    stored_as: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """What the figures are, in words."""
        return STATUS[self.kind]

    @property
    def description(self) -> LayerDescription | ExpertsOnly | None:
        """What stands in for a config."""
        return self.layers or self.experts_only


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedModel:
    """A model that somebody asked for, counted.

    Attributes:
        name: as asked.
        facts: the count; None for a routing scheme.
        system: its row of the built-in list, or None.
        stored_bytes: bytes of the weights in the vendor's checkpoint, or None.
        stored_reason: why there is none, or how they were found.
    """

    name: str
    facts: ModelFacts | None
    system: System | None = None
    stored_bytes: int | None = None
    stored_reason: str = ""

    @property
    def status(self) -> str:
        """What is known of it, in words."""
        return self.system.status if self.system is not None else "counted from its config"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    systems: tuple[System, ...]


@cache
def systems() -> tuple[System, ...]:
    """The whole list, in order."""
    return yamlfile.load(SYSTEMS, _File).systems


def system_facts(system: System) -> ModelFacts | None:
    """What it is, counted; None for a scheme."""
    if system.kind == "scheme":
        return None
    if system.description is not None:
        return described_facts(system.description, name=system.name, source=system.source)
    stored = dict(_stored_facts()[system.name])
    kinds, order = stored.pop("layer_kinds"), stored.pop("layers")
    layers = [kinds[kind] | {"name": kinds[kind]["name"].format(number)} for kind, number in order]
    found = {"name": system.name, "source": system.source, "moe_layers": layers} | stored
    return msgspec.convert(found, ModelFacts)


@cache
def _stored_facts() -> dict[str, dict[str, Any]]:
    """Row -> the count of its config; equal MoE layers are written once, with their numbers."""
    found: dict[str, dict[str, Any]] = json.loads(FACTS.read_text(encoding="utf-8"))
    return found


def find_system(text: str) -> System | None:
    """The row with this name, title or hub id, upper or lower case; None when there is none."""
    wanted = text.casefold()
    rows = systems()
    by_name = next((row for row in rows if row.name == wanted), None)
    return by_name or next(
        (row for row in rows if wanted in (row.title.casefold(), (row.hub_id or "").casefold()) and wanted), None
    )


def nearest_names(text: str) -> list[str]:
    """Up to three names of the list that look like ``text``, or that hold it."""
    names = [row.name for row in systems()]
    wanted = text.casefold().replace(" ", "-").replace("_", "-")
    close = difflib.get_close_matches(wanted, names, n=3)
    return close or [name for name in names if len(wanted) > 2 and (wanted in name or name in wanted)][:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """Which way of counting a vendor's active figure follows.

    Attributes:
        letter: ``A``, ``B`` or ``C`` of docs/metrics.md#parameters.
        error_ratio: ours / theirs - 1.
        is_settled: False when it is only the nearest of the three.
    """

    letter: str
    error_ratio: float
    is_settled: bool


def convention_of(system: System, facts: ModelFacts) -> Convention | None:
    """The convention of a row's published active figure.

    Args:
        system: the row.
        facts: our count of it.

    Returns:
        The settled one, else the nearest (A where two are equal); None when the vendor says nothing or no convention
        comes within a tenth.
    """
    published = system.published_active_params
    if published is None:
        return None
    errors = {c: float(getattr(facts, name)) / published - 1 for c, name in CONVENTIONS.items()}
    if system.convention is not None:
        return Convention(letter=system.convention, error_ratio=errors[system.convention], is_settled=True)
    nearest = min(errors, key=lambda c: abs(errors[c]))
    if abs(errors[nearest]) > MAX_CONVENTION_ERROR_RATIO:
        return None
    return Convention(letter=nearest, error_ratio=errors[nearest], is_settled=False)
