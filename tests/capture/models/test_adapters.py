"""Adapters: base and adapter counted and told, from the header of its weights or its config; running is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.models.count import count_model
from moeprof.capture.models.find import find_model
from moeprof.core.errors import ModelError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.workload.models import ModelSpec
from tests.helpers.model_files import safetensors_bytes, written

DENSE: dict[str, Any] = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100}  # fmt: skip
MOE = DENSE | {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
               "head_dim": 8}  # fmt: skip
LORA = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "base"}
BASE_TOTAL = 22_048


def both(folder: Path, adapter: dict[str, Any], weights: dict[str, tuple[int, ...]] | None = None) -> ModelFacts:
    written(folder / "base", {"config.json": MOE if adapter.get("on") == "moe" else DENSE})
    files: dict[str, Any] = {"adapter_config.json": {k: v for k, v in adapter.items() if k != "on"}}
    if weights is not None:
        files["adapter_model.safetensors"] = safetensors_bytes(weights)
    facts = count_model(str(written(folder / "adapter", files))).facts
    assert facts is not None
    return facts


def test_lora_follows_from_its_config(tmp_path: Path) -> None:
    """Two layers, rank 4: queries 32 -> 32, values 32 -> 16."""
    facts = both(tmp_path, LORA)
    assert facts.total_params == facts.active_params == BASE_TOTAL + 2 * 4 * (64 + 48)
    assert facts.params_by_group["other"] == 896
    told = "with an adapter, unmerged: LORA, rank 4 on q_proj, v_proj, of base base: "
    assert facts.notes[0] == f"{told}22048 parameters of the base and 896 of the adapter"
    everywhere = both(tmp_path, LORA | {"target_modules": "all-linear"})
    # queries 64, keys and values 48 each, output 64, gate, up and down 80 each
    assert everywhere.total_params == BASE_TOTAL + 2 * 4 * (64 + 2 * 48 + 64 + 3 * 80)
    assert both(tmp_path, LORA | {"layers_to_transform": [1]}).total_params == BASE_TOTAL + 448
    assert both(tmp_path, LORA | {"use_dora": True}).total_params == BASE_TOTAL + 896 + 2 * (32 + 16)
    patterned = both(tmp_path, LORA | {"rank_pattern": {"v_proj": 1}})
    assert patterned.total_params == BASE_TOTAL + 2 * (4 * 64 + 48)
    assert both(tmp_path, LORA | {"target_modules": r".*\.0\..*q_proj"}).total_params == BASE_TOTAL + 256


def test_weights_that_are_there_are_what_is_counted(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    weights = {name.format("A"): (8, 32), name.format("B"): (32, 8), "base_model.model.lm_head.weight": (100, 32)}
    facts = both(tmp_path, LORA, weights)
    assert facts.total_params == BASE_TOTAL + 512
    assert facts.notes[1] == "3200 more are whole modules (modules_to_save), which take the place of the base's"
    model = count_model(str(tmp_path / "adapter"))
    assert model.stored_bytes == 2 * BASE_TOTAL + 2 * (512 + 3200)
    assert model.stored_reason.endswith("adapter: 7424 bytes")


def test_beside_experts_it_is_as_idle_as_they_are(tmp_path: Path) -> None:
    """Rank 2 beside a matrix of each of 4 experts in 2 layers, of which a token uses 2; and beside one query."""
    path = "base_model.model.model.layers.{}.mlp.experts.{}.up_proj.lora_{}.weight"
    weights = {path.format(layer, expert, side): shape for layer in (0, 1) for expert in range(4)
               for side, shape in (("A", (2, 32)), ("B", (16, 2)))}  # fmt: skip
    weights["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = (2, 32)
    plain = count_model(str(written(tmp_path / "base", {"config.json": MOE}))).facts
    facts = both(tmp_path, LORA | {"on": "moe"}, weights)
    assert plain is not None
    each = 2 * 32 + 16 * 2
    assert facts.total_params - plain.total_params == 2 * 4 * each + 64
    assert facts.active_params - plain.active_params == 2 * 2 * each + 64
    assert facts.moe_layers[0].expert_params == plain.moe_layers[0].expert_params + each
    assert sum(facts.params_by_group.values()) == facts.total_params
    some = {name: shape for name, shape in weights.items() if "experts.3" not in name}
    with pytest.raises(ModelError, match=r"on some experts of model\.layers\.0\.mlp only"):
        both(tmp_path, LORA | {"on": "moe"}, {**some, "x.layers.0.mlp.experts.3.up_proj.lora_A.weight": (1, 3)})


def test_a_base_of_the_built_in_list_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("moeprof.capture.models.find.is_reachable", lambda: False)
    adapter = LORA | {"base_model_name_or_path": "mistralai/Mixtral-8x7B-v0.1", "target_modules": ["q_proj"]}
    model = count_model(str(written(tmp_path, {"adapter_config.json": adapter})))
    assert model.facts is not None
    assert model.facts.total_params == 46_702_792_704 + 32 * 4 * (4096 + 4096)


@pytest.mark.parametrize(
    ("adapter", "told"),
    [({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
     ({"base_model_name_or_path": "nowhere"}, "its base 'nowhere' is no folder here, no hub id"),
     ({"target_modules": ["q_proj", "gate_up"]}, "'gate_up': no linear module of its base, so adapter_model"),
     ({"peft_type": "IA3"}, "the size of 'IA3' stands only there"),
     ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "its target_parameters do not say their shapes"),
     ({"r": 0}, "r: found 0; 1 or more"),
     ({"r": "eight"}, "adapter_config.json is not as PEFT writes it: Expected `int`, got `str`"),
     ({"target_modules": "(("}, "of target_modules '((': no linear module")],
)  # fmt: skip
def test_what_does_not_follow_is_refused_with_the_reason(adapter: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        both(tmp_path, LORA | adapter)
    assert told in str(raised.value)


def test_an_adapter_of_an_adapter_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "first", {"adapter_config.json": LORA})
    second = written(tmp_path / "second", {"adapter_config.json": LORA | {"base_model_name_or_path": "first"}})
    with pytest.raises(ModelError, match="its base 'first' is an adapter too"):
        count_model(str(second))
    written(tmp_path / "base", {"config.json": DENSE})
    written(tmp_path / "first", {"adapter_model.safetensors": b"\xff" * 50})
    with pytest.raises(ModelError, match=r"no header as safetensors files have it"):
        count_model(str(tmp_path / "first"))


def test_it_is_not_run_and_the_line_says_how_it_could_be(tmp_path: Path) -> None:
    folder = written(tmp_path, {"adapter_config.json": LORA, "adapter_model.safetensors": safetensors_bytes({})})
    with pytest.raises(ModelError, match=r"is an adapter \(LORA\) of 'base', not a model; merge it"):
        find_model(ModelSpec(name="m", path=str(folder)))
