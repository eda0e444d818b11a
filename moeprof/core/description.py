"""A model in numbers: a description of its layers, and the count of it. For models that transformers has no class for.

The count is arithmetic on matrices and norm vectors, without biases, so it works for models that only a paper tells of.
Layers need not be alike in how they look back: attention over all tokens, over a window, on latents, over tokens that
an index chooses, or linear attention, whose state has a constant size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

from moeprof.core.errors import ModelError
from moeprof.core.model_facts import GROUPS, LayerAttention, ModelFacts, MoeLayerFacts, layers_in_words

BYTES_PER_PARAM = 2  # descriptions are counted as bfloat16
TWO_STACKS = "KV bytes unknown: encoder and decoder"
MOST, MOST_LAYERS = 2**40, 10_000
_AT_LEAST_ONE = {"hidden_size", "num_layers", "vocab_size", "layers", "num_kv_heads", "dense_matrices",
                 "expert_matrices", "moe_every"}  # fmt: skip
# Of linear attention: bytes of an element of the state, FLOPs per element and token. A state is updated by an outer
# product (2) and read by a product (2); the delta rule reads it once more, for what it holds of the key (2).
_RULES = {"gated_delta": (4, 6), "kimi_delta": (4, 6), "lightning": (BYTES_PER_PARAM, 4), "mamba2": (4, 4)}
LinearRule = Literal["gated_delta", "kimi_delta", "lightning", "mamba2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookingBack:
    """How a layer looks back.

    Attributes:
        num_heads: query heads; of linear attention those of the values, each of which has a state; 0 in layers that do
            not look back.
        head_dim: width of a query and key, rotary part included; of ``mamba2`` the size of the state.
        num_kv_heads: heads of keys and values, of linear attention of queries and keys (groups of ``mamba2``); as many
            as num_heads when left out.
        v_head_dim: width of a value (of ``mamba2`` a head's); as wide as a key when left out.
        output_gate: True where a projection as wide as the values of all heads gates the output.
        window: tokens that a query sees; 0 for all.
        kv_lora_rank: width of the latent that keys and values of all heads are made of; 0 for plain attention.
        q_lora_rank: width of the latent of the queries; 0 where they are projected at once.
        qk_rope_head_dim: rotary part of a key, beside the latent.
        index_topk: tokens that a query attends to, chosen by an index among those that it sees; 0 for all of them.
        index_heads: heads of the index, each of which scores every token.
        index_head_dim: width of their queries, and of the one key that the index keeps of a token.
        linear: rule of linear attention, where it is that: ``gated_delta`` (arXiv 2412.06464, as Qwen3-Next has it),
            ``kimi_delta`` (arXiv 2510.26692), ``lightning`` (arXiv 2501.08313), ``mamba2`` (arXiv 2405.21060).
        conv_kernel: taps of its short convolution over queries, keys and values; ``lightning`` has none.
        other_params: of one layer's attention that no other key gives, such as biases.
    """

    num_heads: int = 0
    head_dim: int = 0
    num_kv_heads: int | None = None
    v_head_dim: int = 0
    output_gate: bool = False
    window: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    index_topk: int = 0
    index_heads: int = 0
    index_head_dim: int = 0
    linear: LinearRule | None = None
    conv_kernel: int = 0
    other_params: int = 0

    def check(self) -> None:
        """Refuse numbers that cannot be, or that do not go together.

        Raises:
            ModelError: which, what was found, what is allowed.
        """
        for own in fields(self):
            value, least = getattr(self, own.name), 1 if own.name in _AT_LEAST_ONE else 0
            most = MOST_LAYERS if own.name.endswith("layers") else MOST
            if isinstance(value, int) and not isinstance(value, bool) and not least <= value <= most:
                allowed = f"{least} or more" if value < least else f"at most {most}"
                raise ModelError(f"{own.name}: found {value}; {allowed} is allowed")
        told = self._contradiction() if self.num_heads else self._without_heads()
        if told is not None:
            raise ModelError(told)

    def _without_heads(self) -> str | None:
        set_keys = [own.name for own in fields(LookingBack) if getattr(self, own.name)]
        return f"{set_keys[0]}: found without num_heads; give num_heads, or leave it out" if set_keys else None

    def _contradiction(self) -> str | None:
        if not self.head_dim:
            return "head_dim: missing; the width of one head is needed"
        if self.linear is not None:
            keys = ("window", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "index_topk", "output_gate")
            beside = next((key for key in keys if getattr(self, key)), None)
            if beside is not None:
                return f"{beside}: found beside linear; linear attention has a state instead, leave one of them out"
            if (self.linear == "lightning") != (self.conv_kernel == 0):
                wanted = "0 (lightning has no convolution)" if self.conv_kernel else "1 or more"
                return f"conv_kernel: found {self.conv_kernel} beside linear {self.linear}; {wanted} is allowed"
        elif self.conv_kernel:
            return "conv_kernel: found without linear; only linear attention has a convolution here"
        if any((self.index_topk, self.index_heads, self.index_head_dim)) and not all(
            (self.index_topk, self.index_heads, self.index_head_dim)
        ):
            return "index_topk, index_heads, index_head_dim: all three or none of them are needed"
        if self.kv_lora_rank and not self.head_dim >= self.qk_rope_head_dim:
            return f"qk_rope_head_dim: found {self.qk_rope_head_dim}; at most head_dim, {self.head_dim}, is allowed"
        return None

    @property
    def _kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def _value_dim(self) -> int:
        return self.v_head_dim or self.head_dim

    @property
    def _channels(self) -> int:
        """Queries, keys and values of linear attention, which its convolution runs over."""
        return 2 * self._kv_heads * self.head_dim + self.num_heads * self._value_dim

    def params(self, hidden: int) -> int:
        """Of one layer: every projection, convolution and vector that belongs to looking back."""
        if not self.num_heads:
            return 0
        if self.linear is not None:
            return self._linear_params(hidden) + self.other_params
        values = self.num_heads * self._value_dim
        gate = hidden * values if self.output_gate else 0
        own = self._latent_params(hidden) if self.kv_lora_rank else self._plain_params(hidden)
        return own + gate + self._index_params(hidden) + self.other_params

    def _plain_params(self, hidden: int) -> int:
        """Queries, keys, values and output."""
        return hidden * (self.head_dim + self._value_dim) * (self.num_heads + self._kv_heads)

    def _latent_params(self, hidden: int) -> int:
        """Projections down and up, with the norms between them."""
        queries, own = self.num_heads * self.head_dim, self.q_lora_rank
        query = hidden * own + own * queries + own if own else hidden * queries
        up = self.num_heads * (self.head_dim - self.qk_rope_head_dim + self._value_dim)
        latent = hidden * (self.kv_lora_rank + self.qk_rope_head_dim) + self.kv_lora_rank * (up + 1)
        return query + latent + self.num_heads * self._value_dim * hidden

    def _index_params(self, hidden: int) -> int:
        """Its queries (of their latent, if any), its key and that one's norm (weight and bias), a weight per head.

        DeepSeek-V3.2 (arXiv 2512.02556) section 2.1.
        """
        width, heads = self.index_head_dim, self.index_heads
        return (self.q_lora_rank or hidden) * heads * width + hidden * width + 2 * width + hidden * heads

    def _linear_params(self, hidden: int) -> int:
        heads, keys, values = self.num_heads, self._kv_heads * self.head_dim, self.num_heads * self._value_dim
        into, out = hidden * (2 * keys + values), values * hidden
        convolution = self._channels * self.conv_kernel
        if self.linear == "gated_delta":  # gate; decay and beta per head, with A and the bias of time; norm of a head
            return into + out + convolution + hidden * (values + 2 * heads) + 2 * heads + self._value_dim
        if (
            self.linear == "kimi_delta"
        ):  # gate and decay of low rank; beta per head; A, the bias of time, norm of a head
            low = (hidden + keys) * self.head_dim + (hidden + values) * self._value_dim
            return into + out + convolution + low + keys + heads + hidden * heads + self._value_dim
        if self.linear == "lightning":  # gate, norm of all heads
            return into + out + hidden * values + values
        # mamba2: gate, time step per head; bias of the convolution; A, D and the bias of time; norm of all heads
        return into + out + hidden * (values + heads) + convolution + self._channels + 3 * heads + values

    def attention_of(self, layers: int) -> LayerAttention:
        """What so many of them keep of a text and compute."""
        if not self.num_heads:
            return LayerAttention(kind="none", layers=layers)
        if self.linear is not None:
            size, flops = _RULES[self.linear]
            state = self.num_heads * self.head_dim * self._value_dim
            kept = size * state + BYTES_PER_PARAM * self._channels * self.conv_kernel
            return LayerAttention(kind="state", layers=layers, state_bytes=kept, state_flops=flops * state)
        heads, latent, window = self.num_heads, self.kv_lora_rank, self.window or None
        pair = 2 * heads * (self.head_dim + self._value_dim)
        kept = latent + self.qk_rope_head_dim if latent else self._kv_heads * (self.head_dim + self._value_dim)
        return LayerAttention(
            kind="latent" if latent else "window" if window else "full", layers=layers, window=window,
            kv_bytes_per_token=kept * BYTES_PER_PARAM, flops_per_pair=pair,
            decode_flops_per_pair=2 * heads * (2 * latent + self.qk_rope_head_dim) if latent else pair,
            picks=self.index_topk or None, index_bytes_per_token=self.index_head_dim * BYTES_PER_PARAM,
            index_flops_per_pair=2 * self.index_heads * (self.index_head_dim + 1),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersAlike(LookingBack):
    """So many layers that look back in one way.

    Attributes:
        layers: how many; in which order does not matter for any count.
    """

    layers: int

    def __post_init__(self) -> None:
        self.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDescription(LookingBack):
    """A transformer in numbers. Widths are units of an MLP's hidden layer.

    All layers look back in one way, said by the keys of :class:`LookingBack`, or ``attention`` says it for each kind.

    Attributes:
        hidden_size: d.
        num_layers: blocks, those of encoder and decoder together.
        vocab_size: rows of the embedding.
        attention: layers by how they look back, where they differ.
        dense_width: MLP of the layers without experts.
        dense_matrices: 3 with a gate, 2 without.
        num_experts: E per MoE layer; 0 for a dense model.
        top_k: k.
        expert_width: of one expert.
        expert_matrices: 3 with a gate, 2 without; shared experts alike.
        shared_width: of all shared experts of a layer together.
        shared_gate: True where a product of d weights gates what they give.
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
    attention: tuple[LayersAlike, ...] = ()
    dense_width: int = 0
    dense_matrices: int = 3
    num_experts: int = 0
    top_k: int = 0
    expert_width: int = 0
    expert_matrices: int = 3
    shared_width: int = 0
    shared_gate: bool = False
    residual_width: int = 0
    first_moe_layer: int = 0
    moe_every: int = 1
    norms_per_layer: int = 2
    encoder_layers: int = 0
    cross_attention_layers: int = 0
    tied_embeddings: bool = False

    def __post_init__(self) -> None:
        self.check()
        if self.num_experts and not (1 <= self.top_k <= self.num_experts and self.expert_width):
            raise ModelError(
                f"top_k: found {self.top_k} of {self.num_experts} experts with expert_width {self.expert_width}; "
                "1 to num_experts and a width of 1 or more are allowed"
            )
        if max(self.first_moe_layer, self.encoder_layers, self.cross_attention_layers) > self.num_layers:
            raise ModelError(f"num_layers: found {self.num_layers}, fewer than the layers named by another key")
        if bool(self.num_heads) == bool(self.attention):
            raise ModelError("num_heads: give it and head_dim for all layers, or attention: a list for so many each")
        described = sum(own.layers for own in self.attention)
        if self.attention and described != self.num_layers:
            raise ModelError(f"attention: found {described} layers in all; num_layers, {self.num_layers}, is allowed")
        if self.attention and self.encoder_layers:
            raise ModelError("attention: found beside encoder_layers; a list is for decoders alone")

    @property
    def attention_params(self) -> int:
        """Of all layers."""
        if self.attention:
            return sum(own.layers * own.params(self.hidden_size) for own in self.attention)
        return (self.num_layers + self.cross_attention_layers) * self.params(self.hidden_size)

    @property
    def layers_by_attention(self) -> tuple[LayerAttention, ...]:
        """What its layers keep and compute; empty where an encoder is among them, of which two texts go through."""
        if self.encoder_layers:
            return ()
        listed = ((own, own.layers) for own in self.attention) if self.attention else ((self, self.num_layers),)
        return tuple(own.attention_of(layers) for own, layers in listed)

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
    shared = d.shared_width * expert_unit + d.shared_gate * d.hidden_size
    params = dict.fromkeys(GROUPS, 0) | {
        "embedding": table,
        "attention": d.attention_params,
        "dense_mlp": dense_unit * ((d.num_layers - len(layers)) * d.dense_width + len(layers) * d.residual_width),
        "router": len(layers) * d.num_experts * d.hidden_size,
        "shared_experts": len(layers) * shared,
        "routed_experts": len(layers) * d.num_experts * d.expert_width * expert_unit,
        "norm": (d.num_layers * d.norms_per_layer + (d.norms_per_layer > 0)) * d.hidden_size,
        "lm_head": 0 if d.tied_embeddings else table,
    }
    one = d.expert_width * expert_unit
    moe = MoeLayerFacts(
        name="", num_experts=d.num_experts, top_k=d.top_k, expert_params=one, expert_bytes=one * BYTES_PER_PARAM,
        shared_params=shared, router_params=d.num_experts * d.hidden_size,
    )  # fmt: skip
    attention = d.layers_by_attention
    return _facts(
        params, tuple(replace(moe, name=f"layers.{i}") for i in layers), name=name, source=source,
        tied=d.tied_embeddings, shape=(d.num_layers, d.hidden_size, d.vocab_size),
        attention=attention,
        notes=("counted from a description of its layers, without biases",
               *(layers_in_words(attention) if attention else (TWO_STACKS,))),
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
