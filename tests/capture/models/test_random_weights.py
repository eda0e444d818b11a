"""Random weights at real size: one allocation per tensor, nothing wide, nothing left out, sane activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moeprof.capture.coverage import tiny_config
from moeprof.capture.models import random_weights
from moeprof.capture.models.open import OpenModel, open_model
from moeprof.capture.models.random_weights import module_seed, random_model, residual_scale
from moeprof.capture.models.twins import twin_mlps
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.byte_ledger import ByteLedger, weight_bytes

torch.set_num_threads(1)
TYPES = ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2"]
CPU = torch.device("cpu")
MIB = 2**20


def opened(folder: Path, match: str | None = None, dtype: str = "float32") -> OpenModel:
    base = ModelSpec(name="moe", path=str(folder), weights="random")
    twin = ModelSpec(name="twin", twin_of="moe", match=match) if match else None
    return open_model(twin or base, base if twin else None, TransformersSettings(dtype=dtype), CPU)  # type: ignore[arg-type]


def saved(folder: Path, model_type: str, **changes: Any) -> Path:
    config = tiny_config(model_type)
    for key, value in {"max_position_embeddings": 512, **changes}.items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    return folder


def drawn(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    return random_model(
        lambda: AutoModelForCausalLM.from_config(config, dtype=dtype), CPU, seed=seed, name="tiny"
    ).eval()


def logits(model: Any, tokens: int = 300) -> torch.Tensor:
    ids = torch.randint(3, 120, (1, tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found: torch.Tensor = model(ids).logits[0].float()
    return found


@pytest.mark.parametrize("match", [None, "active", "total"])
@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_and_its_twins_are_complete_in_bfloat16_and_say_something_finite(
    model_type: str, match: str | None, tmp_path: Path
) -> None:
    model = opened(saved(tmp_path, model_type), match, "bfloat16").model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not any(tensor.is_meta for tensor in tensors.values())
    assert {n for n, t in tensors.items() if t.dtype != torch.bfloat16} <= {n for n, _ in model.named_buffers()}
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    assert len(twin_mlps(model)) == (0 if match is None else len(model.model.layers) - (model_type == "deepseek_v2"))
    last = logits(model)
    assert last.shape[0] == 300 and torch.isfinite(last).all()
    # 0.02 * sqrt(32) = 0.11: the head's rows times a hidden state of size one
    assert 0.08 < float(last.std()) < 0.15


@pytest.mark.parametrize("match", [None, "total"])
def test_loading_takes_no_more_than_the_weights_and_five_percent(
    match: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 layers of 8 experts * 3 * 256 * 512: 6.3 M parameters of experts, larger than all else by far
    wide = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    saved(tmp_path, "mixtral", num_hidden_layers=2, **wide)
    with ByteLedger() as ledger:
        model = opened(tmp_path, match, "bfloat16").model
    weights = weight_bytes(model)
    assert weights > 12 * MIB
    assert ledger.peak_bytes <= 1.05 * weights
    assert ledger.widest < 0.01 * weights  # no float32 detour


def test_a_tied_head_is_allocated_once(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3_moe", tie_word_embeddings=True, vocab_size=4096)
    with ByteLedger() as ledger:
        model = opened(tmp_path).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert ledger.peak_bytes <= 1.05 * weight_bytes(model)


@pytest.mark.parametrize("model_type", TYPES)
def test_buffers_are_what_the_class_computes(model_type: str) -> None:
    config = tiny_config(model_type)
    plain: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    mine = drawn(config, torch.bfloat16)
    theirs = dict(plain.named_buffers())
    assert theirs
    for name, buffer in mine.named_buffers():
        assert buffer.dtype == theirs[name].dtype and torch.equal(buffer, theirs[name]), name


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    config = tiny_config("mixtral")
    first, again, other = (drawn(config, seed=seed).model.embed_tokens.weight for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_module_keeps_its_weights_when_others_change() -> None:
    few, many = tiny_config("mixtral"), tiny_config("mixtral")
    few.num_hidden_layers, many.num_hidden_layers = 2, 3
    ours, theirs = drawn(few).model.layers[1].self_attn, drawn(many).model.layers[1].self_attn
    assert torch.equal(ours.q_proj.weight, theirs.q_proj.weight)


def test_a_twin_has_the_attention_of_its_moe(tmp_path: Path) -> None:
    saved(tmp_path, "qwen3_moe")
    moe, twin = opened(tmp_path).model, opened(tmp_path, "active").model
    for name in ("q_proj", "o_proj"):
        ours, theirs = (getattr(model.model.layers[1].self_attn, name).weight for model in (moe, twin))
        assert torch.equal(ours, theirs)


def test_the_process_draws_the_same_numbers_after_loading_as_before() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    drawn(tiny_config("olmoe"))
    assert torch.equal(torch.rand(3), expected)


def test_the_residual_stream_stays_near_one_through_64_layers_in_bfloat16() -> None:
    config = tiny_config("mixtral")
    config.num_hidden_layers, config.initializer_range = 64, 0.18  # 0.18 * sqrt(32) = 1.0, as 0.02 is at width 2,500
    model = drawn(config, torch.bfloat16)
    seen: list[torch.Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].float()))
    found = logits(model)
    assert torch.isfinite(found).all() and 0.7 < float(found.std()) < 1.4
    assert 0.1 < float(seen[0].std()) < 3
    assert residual_scale(config) == pytest.approx(1 / 128**0.5)


def test_outputs_into_the_residual_stream_are_narrower_than_other_matrices() -> None:
    config = tiny_config("mixtral")
    config.num_hidden_layers, config.hidden_size, config.initializer_range = 2, 128, 0.02
    layer = drawn(config).requires_grad_(False).model.layers[0]
    assert float(layer.self_attn.q_proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(layer.self_attn.o_proj.weight.std()) == pytest.approx(0.01, rel=0.05)  # 0.02 / sqrt(2 * 2)
    assert float(layer.mlp.experts.down_proj.std()) == pytest.approx(0.01, rel=0.05)
    assert float(layer.mlp.experts.gate_up_proj.std()) == pytest.approx(0.02, rel=0.05)


def test_what_the_class_keeps_in_float32_for_a_checkpoint_is_float32_here() -> None:
    model = drawn(tiny_config("deepseek_v3"), torch.bfloat16)
    kept = {name.rsplit(".", 1)[1] for name, b in model.named_buffers() if b.dtype == torch.float32}
    assert "e_score_correction_bias" in kept
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_parameter_that_the_class_forgets_is_drawn_and_a_forgotten_buffer_is_refused() -> None:
    config = tiny_config("mixtral")

    def build() -> Any:
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.model.norm.extra = torch.nn.Parameter(torch.empty(1000))
        if buffers:
            model.model.norm.table = torch.nn.Buffer(torch.arange(5.0))
        return model

    buffers = False
    model = random_model(build, CPU, seed=0, name="odd")
    assert 0.015 < float(model.model.norm.extra.detach().std()) < 0.025
    buffers = True
    with pytest.raises(UnsupportedModelError, match=r"odd: .* gives its buffer model\.norm\.table no value"):
        random_model(build, CPU, seed=0, name="odd")


def test_seeds_are_63_bits_and_differ_by_name() -> None:
    assert len({module_seed(0, "a"), module_seed(0, "b"), module_seed(1, "a")}) == 3
    assert all(0 <= module_seed(0, str(i)) < 2**63 for i in range(100))
    assert {"o_proj", "down_proj"} <= random_weights.RESIDUAL_OUTPUTS
