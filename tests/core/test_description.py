"""Descriptions of layers: two made-up models worked out by hand, classes that say the same, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.params import Question, figures
from moeprof.capture.models.count import count_model
from moeprof.capture.models.meta import config_object, facts_from_config
from moeprof.core.description import LayerDescription, LayersAlike, described_facts
from moeprof.core.errors import ModelError, WorkloadError
from moeprof.core.known_models import CountedModel
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.headers import part_of, to_json

LATENT_AND_LINEAR = """
layers:
  hidden_size: 8
  num_layers: 4
  vocab_size: 10
  dense_width: 16
  num_experts: 4
  top_k: 2
  expert_width: 6
  shared_width: 6
  first_moe_layer: 1
  attention:
    - {layers: 3, linear: gated_delta, num_heads: 4, num_kv_heads: 2, head_dim: 3, v_head_dim: 5, conv_kernel: 4}
    - {layers: 1, num_heads: 2, head_dim: 6, v_head_dim: 3, kv_lora_rank: 5, q_lora_rank: 3, qk_rope_head_dim: 2}
"""
SPARSE = """
layers: {hidden_size: 8, num_layers: 3, vocab_size: 10, num_heads: 4, num_kv_heads: 2, head_dim: 4, num_experts: 8,
  top_k: 2, expert_width: 5, index_topk: 16, index_heads: 3, index_head_dim: 6, tied_embeddings: true}
"""


def described(folder: Path, text: str) -> CountedModel:
    file = folder / "mine.yaml"
    file.write_text(text)
    return count_model(str(file))


def asked(model: CountedModel, context: int) -> dict[str, Any]:
    return {figure.name: figure.value for figure in figures(model, Question(batches=(1,), context=context))}


def test_latents_beside_linear_attention_are_counted_as_by_hand(tmp_path: Path) -> None:
    model = described(tmp_path, LATENT_AND_LINEAR)
    facts = model.facts
    assert facts is not None
    # keys 2 * 3 = 6, values 4 * 5 = 20: in 8 * (6 + 6 + 20), gate 8 * 20, decay and beta 8 * 8, taps 32 * 4, A and time
    # 8, norm 5, out 20 * 8
    linear = 256 + 160 + 64 + 128 + 8 + 5 + 160
    # queries 8 -> 3 -> 2 * 6 with a norm of 3; latent 8 -> 5 + 2 with a norm of 5 -> 2 * (4 + 3); out 2 * 3 -> 8
    latent = (24 + 3 + 36) + (56 + 5 + 70) + 48
    assert (linear, latent) == (781, 242)
    assert facts.params_by_group == {
        "embedding": 80, "attention": 3 * 781 + 242, "dense_mlp": 384, "router": 3 * 32, "shared_experts": 3 * 144,
        "routed_experts": 3 * 4 * 144, "norm": 72, "lm_head": 80, "other": 0,
    }  # fmt: skip
    assert facts.total_params == 5457
    assert facts.active_params == 5457 - 3 * 2 * 144 == 4593
    assert (facts.active_params_no_embedding, facts.active_params_no_embedding_no_head) == (4513, 4433)
    assert facts.kv_bytes_per_token == 2 * (5 + 2) == 14
    # 4 heads of 3 * 5 in float32; 6 + 6 + 20 channels of 4 taps in bfloat16
    assert facts.state_bytes_per_sequence == 3 * (240 + 256) == 1488
    found = asked(model, 100)
    assert found["kept_bytes_per_sequence"] == 100 * 14 + 1488
    assert found["kv_bytes_per_step"] == 101 * 14 + 2 * 1488
    # matrices: attention 2585, dense MLP 384, routers 96, shared 432, experts 3 * 2 * 144, head 80; latents as they lie
    # 2 * 2 * (2 * 5 + 2) a token; states updated, asked and read, 6 FLOPs for each of 60 elements in 3 layers
    assert found["flops_per_token"] == 2 * (2585 + 384 + 96 + 432 + 864 + 80) + 48 * 100 + 3 * 6 * 60 == 14762
    assert "3 a state of 496 B each a sequence, read and written in every step; 1 all tokens" in facts.notes[1]
    assert part_of(ModelFacts, to_json(facts)) == facts


def test_sparse_attention_keeps_all_and_attends_to_what_its_index_picks(tmp_path: Path) -> None:
    model = described(tmp_path, SPARSE)
    facts = model.facts
    assert facts is not None
    # queries and output 8 * 16 each, keys and values 8 * 8 each; index: queries 8 * 18, key 8 * 6 and its norm 12,
    # weights of heads 8 * 3
    assert facts.params_by_group["attention"] == 3 * (256 + 128 + 144 + 48 + 12 + 24) == 1836
    assert facts.total_params == 1836 + 3 * 64 + 3 * 8 * 120 + 56 + 80 == 5044
    assert facts.active_params == facts.active_params_no_embedding == 5044 - 3 * 6 * 120 == 2884
    assert facts.active_params_no_embedding_no_head == 2804
    assert facts.kv_bytes_per_token == 3 * (2 * 2 * 4 + 6) * 2 == 132
    assert facts.state_bytes_per_sequence == 0
    matrices = 2 * (1836 + 192 + 3 * 2 * 120 + 80)
    long, short = asked(model, 100), asked(model, 10)
    # of 100 tokens 16 are attended to (2 * 4 * 8 FLOPs each); the index scores all with 3 heads of 6 and adds them up
    assert long["flops_per_token"] == matrices + 3 * (64 * 16 + 2 * 3 * 7 * 100) == 21328
    assert short["flops_per_token"] == matrices + 3 * (64 * 10 + 2 * 3 * 7 * 10) == 8836
    assert long["kept_bytes_per_sequence"] == 13200
    assert long["kv_bytes_per_step"] == 3 * (32 * 16 + 12 * 101) == 5172
    assert short["kv_bytes_per_step"] == 11 * 132
    assert "3 16 of all tokens, chosen by an index" in facts.notes[1]


SIZES: dict[str, Any] = {"hidden_size": 32, "vocab_size": 50}
EXPERTS: dict[str, Any] = {"num_experts": 8, "top_k": 2, "expert_width": 12}
LATENT: dict[str, Any] = {"kv_lora_rank": 16, "qk_rope_head_dim": 4, "v_head_dim": 8}
ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
SAME: dict[str, tuple[dict[str, Any], LayerDescription]] = {
    "qwen3_next": (
        {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 8,
         "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
         "linear_conv_kernel_dim": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
         "shared_expert_intermediate_size": 12},
        LayerDescription(
            **SIZES, **EXPERTS, num_layers=4, shared_width=12, shared_gate=True,
            attention=(LayersAlike(layers=3, linear="gated_delta", num_heads=4, num_kv_heads=2, head_dim=6,
                                   v_head_dim=10, conv_kernel=4),
                       LayersAlike(layers=1, num_heads=4, num_kv_heads=2, head_dim=8, output_gate=True,
                                   other_params=2 * 8))),  # norms of queries and keys
    ),
    "kimi_linear": (
        {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "linear_num_heads": 4,
         "linear_head_dim": 8, "linear_conv_kernel_dim": 4, "kv_lora_rank": 16, "q_lora_rank": None,
         "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "num_experts": 8, "num_experts_per_token": 2,
         "moe_intermediate_size": 12, "intermediate_size": 20, "num_shared_experts": 1,
         "layer_types": ["linear_attention"] * 3 + ["full_attention"],
         "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
        LayerDescription(
            **SIZES, **EXPERTS, num_layers=4, shared_width=12, dense_width=20, first_moe_layer=1,
            attention=(LayersAlike(layers=3, linear="kimi_delta", num_heads=4, head_dim=8, conv_kernel=4),
                       LayersAlike(layers=1, num_heads=4, head_dim=12, **LATENT))),
    ),
    "minimax": (
        {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 12,
         "layer_types": ["linear_attention", "full_attention"]},
        LayerDescription(
            **SIZES, **EXPERTS, num_layers=2,
            attention=(LayersAlike(layers=1, linear="lightning", num_heads=4, head_dim=8),
                       LayersAlike(layers=1, num_heads=4, num_kv_heads=2, head_dim=8))),
    ),
    "mamba2": (
        {"num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2, "expand": 2,
         "conv_kernel": 4},
        LayerDescription(**SIZES, num_layers=2, linear="mamba2", num_heads=8, v_head_dim=8, head_dim=16, num_kv_heads=2,
                         conv_kernel=4, norms_per_layer=1),
    ),
    "deepseek_v32": (
        {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 8, **LATENT,
         "q_lora_rank": 12, "index_n_heads": 2, "index_head_dim": 6, "index_topk": 8, "n_routed_experts": 8,
         "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 12, "intermediate_size": 20,
         "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
        LayerDescription(**SIZES, **EXPERTS, **LATENT, num_layers=2, num_heads=4, head_dim=12, q_lora_rank=12,
                         index_heads=2, index_head_dim=6, index_topk=8, shared_width=12, dense_width=20,
                         first_moe_layer=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_a_description_and_the_class_agree(kind: str) -> None:
    """Parameters, bytes of a token and of the states: the class's modules and the formulas."""
    values, shape = SAME[kind]
    config = config_object({"model_type": kind, **SIZES, **ENDS, **values}, name=kind)
    counted, described = facts_from_config(config, name=kind, source=""), described_facts(shape, name=kind, source="")
    assert counted.total_params == described.total_params
    assert counted.active_params == described.active_params
    if counted.attention:  # moeprof does not read an index off a class
        assert counted.kv_bytes_per_token == described.kv_bytes_per_token
        assert counted.state_bytes_per_sequence == described.state_bytes_per_sequence
        assert counted.attention_flops_per_pair == described.attention_flops_per_pair


@pytest.mark.parametrize(
    ("keys", "told"),
    [("num_heads: 2", "head_dim: missing"),
     ("", "num_heads: give it and head_dim for all layers, or attention"),
     ("num_heads: 2, head_dim: 4, attention: [{layers: 2, num_heads: 2, head_dim: 4}]", "num_heads: give it and"),
     ("attention: [{layers: 3, num_heads: 2, head_dim: 4}]", "attention: found 3 layers in all; num_layers, 2,"),
     ("attention: [{layers: 2, head_dim: 4}]", "head_dim: found without num_heads"),
     ("num_heads: 2, head_dim: 4, linear: mamba", "found 'mamba'"),
     ("num_heads: 2, head_dim: 4, linear: mamba2", "conv_kernel: found 0 beside linear mamba2; 1 or more"),
     ("num_heads: 2, head_dim: 4, linear: lightning, window: 8", "window: found beside linear"),
     ("num_heads: 2, head_dim: 4, conv_kernel: 4", "conv_kernel: found without linear"),
     ("num_heads: 2, head_dim: 4, index_topk: 8", "all three or none of them"),
     ("num_heads: 2, head_dim: 4, kv_lora_rank: 8, qk_rope_head_dim: 5", "at most head_dim, 4,"),
     ("num_heads: 2, head_dim: 4, expert_matrices: 0", "expert_matrices: found 0; 1 or more"),
     ("num_heads: 2, head_dim: 4, dense_width: 99999999999999", "dense_width: found 99999999999999; at most")],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(keys: str, told: str, tmp_path: Path) -> None:
    with pytest.raises((ModelError, WorkloadError)) as raised:
        described(tmp_path, f"layers: {{hidden_size: 8, num_layers: 2, vocab_size: 10, {keys}}}")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value) and "mine.yaml:1" in str(raised.value)


def test_layers_that_do_not_look_back_are_counted_without_attention(tmp_path: Path) -> None:
    model = described(tmp_path, "layers: {hidden_size: 8, num_layers: 3, vocab_size: 10, dense_width: 4, attention: ["
                                "{layers: 1, num_heads: 2, head_dim: 4}, {layers: 2, num_heads: 0}]}")  # fmt: skip
    assert model.facts is not None
    assert model.facts.params_by_group["attention"] == 4 * 64
    assert model.facts.kv_bytes_per_token == 2 * 2 * 4 * 2
    assert "2 without attention" in model.facts.notes[1]


def test_the_example_of_the_docs_is_kimi_linear(tmp_path: Path) -> None:
    """Published as 48B in all and 3B active (its card)."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    facts = described(tmp_path, page.partition("```yaml\n")[2].partition("```")[0]).facts
    kinds = ["linear_attention"] * 20 + ["full_attention"] * 7
    config = config_object({"model_type": "kimi_linear", "layer_types": kinds}, name="x")
    counted = facts_from_config(config, name="x", source="")
    assert facts is not None
    assert facts.total_params == counted.total_params
    assert facts.active_params == counted.active_params
    assert facts.total_params == pytest.approx(48e9, rel=0.025)
    assert facts.active_params_no_embedding == pytest.approx(3e9, rel=0.04)
