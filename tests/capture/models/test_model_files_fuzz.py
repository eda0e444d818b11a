"""Whatever the bytes of a model's files are: a count, or a ModelError in one line. Nothing else."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moeprof.analysis.params import Question, figures
from moeprof.capture.models.count import count_model
from moeprof.capture.models.counting.stored_size import stored_tensors
from moeprof.capture.models.files import read_index
from moeprof.core.errors import ModelError
from tests.helpers.model_files import Tensors, gguf_bytes, safetensors_bytes, written

few = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TENSORS: Tensors = {
    "token_embd.weight": ((32, 7), "Q8_0"), "blk.0.attn_q.weight": ((32, 32), "F16"),
    "blk.0.attn_k.weight": ((32, 16), "F16"), "blk.0.attn_v.weight": ((32, 16), "BF16"),
    "blk.0.attn_output.weight": ((32, 32), "Q4_0"), "blk.0.ffn_gate_inp.weight": ((32, 4), "F32"),
    "blk.0.ffn_up_exps.weight": ((32, 64, 4), "MXFP4"), "blk.1.attn_kv_a_mqa.weight": ((32, 24), "F16"),
    "blk.1.attn_output.weight": ((32, 32), "F16"), "blk.2.ssm_in.weight": ((32, 8), "F16"),
}  # fmt: skip
VALUES: dict[str, Any] = {
    "general.architecture": "x", "x.expert_count": 4, "x.expert_used_count": 2, "x.attention.head_count": 4,
    "x.attention.kv_lora_rank": 16, "x.attention.key_length": 8, "x.attention.value_length": 8, "x.ssm.conv_kernel": 4,
    "x.ssm.inner_size": 8, "x.ssm.state_size": 8, "x.attention.sliding_window": 5, "x.rope.scale": 1.5,
    "x.attention.sliding_window_pattern": [True, False], "tokens": ["a", "b", "c"], "x.block_count": 3,
}  # fmt: skip
WHOLE = gguf_bytes(VALUES, TENSORS)
HEADER = len(WHOLE) - 4000
jsonish = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def counted_or_one_line(ask: Callable[[], Any]) -> None:
    """What is asked gives a count whose figures can be worked out, or refuses in one line."""
    try:
        model = ask()
    except ModelError as error:
        assert str(error) and "\n" not in str(error)
        return
    if model is not None:
        assert model.facts is not None
        assert sum(model.facts.params_by_group.values()) == model.facts.total_params
        list(figures(model, Question()))


def folder_of(files: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as home:
        folder = written(Path(home) / "model", files)
        counted_or_one_line(lambda: count_model(str(folder)))


@few
@given(st.lists(st.tuples(st.integers(0, HEADER), st.integers(0, 255)), max_size=4), st.integers(0, len(WHOLE)))
@example([], 0)
@example([], 3)
@example([(8, 255), (15, 255)], 0)
@example([(16, 255), (23, 255)], 0)
def test_a_gguf_file_with_bytes_changed_and_its_end_cut_off(changes: list[tuple[int, int]], cut: int) -> None:
    raw = bytearray(WHOLE)
    for at, byte in changes:
        raw[at] = byte
    folder_of({"m.gguf": bytes(raw[: len(raw) - cut] if cut % 3 == 0 else raw)})


@few
@given(st.binary(max_size=200))
def test_a_gguf_file_of_anything(tail: bytes) -> None:
    folder_of({"m.gguf": b"GGUF\x03\0\0\0" + tail})


@few
@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 2**32 - 1) | st.text(max_size=5) |
                       st.lists(st.integers(0, 9), max_size=4), max_size=6))  # fmt: skip
def test_a_gguf_file_that_says_anything(values: dict[str, Any]) -> None:
    folder_of({"m.gguf": gguf_bytes(VALUES | values, TENSORS)})


@few
@given(st.dictionaries(st.sampled_from(["dim", "n_layers", "n_heads", "hidden_dim", "vocab_size", "head_dim", "moe",
                                        "n_kv_heads", "kv_lora_rank", "q_lora_rank", "qk_rope_head_dim",
                                        "sliding_window", "vision_encoder", "tied_embeddings"]),
                       jsonish | st.fixed_dictionaries({"num_experts": jsonish, "num_experts_per_tok": jsonish}),
                       max_size=6))  # fmt: skip
@example({"n_heads": 0})
@example({"n_layers": 2**40})
@example({"dim": 2**200})
@example({"moe": {"num_experts": 4, "num_experts_per_tok": 2, "route_every_n": -1}})
def test_a_params_json_that_says_anything(values: dict[str, Any]) -> None:
    good = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "vocab_size": 10}
    folder_of({"params.json": good | values})


ADAPTER = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": "../base.json"}
BASE = {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16, "vocab_size": 10}


@few
@given(st.dictionaries(st.sampled_from([*ADAPTER, "rank_pattern", "layers_to_transform", "use_dora"]),
                       jsonish, max_size=4),
       st.none() | st.binary(max_size=60) |
       st.binary(max_size=60).map(lambda b: safetensors_bytes({"a": (2,)}) + b))  # fmt: skip
@example({"base_model_name_or_path": "a\0b"}, None)
@example({"base_model_name_or_path": "."}, None)
@example({"base_model_name_or_path": "x" * 5000}, None)
@example({}, safetensors_bytes({"base_model.model.layers.1.experts.0.lora_A": (3,)}))
def test_an_adapter_that_says_anything(values: dict[str, Any], weights: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as home:
        written(Path(home) / "base", {"params.json": BASE})
        files: dict[str, Any] = {"adapter_config.json": ADAPTER | {"base_model_name_or_path": "base"} | values}
        if weights is not None:
            files["adapter_model.safetensors"] = weights
        folder = written(Path(home) / "adapter", files)
        named = values.get("base_model_name_or_path", "base")
        if isinstance(named, str) and "/" in named:  # the hub is not asked here
            return
        counted_or_one_line(lambda: count_model(str(folder)))


@few
@given(st.binary(max_size=80), st.dictionaries(st.text(max_size=4), jsonish, max_size=3))
def test_headers_of_safetensors_and_indexes_of_anything(raw: bytes, values: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as home:
        text = json.dumps(values).encode()
        for content in (raw, len(text).to_bytes(8, "little") + text + raw):
            written(Path(home), {"x.safetensors": content, "index.json": text})
            stored_tensors(Path(home) / "x.safetensors")
            read_index("m", Path(home) / "index.json")
        written(Path(home), {"index.json": {"metadata": values, "weight_map": values}})
        read_index("m", Path(home) / "index.json")


@pytest.mark.parametrize("key", ["text_config", "llm_config", "thinker_config"])
def test_a_config_nested_in_itself_many_times(key: str) -> None:
    config: dict[str, Any] = {"model_type": "new"}
    for _ in range(50):
        config = {"model_type": "new", key: config}
    folder_of({"config.json": config})
