"""Quantised weights: parameters are the architecture's, bytes are what is stored, the rest is refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from moeprof.capture.models.parameters import model_facts
from moeprof.core.errors import UnsupportedModelError
from tests.capture.models.test_parameters import facts, qwen3_moe


def quantised_model(method: str) -> transformers.Qwen3MoeForCausalLM:
    model = transformers.Qwen3MoeForCausalLM._from_config(qwen3_moe(), dtype=torch.bfloat16)
    model.config.quantization_config = {"quant_method": method}
    return model


def attention_linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    found = []
    for layer in model.model.layers:  # type: ignore[union-attr]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            found.append((layer.self_attn, name, getattr(layer.self_attn, name)))
    return found


def test_gptq_counts_the_architecture_and_the_packed_bytes() -> None:
    model = quantised_model("gptq")
    for owner, name, linear in attention_linears(model):
        packed = nn.Module()
        packed.register_buffer("qweight", torch.zeros(linear.weight.numel() // 8, dtype=torch.int32))  # 4 bits each
        packed.register_buffer("scales", torch.zeros(3, dtype=torch.float16))
        setattr(owner, name, packed)
    counted, plain = model_facts(model, name="m", source="t"), facts(qwen3_moe())
    assert counted.params_by_group == plain.params_by_group
    assert counted.active_params == plain.active_params
    assert counted.bytes_by_group["attention"] == 384 // 2 + 8 * 3 * 2
    assert counted.bytes_by_group["routed_experts"] == plain.bytes_by_group["routed_experts"]
    assert any("gptq" in note for note in counted.notes)


def test_fp8_scales_are_bytes_and_not_parameters() -> None:
    model = quantised_model("fp8")
    for layer in model.model.layers:
        experts = layer.mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(experts, name)
            setattr(experts, name, nn.Parameter(weight.to(torch.float8_e4m3fn), requires_grad=False))
            setattr(experts, f"{name}_scale_inv", nn.Parameter(torch.ones(4, 1, 1)))
    counted = model_facts(model, name="m", source="t")
    assert counted.params_by_group["routed_experts"] == 768
    assert counted.bytes_by_group["routed_experts"] == 768 + 2 * 2 * 4 * 4  # layers * tensors * scales * float32
    assert counted.moe_layers[0].expert_bytes == 96 + 2 * 4


def test_bitsandbytes_state_beside_the_tensor_is_counted() -> None:
    model = quantised_model("bitsandbytes")
    for _owner, _name, linear in attention_linears(model):
        packed = nn.Parameter(torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        nested = SimpleNamespace(absmax=torch.zeros(1), code=torch.zeros(2), offset=None, state2=None)
        packed.quant_state = SimpleNamespace(absmax=torch.zeros(4, dtype=torch.uint8), code=None, state2=nested)  # type: ignore[attr-defined]
        linear.weight = packed
    counted = model_facts(model, name="m", source="t")
    assert counted.bytes_by_group["attention"] == 384 // 2 + 8 * (4 + 4 + 8)


def test_weights_hidden_out_of_sight_are_refused_and_never_counted_as_small() -> None:
    model = quantised_model("mxfp4")
    for layer in model.model.layers:
        del layer.mlp.experts.gate_up_proj
        packed = torch.zeros(4, 8, 2, dtype=torch.uint8)  # the other matrix, at 4 bits
        layer.mlp.experts.down_proj = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"'mxfp4'.* of routed_experts, less than 4.25 bits each"):
        model_facts(model, name="m", source="t")


def test_mxfp4_weights_that_kernels_keep_as_attributes_are_counted() -> None:
    model = quantised_model("mxfp4")
    for layer in model.model.layers:
        experts = layer.mlp.experts
        for name, packed, scales in (("gate_up_proj", 4 * 8 * 8 // 2, 8), ("down_proj", 4 * 8 * 4 // 2, 4)):
            delattr(experts, name)
            data = torch.zeros(packed, dtype=torch.uint8)
            setattr(experts, name, SimpleNamespace(storage=SimpleNamespace(data=data)))
            config = SimpleNamespace(weight_scale=torch.zeros(scales, dtype=torch.uint8))
            setattr(experts, f"{name}_precision_config", config)
    counted = model_facts(model, name="m", source="t")
    assert counted.params_by_group["routed_experts"] == 768
    assert counted.bytes_by_group["routed_experts"] == 768 // 2 + 768 // 32


def test_an_unknown_method_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'vptq'.*Load the model dequantised"):
        model_facts(quantised_model("vptq"), name="m", source="t")


def test_integer_weights_without_a_method_are_refused() -> None:
    model = transformers.Qwen3MoeForCausalLM._from_config(qwen3_moe(), dtype=torch.bfloat16)
    model.lm_head.weight = nn.Parameter(torch.zeros(10, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match=r"integer type at lm_head\.weight"):
        model_facts(model, name="m", source="t")
