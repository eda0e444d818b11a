"""GGUF files counted from their headers: every number by hand; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.models.count import count_model
from moeprof.capture.models.counting.gguf import TYPES
from moeprof.capture.models.find import find_model
from moeprof.core.errors import ModelError
from moeprof.core.model_facts import LayerAttention, ModelFacts
from moeprof.core.workload.models import ModelSpec
from tests.helpers.model_files import KINDS, Tensors, gguf_bytes

BASE: dict[str, Any] = {"general.architecture": "qwen3moe", "qwen3moe.block_count": 2, "qwen3moe.embedding_length": 256,
                        "qwen3moe.expert_count": 4, "qwen3moe.expert_used_count": 2,
                        "tokenizer.ggml.tokens": [f"token {i}" for i in range(5000)]}  # fmt: skip


def attention(block: int, kind: str = "F16") -> Tensors:
    """4 heads of queries and 2 of keys and values, 64 wide."""
    named: Tensors = {"attn_q": ((256, 256), kind), "attn_k": ((256, 128), kind), "attn_v": ((256, 128), kind),
                      "attn_output": ((256, 256), kind)}  # fmt: skip
    return {f"blk.{block}.{name}.weight": told for name, told in named.items()}


def moe_tensors() -> Tensors:
    tensors: Tensors = {"token_embd.weight": ((256, 500), "Q8_0"), "output_norm.weight": ((256,), "F32")}
    for block in range(2):
        tensors |= attention(block, "Q4_K")
        tensors[f"blk.{block}.attn_norm.weight"] = ((256,), "F32")
        tensors[f"blk.{block}.ffn_gate_inp.weight"] = ((256, 4), "F32")
        for name, shape, kind in (("gate", (256, 512, 4), "Q4_K"), ("up", (256, 512, 4), "Q4_K"),
                                  ("down", (512, 256, 4), "Q6_K")):  # fmt: skip
            tensors[f"blk.{block}.ffn_{name}_exps.weight"] = (shape, kind)
    return tensors


def counted(folder: Path, values: dict[str, Any], tensors: Tensors, order: str = "<") -> ModelFacts:
    file = folder / "tiny.gguf"
    file.write_bytes(gguf_bytes(values, tensors, order))
    facts = count_model(str(file)).facts
    assert facts is not None
    return facts


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_moe_is_counted_tensor_by_tensor(order: str, tmp_path: Path) -> None:
    facts = counted(tmp_path, BASE, moe_tensors(), order)
    # attention 256 * (256 + 128 + 128 + 256) in Q4_K, 144 bytes of 256; experts 3 matrices of 256 * 512
    own, expert = 196_608, 3 * 256 * 512
    assert facts.params_by_group == {
        "embedding": 128_000, "attention": 2 * own, "dense_mlp": 0, "router": 2 * 1024, "shared_experts": 0,
        "routed_experts": 2 * 4 * expert, "norm": 3 * 256, "lm_head": 0, "other": 0,
    }  # fmt: skip
    assert facts.total_params == 128_000 + 2 * own + 2048 + 8 * expert + 768
    assert facts.active_params == facts.total_params - 2 * 2 * expert
    assert facts.tied_embeddings and facts.active_params_no_embedding == facts.active_params
    assert facts.bytes_by_group["attention"] == 2 * own * 144 // 256
    assert facts.bytes_by_group["embedding"] == 128_000 * 34 // 32
    layer = facts.moe_layers[1]
    assert (layer.name, layer.num_experts, layer.top_k, layer.expert_params) == ("blk.1", 4, 2, expert)
    assert layer.expert_bytes == 2 * 256 * 512 * 144 // 256 + 256 * 512 * 210 // 256
    assert (facts.num_layers, facts.hidden_size, facts.vocab_size, facts.dtype) == (2, 256, 500, "Q4_K")
    assert facts.attention == (
        LayerAttention(kind="full", layers=2, kv_bytes_per_token=512, flops_per_pair=1024, decode_flops_per_pair=1024),
    )
    model = count_model(str(tmp_path / "tiny.gguf"))
    assert model.stored_bytes == sum(facts.bytes_by_group.values())
    assert model.stored_reason.startswith("20 tensors of the file (Q4_K")
    assert count_model(str(tmp_path)).facts == facts  # the folder with that file alone


def test_the_sizes_of_blocks_are_those_that_tests_know() -> None:
    """Written down twice, from the C structs and from gguf-py; Q4_K has scales and minima of 8 sub-blocks."""
    for name, (number, block, size) in KINDS.items():
        assert TYPES[number] == (name, block, size)
    assert TYPES[12][2] == 2 + 2 + 12 + 256 // 2 and TYPES[14][2] == 256 // 2 + 256 // 4 + 256 // 16 + 2
    assert len({name for name, _, _ in TYPES.values()}) == len(TYPES)


def test_a_model_in_parts_is_one_model(tmp_path: Path) -> None:
    tensors = moe_tensors()
    names = list(tensors)
    for part, own in enumerate((names[:9], names[9:]), 1):
        values = BASE if part == 1 else {"general.architecture": "qwen3moe"}
        raw = gguf_bytes(values | {"split.tensors.count": len(names)}, {name: tensors[name] for name in own})
        (tmp_path / f"big-{part:05}-of-00002.gguf").write_bytes(raw)
    whole = count_model(str(tmp_path))
    assert whole.name == "big" and whole.stored_reason.startswith("20 tensors of 2 files")
    assert whole.facts is not None and len(whole.facts.moe_layers) == 2
    (tmp_path / "big-00002-of-00002.gguf").unlink()
    with pytest.raises(ModelError, match=r"1 of its 2 parts are missing \(big-00002-of-00002.gguf\)"):
        count_model(str(tmp_path))


def test_windows_latents_and_states_are_kept_by_block(tmp_path: Path) -> None:
    two = {"general.architecture": "gpt-oss", "gpt-oss.attention.sliding_window": 128}
    tensors = {**attention(0), **attention(1)}
    facts = counted(tmp_path, two, tensors)
    assert [(x.kind, x.layers, x.window) for x in facts.attention] == [("window", 1, 128), ("full", 1, None)]
    pattern = two | {"general.architecture": "x", "x.attention.sliding_window": 9}
    open_question = counted(tmp_path, pattern, tensors)
    assert open_question.attention[0].window is None
    assert any("a window of 9 tokens and not of which layers" in note for note in open_question.notes)
    told = counted(tmp_path, pattern | {"x.attention.sliding_window_pattern": [False, True]}, tensors)
    assert [x.window for x in told.attention] == [None, 9]

    key = "deepseek2.attention"
    latent = {"general.architecture": "deepseek2", f"{key}.head_count": 4, f"{key}.kv_lora_rank": 32,
              f"{key}.key_length_mla": 24, f"{key}.value_length_mla": 16}  # fmt: skip
    mla: Tensors = {
        "blk.0.attn_kv_a_mqa.weight": ((256, 40), "F16"),
        "blk.0.attn_k_b.weight": ((16, 32, 4), "F16"),
        "blk.0.attn_v_b.weight": ((32, 16, 4), "F16"),
        "blk.0.attn_output.weight": ((64, 256), "F16"),
    }
    absorbed = counted(tmp_path, latent, mla).attention[0]
    assert (absorbed.kind, absorbed.kv_bytes_per_token) == ("latent", 2 * 40)
    assert (absorbed.flops_per_pair, absorbed.decode_flops_per_pair) == (2 * 4 * 40, 2 * 4 * (2 * 32 + 8))

    mamba = {"general.architecture": "jamba", "jamba.ssm.conv_kernel": 4, "jamba.ssm.inner_size": 512,
             "jamba.ssm.state_size": 16}  # fmt: skip
    hybrid = counted(tmp_path, mamba, {**attention(0), "blk.1.ssm_in.weight": ((256, 1024), "F16")})
    assert hybrid.state_bytes_per_sequence == 4 * (3 * 512 + 16 * 512)
    assert hybrid.kv_bytes_per_token == 512
    unknown = counted(tmp_path, {"general.architecture": "jamba"}, {"blk.0.ssm_in.weight": ((256, 1024), "F16")})
    assert unknown.kv_bytes_per_token is None and any("blk.0 has attention of a form" in n for n in unknown.notes)


def test_layers_that_predict_further_tokens_are_stored_and_not_counted(tmp_path: Path) -> None:
    values = {"general.architecture": "glm4moe", "glm4moe.block_count": 2, "glm4moe.nextn_predict_layers": 1}
    extra: Tensors = {**attention(1), "blk.1.nextn.eh_proj.weight": ((512, 256), "F16")}
    facts = counted(tmp_path, values, {**attention(0), **extra})
    assert facts.total_params == facts.params_by_group["attention"] == 196_608 and facts.num_layers == 1
    assert any(note.startswith(f"{196_608 + 131_072} parameters of layers that predict") for note in facts.notes)
    assert count_model(str(tmp_path / "tiny.gguf")).stored_bytes == 2 * (2 * 196_608 + 131_072)


@pytest.mark.parametrize(
    ("values", "tensors", "told"),
    [({}, attention(0), "names no general.architecture"),
     ({"general.architecture": "clip"}, attention(0), "the vision or sound part of a model"),
     ({"general.architecture": "llama", "general.type": "adapter"}, attention(0), "of type 'adapter', not a model"),
     ({"general.architecture": "llama"}, {}, "no language model (only a vocabulary?)"),
     ({"general.architecture": "qwen3moe", "qwen3moe.expert_count": 4}, moe_tensors(),
      "blk.0 has experts and no qwen3moe.expert_used_count"),
     (BASE | {"qwen3moe.expert_count": 8}, moe_tensors(), "experts of blk.0 have shape [256, 512, 4], not that of 8"),
     ({"general.architecture": "llama", "general.alignment": 3}, attention(0), "general.alignment: found 3; a power")],
)  # fmt: skip
def test_what_is_no_whole_language_model_is_refused(
    values: dict[str, Any], tensors: Tensors, told: str, tmp_path: Path
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes(values, tensors))
    with pytest.raises(ModelError) as raised:
        count_model(str(tmp_path / "tiny.gguf"))
    assert told in str(raised.value)


def test_a_damaged_file_says_where(tmp_path: Path) -> None:
    file, whole = tmp_path / "tiny.gguf", gguf_bytes(BASE, moe_tensors())

    def refused(raw: bytes) -> str:
        file.write_bytes(raw)
        with pytest.raises(ModelError) as raised:
            count_model(str(file))
        return str(raised.value)

    assert f"it has {len(whole) - 999} bytes and its header describes" in refused(whole[:-999])
    assert "it speaks of 5000 items of an array and 3727 bytes follow: damaged or cut short" in refused(whole[:4000])
    assert "it does not begin with GGUF" in refused(b"GGML" + whole[4:])
    assert "GGUF of version 1; versions 2 and 3 are read" in refused(b"GGUF\x01\0\0\0" + whole[8:])
    assert "speaks of 18446744073709551615 key-value pairs" in refused(whole[:16] + b"\xff" * 8 + whole[24:])
    assert "speaks of 1099511627776 tensors" in refused(whole[:8] + (2**40).to_bytes(8, "little") + whole[16:])
    assert "it ends within its header" in refused(whole[:7])


def test_it_is_not_run_and_the_line_says_what_runs_it(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes(BASE, moe_tensors()))
    for path in (tmp_path, tmp_path / "tiny.gguf"):
        with pytest.raises(ModelError, match=r"is GGUF, which llama.cpp .* run; .*`moeprof params .*` counts it"):
            find_model(ModelSpec(name="m", path=str(path)))
