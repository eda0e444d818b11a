"""Models at their true sizes, on the meta device: counts of the named configs and of their dense twins, in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from moeprof.capture.coverage import tiny_config
from moeprof.capture.models.find import find_model, named_configs
from moeprof.capture.models.load import read_blueprint
from moeprof.capture.models.meta import build_on_meta, config_object
from moeprof.capture.models.open import facts_of, open_model
from moeprof.capture.models.random_weights import random_model
from moeprof.capture.models.twins import describe_twin, read_layers, replace_experts
from moeprof.core import yamlfile
from moeprof.core.errors import ModelError, WorkloadError
from moeprof.core.known_models import find_system, system_facts
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

torch.set_num_threads(1)
CPU = torch.device("cpu")

# Parameters of the whole model and of its routers, which a twin does not have: layers * experts * width.
ROUTERS = {
    "mixtral-8x7b": 32 * 8 * 4096,
    "qwen3-30b-a3b": 48 * 128 * 2048,
    "olmoe-1b-7b": 16 * 64 * 2048,
    "gpt-oss-20b": 24 * 32 * (2880 + 1),
    "deepseek-v2-lite": 26 * 64 * 2048,
}
# gpt-oss adds a bias to each expert's output and a twin's MLP adds one: 24 layers, 4 or 32 experts, 2880 wide.
FEWER_BIASES = {"active": 24 * (4 - 1) * 2880, "total": 24 * (32 - 1) * 2880}


def twin(name: str, match: str) -> Any:
    spec = ModelSpec(name="twin", twin_of=name, match=match)
    model = build_on_meta(config_object(named_configs()[name], name=name), name=name)
    layers = read_layers(model, spec)
    replace_experts(model, layers, spec)
    return describe_twin(model, layers, spec), sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ROUTERS)
def test_a_twin_at_true_size_has_the_parameters_of_its_moe_without_the_router(name: str) -> None:
    row = find_system(name)
    assert row is not None
    counted = system_facts(row)
    assert counted is not None
    for match, whole in (("active", counted.active_params), ("total", counted.total_params)):
        found, params = twin(name, match)
        fewer = FEWER_BIASES[match] if name == "gpt-oss-20b" else 0
        assert params == whole - ROUTERS[name] - fewer
        assert found.facts.target_params == pytest.approx(params, rel=1e-3)


def test_a_full_mixtral_is_laid_out_without_memory_and_with_the_right_bytes() -> None:
    config = config_object(named_configs()["mixtral-8x7b"], name="m")
    model = random_model(
        lambda: AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16), torch.device("meta"), seed=0, name="m"
    )
    assert sum(p.nbytes for p in model.parameters()) == 2 * 46_702_792_704  # 93.4 GB


def random_spec(**more: Any) -> ModelSpec:
    return ModelSpec(name="moe", weights="random", **{"config": "mixtral-8x7b", **more})


def test_a_named_config_can_be_cut_to_fewer_layers_and_the_record_says_so() -> None:
    spec = random_spec(override={"num_hidden_layers": 8})
    source = find_model(spec)
    assert source.description == "named config, 8 of 32 layers"
    config = read_blueprint(spec, source, TransformersSettings(), CPU).config
    assert config.num_hidden_layers == 8 and config.hidden_size == 4096
    assert named_configs()["mixtral-8x7b"]["num_hidden_layers"] == 32


def test_lists_of_one_item_per_layer_are_cut_too_and_a_twin_follows(tmp_path: Path) -> None:
    config = {
        "model_type": "qwen3_moe",
        "num_hidden_layers": 3,
        "layer_types": ["full_attention"] * 3,
        "hidden_size": 8,
    }
    config |= {"num_attention_heads": 2, "head_dim": 4, "num_key_value_heads": 1, "vocab_size": 64, "num_experts": 4}
    config |= {"moe_intermediate_size": 8, "num_experts_per_tok": 2, "intermediate_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    base = random_spec(config=None, path=str(tmp_path), override={"num_hidden_layers": 2, "num_experts_per_tok": 1})
    assert find_model(base).config["layer_types"] == ["full_attention"] * 2
    made = open_model(
        ModelSpec(name="t", twin_of="moe", match="active"), base, TransformersSettings(dtype="float32"), CPU
    )
    assert len(made.model.model.layers) == 2
    assert made.notes[0] == "not the model's own config: 2 of 3 layers, num_experts_per_tok 1 instead of 2"
    assert "one MLP of 8 units" in made.notes[1]


def test_latent_attention_in_the_paged_engine_is_counted_as_it_is_cached(tmp_path: Path) -> None:
    tiny_config("deepseek_v2").save_pretrained(tmp_path)
    spec = ModelSpec(name="moe", path=str(tmp_path), weights="random")
    opened = open_model(spec, None, TransformersSettings(dtype="bfloat16"), CPU)
    facts = facts_of(opened, spec, None, expanded_cache=True)
    config = opened.source.config
    # keys of 8 + 8, values of 8, 4 heads, 2 bytes
    assert facts.kv_bytes_per_token == config["num_hidden_layers"] * 4 * 24 * 2
    plain = facts_of(opened, spec, None)
    if plain.kv_bytes_per_token != facts.kv_bytes_per_token:  # newer versions cache the latent
        assert facts.notes[-1].startswith("latent attention is cached as keys and values of all heads: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_hiden_layers": 8}, "has no key 'num_hiden_layers'; did you mean 'num_hidden_layers'"),
        ({"num_hidden_layers": 33}, "num_hidden_layers: found 33; 1 to 32 is allowed"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: found 0; 1 to 32 is allowed"),
    ],
)
def test_an_override_that_cannot_be_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_model(random_spec(override=override))


def test_a_checkpoint_and_a_twin_take_no_override() -> None:
    text = "{name: a, path: org/model, override: {num_hidden_layers: 2}}"
    with pytest.raises(WorkloadError, match="override: belongs to a model of random weights"):
        yamlfile.loads(text, ModelSpec)
    spec = yamlfile.loads(
        "{name: a, config: olmoe-1b-7b, weights: random, override: {num_hidden_layers: 2}}", ModelSpec
    )
    assert spec.override == {"num_hidden_layers": 2}
