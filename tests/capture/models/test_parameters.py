"""Counting models: by identity, by group, in three conventions, on the meta device and quantised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig

from moeprof.capture.coverage import moe_causal_lm_types, tiny_model
from moeprof.capture.models.meta import MANY_EXPERTS, build_on_meta, facts_from_config
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.models.parameters import model_facts
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.model_facts import GROUPS, ModelFacts
from moeprof.core.record.headers import part_of, to_json
from tests.helpers.shared_data import SHARED, shared

PUBLISHED = "params/published_params.yaml"


def qwen3_moe(**changes: Any) -> Qwen3MoeConfig:
    """d = 8, 2 layers, 4 experts of width 4 (3 * 8 * 4 = 96 parameters each), top-2, vocabulary 10."""
    values = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "moe_intermediate_size": 4,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
        "vocab_size": 10,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    return Qwen3MoeConfig(**{**values, **changes})


def facts(config: Any, **more: Any) -> ModelFacts:
    return facts_from_config(config, name="m", source="test", **more)


def published_names() -> list[str]:
    file = SHARED / "data" / PUBLISHED
    if not file.exists():
        return ["absent"]
    return [row["name"] for row in yaml.safe_load(file.read_text())["models"] if row.get("transformers_class")]


def test_a_small_moe_is_counted_as_by_hand() -> None:
    counted = facts(qwen3_moe())
    # q and o: 8*8, k and v: 8*4; experts: 2 layers * 4 * 96; router: 2 * 4 * 8; norms: 2 * (8 + 8 + 4 + 4) + 8.
    assert counted.params_by_group == {
        "embedding": 80,
        "attention": 2 * (64 + 32 + 32 + 64),
        "dense_mlp": 0,
        "router": 64,
        "shared_experts": 0,
        "routed_experts": 768,
        "norm": 56,
        "lm_head": 80,
        "other": 0,
    }
    assert counted.total_params == 80 + 384 + 64 + 768 + 56 + 80
    assert counted.active_params == counted.total_params - 768 // 2
    assert counted.active_params_no_embedding == counted.active_params - 80
    assert counted.active_params_no_embedding_no_head == counted.active_params - 160
    assert counted.bytes_by_group["routed_experts"] == 2 * 768
    first = counted.moe_layers[0]
    assert (first.num_experts, first.top_k, first.expert_params, first.expert_bytes) == (4, 2, 96, 192)
    assert first.router_params == 32


def test_kv_bytes_and_attention_flops_follow_from_heads() -> None:
    counted = facts(qwen3_moe())
    assert counted.kv_bytes_per_token == 2 * (1 + 1) * 4 * 2  # layers * (k + v) * head_dim * bf16
    assert counted.attention_flops_per_pair == 4 * 2 * 4 * 2  # 4 * heads * head_dim * layers


@settings(max_examples=15, deadline=None)
@given(
    num_experts=st.integers(2, 40),
    top_k=st.integers(1, 2),
    layers=st.integers(1, 3),
    hidden=st.integers(2, 20).map(lambda n: 4 * n),
    width=st.integers(1, 50),
)
def test_idle_parameters_are_those_of_unpicked_experts(
    num_experts: int, top_k: int, layers: int, hidden: int, width: int
) -> None:
    counted = facts(
        qwen3_moe(
            num_experts=num_experts,
            num_experts_per_tok=top_k,
            num_hidden_layers=layers,
            hidden_size=hidden,
            moe_intermediate_size=width,
        )
    )
    assert counted.total_params - counted.active_params == layers * (num_experts - top_k) * 3 * hidden * width
    assert counted.params_by_group["router"] == layers * num_experts * hidden
    assert counted.params_by_group["other"] == 0


def test_tied_embeddings_are_counted_once_and_stay_active() -> None:
    counted = facts(qwen3_moe(tie_word_embeddings=True))
    assert counted.tied_embeddings
    assert counted.params_by_group["embedding"] == 80
    assert counted.params_by_group["lm_head"] == 0
    assert counted.active_params_no_embedding == counted.active_params
    assert counted.active_params_no_embedding_no_head == counted.active_params - 80


def test_shared_experts_are_apart_from_routed_ones_and_their_gate_is_neither() -> None:
    config = Qwen2MoeConfig(
        hidden_size=8,
        intermediate_size=16,
        moe_intermediate_size=4,
        shared_expert_intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=10,
        num_experts=4,
        num_experts_per_tok=1,
    )
    counted = facts(config)
    assert counted.params_by_group["shared_experts"] == 3 * 8 * 6
    assert counted.params_by_group["routed_experts"] == 4 * 3 * 8 * 4
    assert counted.params_by_group["router"] == 4 * 8
    assert counted.params_by_group["other"] == 8  # the gate of the shared expert


def test_a_dense_model_has_no_idle_parameters() -> None:
    config = Qwen3Config(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=10)
    counted = facts(config)
    assert not counted.is_moe
    assert counted.active_params == counted.total_params
    assert counted.params_by_group["dense_mlp"] == 3 * 8 * 16


def test_facts_survive_json() -> None:
    counted = facts(qwen3_moe())
    assert part_of(ModelFacts, to_json(counted)) == counted


def test_a_real_model_and_its_config_give_the_same_facts() -> None:
    config = qwen3_moe()
    model = transformers.Qwen3MoeForCausalLM._from_config(config, dtype=torch.bfloat16)
    assert model_facts(model, name="m", source="test", weights="random") == facts(config)


@pytest.mark.parametrize("name", published_names())
def test_published_counts_are_met_exactly(name: str) -> None:
    rows = yaml.safe_load(shared(PUBLISHED).read_text())["models"]
    row = next(r for r in rows if r["name"] == name)
    config = getattr(transformers, row["transformers_class"]).config_class(**row["config"])
    counted, truth = facts(config), dict(row["computed"])
    first = counted.moe_layers[0] if counted.is_moe else None
    measured = {
        "total": counted.total_params,
        "active_all": counted.active_params,
        "active_minus_embed": counted.active_params_no_embedding,
        "active_no_embed_no_head": counted.active_params_no_embedding_no_head,
        "embedding": counted.params_by_group["embedding"],
        "lm_head": counted.params_by_group["lm_head"],
        "tied": counted.tied_embeddings,
        "routed_experts_total": counted.params_by_group["routed_experts"],
        "router": counted.params_by_group["router"],
        "shared_experts": counted.params_by_group["shared_experts"],
        "n_moe_layers": len(counted.moe_layers),
        "num_experts": first.num_experts if first else 0,
        "top_k": first.top_k if first else None,
    }
    if name == "JetMoE-8B":  # the table counts input and output matrices apart; one router feeds both
        truth["n_moe_layers"] //= 2
    assert measured == {key: truth[key] for key in measured}
    assert sum(counted.params_by_group.values()) == counted.total_params
    assert sum(layer.router_params for layer in counted.moe_layers) == measured["router"]


@pytest.mark.parametrize("model_type", moe_causal_lm_types())
def test_every_moe_class_is_counted_like_the_tap_sees_it_or_refused_by_name(model_type: str) -> None:
    try:
        model = tiny_model(model_type)
    except ModelError as error:
        pytest.skip(f"no tiny model: {error}")
    try:
        tapped = find_moe_layers(model)
    except UnsupportedModelError:
        tapped = None
    try:
        counted = model_facts(model, name=model_type, source="tiny")
    except UnsupportedModelError as error:
        assert model_type in str(error)
        return
    unique = {id(p): p.numel() for p in model.parameters()}
    assert counted.total_params == sum(unique.values()) == sum(counted.params_by_group.values())
    assert set(counted.params_by_group) == set(GROUPS)
    assert counted.active_params < counted.total_params
    assert all(layer.router_params > 0 for layer in counted.moe_layers)
    if tapped is not None:
        ours = sorted((layer.name, layer.num_experts, layer.top_k) for layer in counted.moe_layers)
        assert ours == sorted((layer.name, layer.num_experts, layer.top_k) for layer in tapped)


def test_counts_with_very_many_experts_come_from_small_models() -> None:
    config = {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 16,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 10,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
        "num_decoder_layers": 2,
    }
    build = transformers.SwitchTransformersConfig
    many = facts(build(num_experts=MANY_EXPERTS, **config))
    straight = model_facts(
        build_on_meta(build(num_experts=MANY_EXPERTS, **config), name="m"), name="m", source="test", weights="random"
    )
    assert many == straight


class ListedExperts(nn.Module):
    """An architecture nobody has seen: a list of experts beside a scoring matrix."""

    def __init__(self, num_experts: int = 4) -> None:
        super().__init__()
        self.choose = nn.Linear(8, num_experts, bias=False)
        self.units = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False)) for _ in range(num_experts)
        )
        self.top_k = 1


class Unseen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.layers = nn.ModuleList(nn.ModuleDict({"moe": ListedExperts()}) for _ in range(3))

    def get_input_embeddings(self) -> nn.Module:
        return self.embed


def test_an_architecture_never_seen_is_counted_by_structure() -> None:
    counted = model_facts(Unseen(), name="unseen", source="test")
    assert counted.total_params == 80 + 3 * (32 + 4 * 96)
    assert counted.params_by_group["routed_experts"] == 3 * 4 * 96
    assert counted.params_by_group["router"] == 3 * 32
    assert counted.active_params == 80 + 3 * (32 + 96)


def test_experts_without_a_known_top_k_are_refused_by_name() -> None:
    model = Unseen()
    for layer in model.layers:
        del layer["moe"].top_k
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.moe has 4 experts, but nothing says how many"):
        model_facts(model, name="unseen", source="test")


def test_a_config_with_experts_that_no_module_holds_is_refused_with_its_total() -> None:
    config = transformers.DogeConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=10, is_moe=True, num_experts=4
    )
    with pytest.raises(UnsupportedModelError, match=r"num_experts=4, but no module holds .* parameters in total"):
        facts(config)


def test_a_config_that_no_class_builds_is_a_clear_error() -> None:
    with pytest.raises(ModelError, match="cannot be built"):
        facts(qwen3_moe(num_attention_heads=0))
