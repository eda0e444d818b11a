"""A model as a short description of its layers, for systems that no transformers class builds.

The count is arithmetic on matrices and norm vectors, without biases, so it also works for models that only a paper
describes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from moeprof.core.errors import ModelError
from moeprof.core.modelfacts import GROUPS, ModelFacts, MoeLayerFacts

BYTES_PER_PARAM = 2  # descriptions are counted as bfloat16
TWO_STACKS = "KV bytes unknown: encoder and decoder"
_MAY_BE_ZERO = {"dense_width", "first_moe_layer", "shared_width", "residual_width", "cross_attention_layers",
                "encoder_layers", "norms_per_layer", "num_experts", "top_k", "expert_width"}  # fmt: skip


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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise ModelError(f"{field.name}: found {value}; {least} or more is allowed")
        if self.num_experts and not (1 <= self.top_k <= self.num_experts and self.expert_width):
            raise ModelError(
                f"top_k: found {self.top_k} of {self.num_experts} experts with expert_width {self.expert_width}; "
                "1 to num_experts and a width of 1 or more are allowed"
            )
        if max(self.first_moe_layer, self.encoder_layers, self.cross_attention_layers) > self.num_layers:
            raise ModelError(f"num_layers: found {self.num_layers}, fewer than the layers named by another key")

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
    """Count a described model: formulas of METRICS section 2 on matrices and norm vectors, biases left out.

    Args:
        description: its layers.
        name: what to call it.
        source: where the description comes from.
    """
    if isinstance(description, ExpertsOnly):
        return _experts_only(description, name, source)
    d, layers = description, description.moe_layers
    heads, kv_heads = d.num_heads, d.num_kv_heads or d.num_heads
    attention = 2 * d.hidden_size * d.head_dim * (heads + kv_heads)
    dense_unit, expert_unit = d.dense_matrices * d.hidden_size, d.expert_matrices * d.hidden_size
    table = d.vocab_size * d.hidden_size
    params = dict.fromkeys(GROUPS, 0) | {
        "embedding": table,
        "attention": (d.num_layers + d.cross_attention_layers) * attention,
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
        params, tuple(_at(moe, i) for i in layers), name=name, source=source, tied=d.tied_embeddings,
        shape=(d.num_layers, d.hidden_size, d.vocab_size),
        kv=2 * kv_heads * d.head_dim * d.num_layers * BYTES_PER_PARAM if is_decoder else None,
        pairs=4 * heads * d.head_dim * d.num_layers if is_decoder else None,
        notes=("counted from a description of its layers, without biases", *(() if is_decoder else (TWO_STACKS,))),
    )  # fmt: skip


def _at(layer: MoeLayerFacts, index: int) -> MoeLayerFacts:
    return MoeLayerFacts(
        name=f"layers.{index}",
        num_experts=layer.num_experts,
        top_k=layer.top_k,
        expert_params=layer.expert_params,
        expert_bytes=layer.expert_bytes,
        shared_params=layer.shared_params,
        router_params=layer.router_params,
    )


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
        tied=False, shape=(0, 0, 0), kv=None, pairs=None,
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
    kv: int | None,
    pairs: int | None,
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
        kv_bytes_per_token=kv,
        attention_flops_per_pair=pairs,
        weights="random",
        notes=notes,
    )
