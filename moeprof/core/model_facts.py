"""What a model is, counted exactly: the part of ``model.json`` that the analysis wing needs, without torch.

Groups and formulas: docs/metrics.md#parameters. ``params_by_group`` counts by identity, tied weights once.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        active_params: A = total - idle routed experts.
        active_params_no_embedding: B.
        active_params_no_embedding_no_head: C.
        params_by_group: parameters per group of GROUPS.
        bytes_by_group: bytes as stored per group of GROUPS.
        tied_embeddings: True when lm_head shares the embedding.
        moe_layers: the MoE layers, empty for a dense model.
        num_layers: decoder layers.
        hidden_size: d.
        vocab_size: rows of the embedding.
        kv_bytes_per_token: KV bytes per token over all layers, or None when the cache is not of that kind.
        attention_flops_per_pair: FLOPs per query-key pair over all layers: 4 * heads * head_dim * layers.
        tokenizer_hash: of the tokenizer used, or None.
        routing_policy: ``native``, or the override in force (then said on every page).
        weights: ``checkpoint`` or ``random``.
        notes: what a reader should know (quantised groups, executed != routed...).
        twin: for a dense twin: which MoE, how wide, how initialised; else None.
        revision: which weights: a hash of the files, the hub's commit, or how they were drawn (see
            moeprof/capture/models/load.py); None where unknown, as in records made before this was kept.
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

    @property
    def is_moe(self) -> bool:
        """True when it has routed experts."""
        return bool(self.moe_layers)
