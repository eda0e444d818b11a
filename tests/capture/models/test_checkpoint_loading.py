"""A checkpoint of several shards goes to the device without a wide copy, and its load peak is what was predicted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moeprof.capture.coverage import tiny_config
from moeprof.capture.memory.shape import load_extra_bytes
from moeprof.capture.models.find import find_model
from moeprof.capture.models.open import OpenModel, open_model
from moeprof.capture.models.random_weights import random_model
from moeprof.capture.models.shapes import read_widths
from moeprof.core.errors import ModelError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.byte_ledger import ByteLedger, weight_bytes

torch.set_num_threads(1)
CPU = torch.device("cpu")
TYPES = ["mixtral", "qwen3_moe", "olmoe", "deepseek_v2", "gpt_oss"]


def sharded(folder: Path, model_type: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A tiny checkpoint whose experts are the largest part, in at least three shards."""
    config = tiny_config(model_type)
    for key in ("hidden_size", "intermediate_size", "moe_intermediate_size", "head_dim"):
        if getattr(config, key, None) is not None and not (key == "head_dim" and model_type == "deepseek_v2"):
            setattr(config, key, 64 if key == "head_dim" else 128)
    model = random_model(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype), CPU, seed=3, name="tiny")
    model.save_pretrained(folder, max_shard_size=weight_bytes(model) // 4)
    return model


def opened(folder: Path, dtype: str = "bfloat16", match: str | None = None) -> OpenModel:
    base = ModelSpec(name="moe", path=str(folder))
    twin = ModelSpec(name="twin", twin_of="moe", match=match) if match else None
    return open_model(twin or base, base if twin else None, TransformersSettings(dtype=dtype), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("model_type", TYPES)
def test_shards_are_put_together_to_the_same_model(model_type: str, tmp_path: Path) -> None:
    saved = sharded(tmp_path, model_type)
    assert len(list(tmp_path.glob("*.safetensors"))) >= 3 and (tmp_path / "model.safetensors.index.json").exists()
    loaded = opened(tmp_path).model
    theirs = dict(saved.named_parameters())
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, theirs[name]), name
    source = find_model(ModelSpec(name="moe", path=str(tmp_path)))
    assert source.weights_bytes == pytest.approx(weight_bytes(saved), rel=0.1)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_load_peak_is_within_the_prediction_and_nothing_is_wide(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = sharded(tmp_path, model_type)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # on this thread, where the ledger sees it
    with ByteLedger() as ledger:
        opened(tmp_path)
    widths = read_widths(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert widths is not None
    assert ledger.peak_bytes <= weight_bytes(saved) + load_extra_bytes(widths, 2)
    assert ledger.widest < 0.01 * weight_bytes(saved)


def test_a_checkpoint_is_turned_into_another_dtype_tensor_by_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = sharded(tmp_path, "mixtral", torch.float32)
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    with ByteLedger() as ledger:
        loaded = opened(tmp_path, "bfloat16").model
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    # a whole copy in float32 would be twice the model that is loaded
    assert ledger.peak_bytes < 1.6 * weight_bytes(loaded)
    assert weight_bytes(saved) == pytest.approx(2 * weight_bytes(loaded), rel=0.01)


def test_a_twin_of_a_sharded_checkpoint_never_holds_the_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moe = sharded(tmp_path, "mixtral")
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    with ByteLedger() as ledger:
        twin = opened(tmp_path, match="active").model
    assert weight_bytes(twin) < 0.5 * weight_bytes(moe)
    assert ledger.peak_bytes < 0.6 * weight_bytes(moe)
    assert torch.equal(twin.model.embed_tokens.weight, moe.model.embed_tokens.weight)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    sharded(tmp_path, "mixtral")
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ModelError, match=r"model moe: .*" + lost.name):
        opened(tmp_path)
