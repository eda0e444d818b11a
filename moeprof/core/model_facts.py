"""What a model is, counted exactly: the part of ``model.json`` that the analysis wing needs, without torch.

Groups and formulas: docs/metrics.md#parameters. ``params_by_group`` counts by identity, tied weights once.

Layers are not alike in what they keep of a text: :class:`LayerAttention` describes each kind once, and whatever needs
bytes of keys and values or FLOPs of attention sums over them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

GROUPS = (
    "embedding",
    "attention",
    "dense_mlp",
    "router",
    "shared_experts",
    "routed_experts",
    "norm",
    "lm_head",
    "other",
)
# Towers for images and sound and what joins them to the text; only where a model has such parts.
OTHER_MODALITIES = "other_modalities"
AttentionKind = Literal["full", "window", "latent", "state", "shared", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeLayerFacts:
    """One MoE layer.

    Attributes:
        name: module path of the MoE block.
        num_experts: E (routed).
        top_k: k.
        expert_params: parameters of one routed expert.
        expert_bytes: bytes of one routed expert as stored.
        shared_params: parameters of the layer's shared experts.
        router_params: parameters of the layer's router.
        executes_all_experts: True for code that runs every expert on every token (no sparsity gain).
    """

    name: str
    num_experts: int
    top_k: int
    expert_params: int
    expert_bytes: int
    shared_params: int = 0
    router_params: int = 0
    executes_all_experts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAttention:
    """Layers of the language model that are alike in what they keep of a sequence and compute per pair of tokens.

    Attributes:
        kind: ``full``; ``window`` (a query sees the last ``window`` tokens, itself included); ``latent`` (one
            compressed vector for all heads); ``state`` (of constant size); ``shared`` (reads the keys and values that
            another layer keeps); ``none``.
        layers: how many there are.
        kv_bytes_per_token: that one layer reads of each token in reach, and keeps unless it is ``shared``.
        flops_per_pair: of one layer per query-key pair: 2 * heads * (key width + value width).
        decode_flops_per_pair: likewise in a decode step; more than ``flops_per_pair`` where it works on latents as they
            lie: 2 * heads * (2 * latent width + rotary width), DeepSeek-V2 (arXiv 2405.04434) section 2.1.2.
        window: tokens in reach, or None for all.
        state_bytes: of one layer and sequence, whatever its length; read and written in every step.
        state_flops: of one layer and token, prompt or output, on its state: see STATE_FLOPS in
            moeprof/capture/models/attention.py. None in records made before this was kept.
    """

    kind: AttentionKind
    layers: int
    kv_bytes_per_token: int = 0
    flops_per_pair: int = 0
    decode_flops_per_pair: int = 0
    window: int | None = None
    state_bytes: int = 0
    state_flops: int | None = None

    def in_reach(self, tokens: int) -> int:
        """Tokens of a text of so many that its last one sees."""
        return tokens if self.window is None else min(tokens, self.window)

    @property
    def keeps_bytes_per_token(self) -> int:
        """All these layers keep of one token in reach."""
        return 0 if self.kind == "shared" else self.layers * self.kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinFacts:
    """How a dense twin relates to its MoE. Widths are units of the hidden layer of one MLP, of the first MoE layer.

    Attributes:
        of: name of the MoE in the workload.
        match: ``active``, ``total``, a width or a multiple of the active width, as the workload says.
        width: units of the twin's MLP.
        active_width: units that the MoE uses for one token: k experts and the shared ones.
        total_width: units of all experts and the shared ones.
        target_params: parameters that the twin should have: the MoE's active or total ones (the router left out), or
            those of the asked width.
        initialise: ``random`` or ``popular_experts``.
    """

    of: str
    match: str
    width: int
    active_width: int
    total_width: int
    target_params: int
    initialise: str = "random"

    @property
    def is_active_matched(self) -> bool:
        """As wide as what one token uses."""
        return self.width == self.active_width

    @property
    def is_total_matched(self) -> bool:
        """As wide as all experts together."""
        return self.width == self.total_width


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What a model is.

    Attributes:
        name: the workload's name for it.
        source: where it came from (hub id, folder, config + "random weights").
        model_type: for example ``qwen3_moe``.
        architecture: class name.
        dtype: dtype of most weights.
        total_params: all parameters, tied ones once.
        active_params: A = total - idle routed experts - parts that no text token passes.
        active_params_no_embedding: B.
        active_params_no_embedding_no_head: C.
        params_by_group: parameters per group of GROUPS, and of OTHER_MODALITIES where there are any.
        bytes_by_group: bytes as stored of the same groups.
        tied_embeddings: True when lm_head shares the embedding.
        moe_layers: the MoE layers, empty for a dense model.
        num_layers: decoder layers.
        hidden_size: d.
        vocab_size: rows of the embedding.
        kv_bytes_per_token: bytes kept of a token in reach of every layer, or None when the cache is not of that kind.
        attention_flops_per_pair: FLOPs per query-key pair over all layers with heads as they are trained:
            4 * heads * head_dim * layers.
        tokenizer_hash: of the tokenizer used, or None.
        routing_policy: ``native``, or the override in force (then said on every page).
        weights: ``checkpoint`` or ``random``.
        notes: what a reader should know (quantised groups, executed != routed...).
        twin: for a dense twin: which MoE, how wide, how initialised; else None.
        revision: which weights: a hash of the files, the hub's commit, or how they were drawn (see
            moeprof/capture/models/load.py); None where unknown, as in records made before this was kept.
        attention: the layers of the language model by kind; empty where unknown, and in records made before this was
            kept.
        other_parts: parameters of each part that no text token passes, by module path.
    """

    name: str
    source: str
    model_type: str
    architecture: str
    dtype: str
    total_params: int
    active_params: int
    active_params_no_embedding: int
    active_params_no_embedding_no_head: int
    params_by_group: dict[str, int]
    bytes_by_group: dict[str, int]
    tied_embeddings: bool
    moe_layers: tuple[MoeLayerFacts, ...]
    num_layers: int
    hidden_size: int
    vocab_size: int
    kv_bytes_per_token: int | None
    attention_flops_per_pair: int | None
    tokenizer_hash: str | None = None
    routing_policy: str = "native"
    weights: str = "checkpoint"
    notes: tuple[str, ...] = ()
    twin: TwinFacts | None = None
    revision: str | None = None
    attention: tuple[LayerAttention, ...] = ()
    other_parts: dict[str, int] = field(default_factory=dict)

    @property
    def is_moe(self) -> bool:
        """True when it has routed experts."""
        return bool(self.moe_layers)

    @property
    def groups(self) -> tuple[str, ...]:
        """GROUPS, and OTHER_MODALITIES where it has such parts."""
        return (*GROUPS, OTHER_MODALITIES) if self.params_by_group.get(OTHER_MODALITIES) else GROUPS

    @property
    def windows(self) -> tuple[int, ...]:
        """The different windows of its layers, smallest first; the order of the record's ``window_*`` columns."""
        return tuple(sorted({layer.window for layer in self.attention if layer.window is not None}))

    @property
    def state_bytes_per_sequence(self) -> int:
        """Of all layers that keep a state of constant size."""
        return sum(layer.layers * layer.state_bytes for layer in self.attention)

    @property
    def state_flops_per_token(self) -> int | None:
        """Of all layers that keep a state of constant size; None where a record does not say it."""
        kept = [layer for layer in self.attention if layer.state_bytes]
        if any(layer.state_flops is None for layer in kept):
            return None
        return sum(layer.layers * (layer.state_flops or 0) for layer in kept)

    @property
    def layers_of_attention(self) -> tuple[LayerAttention, ...] | str:
        """``attention``; of an older record all layers as one; or the reason why it is unknown."""
        if self.kv_bytes_per_token is None or self.attention_flops_per_pair is None:
            unknown = next((note for note in self.notes if note.startswith(KV_UNKNOWN)), None)
            return unknown or "KV bytes per token are unknown"
        if self.attention:
            return self.attention
        told = next((note for note in self.notes if any(words in note for words in _OLD_NOTES)), None)
        if told is not None:
            return f"a record of an older version, which does not say how large windows and states are ({told})"
        pair = self.attention_flops_per_pair
        one = LayerAttention(kind="full", layers=1, kv_bytes_per_token=self.kv_bytes_per_token, flops_per_pair=pair,
                             decode_flops_per_pair=pair)  # fmt: skip
        return (one,)

    def kept_bytes(self, tokens: int) -> int | None:
        """Keys, values and states that a sequence of so many tokens keeps; None where that is unknown."""
        layers = self.layers_of_attention
        if isinstance(layers, str):
            return None
        return sum(x.keeps_bytes_per_token * x.in_reach(tokens) + x.layers * x.state_bytes for x in layers)

    def decode_bytes(self, past: int) -> int | None:
        """Keys, values and states that one decoded token moves after ``past`` others: all in reach and its own."""
        layers = self.layers_of_attention
        if isinstance(layers, str):
            return None
        return sum(x.layers * (x.kv_bytes_per_token * x.in_reach(past + 1) + 2 * x.state_bytes) for x in layers)

    def decode_attention_flops(self, past: int) -> int | None:
        """FLOPs of one decoded token's attention over ``past`` others, and on states of constant size."""
        layers, states = self.layers_of_attention, self.state_flops_per_token
        if isinstance(layers, str) or states is None:
            return None
        return states + sum(x.layers * x.decode_flops_per_pair * x.in_reach(past) for x in layers)


KV_UNKNOWN = "KV bytes unknown"
NO_STATE_FLOPS = "a record of an older version, which does not say what layers compute on their states"
# What notes of older records say where layers are not alike.
_OLD_NOTES = ("keep only a window of keys and values", "keep a state of constant size, not counted")
