"""Bytes of a checkpoint's weights: every tensor of its files, or the rule of its format, by hand on small shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from moeprof.capture.models.count import count_model
from moeprof.capture.models.counting.stored_size import by_rule
from moeprof.capture.models.find import named_configs
from moeprof.capture.models.meta import config_object
from moeprof.core.known_models import find_system

# 2 layers, 4 experts of 32 x 16 (gate and up together: 32 x 32), with biases; attention of 4 heads of 8, 2 for keys.
GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss", "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 10, "num_local_experts": 4,
    "num_experts_per_tok": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]}
WEIGHTS, BIASES = 2 * 4 * (32 * 32 + 16 * 32), 2 * 4 * (32 + 32)


def folder(path: Path, **config: Any) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_biases_of_mxfp4_experts_stay_bfloat16_where_only_a_config_is(tmp_path: Path) -> None:
    plain = count_model(str(folder(tmp_path / "plain", **GPT_OSS)))
    assert plain.facts is not None
    assert plain.facts.params_by_group["routed_experts"] == WEIGHTS + BIASES
    counted = count_model(str(folder(tmp_path / "mx", **GPT_OSS, quantization_config=MXFP4)))
    others = plain.facts.total_params - WEIGHTS
    assert counted.stored_bytes == WEIGHTS // 2 + WEIGHTS // 32 + 2 * others
    assert "rule of mxfp4" in counted.stored_reason


@pytest.mark.parametrize(("name", "stored"), [("gpt-oss-20b", 13_761_264_768), ("gpt-oss-120b", 65_248_815_744)])
def test_the_published_checkpoints_of_gpt_oss_have_the_size_that_the_list_says(name: str, stored: int) -> None:
    built = config_object(named_configs()[name], name=name)
    found = by_rule(built, MXFP4, name=name, dtype="bfloat16")
    row = find_system(name)
    assert found is not None and row is not None
    assert found[0] == row.stored_bytes == stored == count_model(name).stored_bytes


def test_fp8_has_a_float_per_block_and_leaves_router_norms_and_tables() -> None:
    """A matrix of 64 x 32 in blocks of 48 x 48 has 2 x 1 blocks."""
    config = transformers.Qwen3Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, vocab_size=10, tie_word_embeddings=False,
    )  # fmt: skip
    found = by_rule(config, {"quant_method": "fp8", "weight_block_size": [48, 48]}, name="m", dtype="bfloat16")
    assert found is not None
    attention, mlp = 4 * (32 * 32 + 4), 3 * (64 * 32 + 2 * 4)
    norms, tables = 3 * 32 + 2 * 8, 2 * 10 * 32
    assert found[0] == attention + mlp + 2 * (norms + tables)


def test_packed_weights_have_a_scale_and_a_zero_point_per_group() -> None:
    """4 bits, groups of 16: 32 x 32 is 512 bytes, and 2 x 32 groups of 2 bytes and 4 bits; the index of gptq 4 x 32."""
    config = transformers.Qwen3Config(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        head_dim=8, vocab_size=10, tie_word_embeddings=False,
    )  # fmt: skip
    one, kept = 512 + 64 * 2 + 64 // 2, 2 * (3 * 32 + 2 * 8 + 2 * 10 * 32)
    for method, index in (("awq", 0), ("gptq", 128)):
        asked = {"quant_method": method, "bits": 4, "group_size": 16}
        found = by_rule(config, asked, name="m", dtype="bfloat16")
        assert found is not None and found[0] == 7 * (one + index) + kept
    assert by_rule(config, {"quant_method": "gptq"}, name="m", dtype="bfloat16") is None
    assert by_rule(config, {"quant_method": "vptq", "bits": 4}, name="m", dtype="bfloat16") is None


def test_a_folder_is_counted_tensor_by_tensor_without_the_headers_of_its_files(tmp_path: Path) -> None:
    home = folder(tmp_path / "q", **GPT_OSS, quantization_config=MXFP4)
    save_file({"a_blocks": torch.zeros(100, dtype=torch.uint8), "a_bias": torch.zeros(8, dtype=torch.bfloat16)},
              home / "model-1.safetensors")  # fmt: skip
    save_file({"b": torch.zeros(10, dtype=torch.float32)}, home / "model-2.safetensors")
    counted = count_model(str(home))
    assert counted.stored_bytes == 100 + 16 + 40
    assert counted.stored_reason == "3 tensors in 2 files of weights (U8 64.1 %, F32 25.6 %, BF16 10.3 %)"


@pytest.mark.parametrize(
    "quantization",
    [
        {"quant_method": "gptq", "bits": "4", "group_size": 128},
        {"quant_method": "awq", "bits": 4, "group_size": "128"},
        {"quant_method": "gptq", "bits": 4, "group_size": -2},
        {"quant_method": "fp8", "weight_block_size": ["a", 128]},
        {"quant_method": "fp8", "weight_block_size": [128]},
        {"quant_method": "fp8", "weight_block_size": [0, 128]},
    ],
)
def test_a_rule_whose_numbers_are_none_gives_no_size(quantization: dict[str, Any]) -> None:
    config = config_object({**GPT_OSS, "model_type": "gpt_oss"}, name="m")
    assert by_rule(config, quantization, name="m", dtype="bfloat16") is None
