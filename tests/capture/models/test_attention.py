"""What layers keep and compute: held against the caches that tiny models of every class really fill, and by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from moeprof.capture.coverage import moe_causal_lm_types, tiny_config, tiny_model
from moeprof.capture.models.attention import expanded, model_attention, windows_of
from moeprof.capture.models.meta import facts_from_config
from moeprof.core.errors import ModelError
from moeprof.core.model_facts import KV_UNKNOWN, LayerAttention

TOKENS = 20  # more than the tiny models' windows of 8
# Classes whose caches are said to be unknown.
UNKNOWN = {"axk2", "deepseek_v32", "deepseek_v4", "dots3_note_text", "glm_moe_dsa", "hy_v4", "minimax_m3_vl_text",
           "qwen4_exp_text", "zaya"}  # fmt: skip


def bytes_in_cache(model: Any) -> int:
    """Of keys, values and states after one text."""
    with torch.inference_mode():
        out = model(input_ids=torch.arange(3, 3 + TOKENS)[None], use_cache=True)
    cache = getattr(out, "past_key_values", None) or out.cache_params
    found = 0
    for layer in cache.layers:
        own = (getattr(layer, "keys", None), getattr(layer, "values", None))
        states = (*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values())
        found += sum(tensor.nbytes for tensor in (*own, *states) if isinstance(tensor, torch.Tensor))
    return found + sum(t.nbytes for t in getattr(cache, "linear_cache", []) if isinstance(t, torch.Tensor))


def bytes_described(layers: tuple[LayerAttention, ...]) -> int:
    """transformers' window layers keep a token less than they see: the query's own is added first."""
    return sum(
        x.keeps_bytes_per_token * (TOKENS if x.window is None else min(TOKENS, x.window - 1)) + x.layers * x.state_bytes
        for x in layers
    )


@pytest.mark.parametrize("model_type", moe_causal_lm_types())
def test_what_is_described_is_what_a_class_caches_to_the_byte(model_type: str) -> None:
    try:
        model = tiny_model(model_type)
    except ModelError as error:
        pytest.skip(f"no tiny model: {error}")
    described = model_attention(model)
    if model_type in UNKNOWN:
        assert described.layers == () and described.notes[0].startswith(KV_UNKNOWN)
        return
    assert bytes_described(described.layers) == bytes_in_cache(model)


@pytest.mark.parametrize(
    "model_type", ["mistral", "gemma2", "gemma3_text", "qwen3_5_text", "lfm2", "gpt2", "falcon_mamba"]
)
def test_dense_classes_too(model_type: str) -> None:
    config = tiny_config(model_type)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    assert bytes_described(model_attention(model).layers) == bytes_in_cache(model)


def kinds(layers: tuple[LayerAttention, ...]) -> dict[tuple[str, int | None], int]:
    return {(layer.kind, layer.window): layer.layers for layer in layers}


def test_every_second_layer_of_a_mixture_sees_a_window() -> None:
    config = transformers.GptOssConfig(
        hidden_size=16, intermediate_size=8, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, vocab_size=10, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2, dtype="bfloat16",
    )  # fmt: skip
    facts = facts_from_config(config, name="m", source="t")
    assert kinds(facts.attention) == {("window", 8): 2, ("full", None): 2}
    assert facts.windows == (8,)
    own = 2 * 2 * 4 * 2  # keys and values, heads, width, bytes: 32 a layer
    assert facts.kv_bytes_per_token == 4 * own
    assert facts.kept_bytes(5) == 5 * 4 * own
    assert facts.kept_bytes(100) == 2 * own * 100 + 2 * own * 8
    assert facts.decode_bytes(100) == 2 * own * 101 + 2 * own * 8
    assert facts.decode_attention_flops(100) == 2 * 4 * 4 * 4 * (100 + 8)  # layers * 4 * heads * width * pairs
    assert "2 the last 8 tokens; 2 all tokens" in " ".join(facts.notes)


def test_a_window_without_a_list_of_layers_holds_for_all_of_them() -> None:
    config = transformers.MixtralConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=1000, num_local_experts=8, num_experts_per_tok=2, sliding_window=32,
    )  # fmt: skip
    facts = facts_from_config(config, name="m", source="t")
    assert 64 * (facts.decode_bytes(32768) or 0) == 1_048_576


def test_latents_are_read_as_they_lie_and_multiplied_as_they_lie() -> None:
    """4 heads, latent 16, rotary 8, keys 16 and values 8 wide, 3 layers."""
    config = tiny_config("deepseek_v3")
    facts = facts_from_config(config, name="m", source="t")
    (layers,) = facts.attention
    assert (layers.kind, layers.layers, layers.kv_bytes_per_token) == ("latent", 3, (16 + 8) * 2)
    assert layers.flops_per_pair == 2 * 4 * (16 + 8)
    assert layers.decode_flops_per_pair == 2 * 4 * (2 * 16 + 8)
    assert facts.decode_attention_flops(10) == 10 * 3 * 320
    (whole,) = expanded(facts.attention, 2)
    assert (whole.kind, whole.kv_bytes_per_token, whole.decode_flops_per_pair) == ("full", 192, 192)


def test_a_constant_state_is_read_and_written_whatever_the_length() -> None:
    """Lightning attention: 4 heads of 8 by 8 in the model's two bytes."""
    facts = facts_from_config(tiny_config("minimax"), name="m", source="t")
    assert kinds(facts.attention) == {("full", None): 2, ("state", None): 2}
    assert facts.state_bytes_per_sequence == 2 * 4 * 8 * 8 * 2
    own = 2 * 2 * 2 * 8 * 2
    assert facts.kv_bytes_per_token == own
    assert facts.kept_bytes(10) == 10 * own + 1024
    assert facts.decode_bytes(10) == 11 * own + 2 * 1024


@pytest.mark.parametrize(
    ("model_type", "changes", "per_layer", "layers"),
    [
        # gated delta net: 4 value heads of 16 by 8; the update, its correction and the read, 2 FLOPs each
        ("qwen3_next", {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
                        "linear_value_head_dim": 8, "num_hidden_layers": 4,
                        "layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 6 * 4 * 16 * 8, 3),
        # lightning attention: 4 heads of 8 by 8
        ("minimax", {}, 4 * 4 * 8 * 8, 2),
        # Mamba: 2 * 32 channels with 5 states each
        ("jamba", {"hidden_size": 32, "mamba_expand": 2, "mamba_d_state": 5, "num_hidden_layers": 4,
                   "attn_layer_period": 4, "attn_layer_offset": 3}, 4 * 64 * 5, 3),
        # Mamba-2: 8 heads of 8 channels with 16 states each
        ("granitemoehybrid", {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "hidden_size": 32,
                              "mamba_expand": 2, "num_hidden_layers": 2,
                              "layer_types": ["linear_attention", "full_attention"]},
         4 * 8 * 8 * 16, 1),
        # Kimi delta attention: 4 heads of 8 by 8
        ("kimi_linear", {}, None, None),
    ],
)  # fmt: skip
def test_what_is_computed_on_a_state_is_its_elements_times_four_or_six(
    model_type: str, changes: dict[str, Any], per_layer: int | None, layers: int | None
) -> None:
    config = tiny_config(model_type)
    config.update(changes)
    facts = facts_from_config(config, name="m", source="t")
    states = [layer for layer in facts.attention if layer.kind == "state"]
    if per_layer is None:
        own = [m for m in tiny_model(model_type).modules() if "DeltaAttention" in type(m).__name__]
        per_layer, layers = 6 * int(own[0].num_heads) * int(own[0].head_dim) ** 2, len(own)  # type: ignore[arg-type]
    assert [(x.layers, x.state_flops) for x in states] == [(layers, per_layer)]
    assert facts.state_flops_per_token == layers * per_layer  # type: ignore[operator]
    pairs = sum(x.layers * x.decode_flops_per_pair * 7 for x in facts.attention)
    assert facts.decode_attention_flops(7) == pairs + layers * per_layer  # type: ignore[operator]


def test_a_convolution_alone_has_a_state_and_computes_nothing_on_it_that_its_weights_do_not_count() -> None:
    facts = facts_from_config(tiny_config("lfm2_moe"), name="m", source="t")
    states = [layer for layer in facts.attention if layer.kind == "state"]
    assert states and all(layer.state_bytes > 0 and layer.state_flops == 0 for layer in states)


def test_layers_that_share_keys_and_values_keep_none_and_read_those_of_the_last_layer_of_their_kind() -> None:
    text = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "global_head_dim": 16, "vocab_size": 50, "vocab_size_per_layer_input": 50,
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }  # fmt: skip
    facts = facts_from_config(transformers.Gemma4TextConfig(**text), name="m", source="t")
    assert kinds(facts.attention) == {("window", 8): 1, ("full", None): 1, ("shared", 8): 1, ("shared", None): 1}
    narrow, wide = 2 * 2 * 8 * 2, 2 * 2 * 16 * 2
    assert facts.kv_bytes_per_token == narrow + wide
    assert facts.kept_bytes(100) == 8 * narrow + 100 * wide
    assert facts.decode_bytes(100) == 2 * (8 * narrow + 101 * wide)


def test_windows_of_a_loaded_model_are_those_of_its_facts() -> None:
    assert windows_of(tiny_model("gpt_oss")) == (8,)
    assert windows_of(tiny_model("qwen3_moe")) == ()
