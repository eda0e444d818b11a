"""Configs of every kind that people have: nested, of a class's name alone, index-only; and refusals that are true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from moeprof.capture.coverage import tiny_config
from moeprof.capture.models.count import count_model
from moeprof.capture.models.find import find_model
from moeprof.capture.models.load import read_config_object
from moeprof.capture.models.open import facts_of, open_model
from moeprof.capture.models.random_weights import random_model
from moeprof.capture.models.shapes import read_widths, text_values
from moeprof.core.errors import ModelError
from moeprof.core.model_facts import ModelFacts
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.model_files import safetensors_bytes, written

TEXT: dict[str, Any] = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100,
                        "tie_word_embeddings": False}  # fmt: skip
TOTAL = 22_048
OWN_CODE = {"AutoModel": "modeling_x.X"}


def facts(folder: Path, config: dict[str, Any]) -> ModelFacts:
    found = count_model(str(written(folder, {"config.json": config}))).facts
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "key"),
    [({"model_type": "internvl_old", "auto_map": OWN_CODE, "llm_config": TEXT, "vision_config": {}}, "llm_config"),
     ({"model_type": "deepseek_vl_old", "language_config": TEXT}, "language_config"),
     ({"model_type": "omni_new", "thinker_config": {"model_type": "thinker_new", "text_config": TEXT}},
      "thinker_config.text_config"),
     ({"text_config": TEXT}, "text_config")],
)  # fmt: skip
def test_a_nested_language_model_is_counted_where_the_whole_has_no_class(
    config: dict[str, Any], key: str, tmp_path: Path
) -> None:
    found = facts(tmp_path, config)
    assert found.total_params == TOTAL
    kind = config.get("model_type")
    what = f"model_type {kind!r} is not known" if kind else "its config names no model_type"
    assert found.notes[0] == f"{what}: the language model alone, of its {key} (qwen2); other parts are not counted"
    assert text_values(config) == TEXT
    widths = read_widths(config)
    assert widths is not None and (widths.layers, widths.kv_heads) == (2, 2)


def test_the_whole_says_whether_embeddings_are_tied_where_the_nested_config_does_not(tmp_path: Path) -> None:
    silent = {key: value for key, value in TEXT.items() if key != "tie_word_embeddings"}
    tied = facts(tmp_path, {"model_type": "new", "text_config": silent, "tie_word_embeddings": True})
    assert tied.tied_embeddings and tied.total_params == TOTAL - 3200
    assert not facts(tmp_path, {"model_type": "new", "text_config": TEXT, "tie_word_embeddings": True}).tied_embeddings


def test_a_class_named_alone_will_do(tmp_path: Path) -> None:
    named = {key: value for key, value in TEXT.items() if key != "model_type"} | {"architectures": ["Qwen2ForCausalLM"]}
    found = facts(tmp_path, named)
    assert found.total_params == TOTAL
    assert found.notes[0] == "its config names no model_type: counted as Qwen2ForCausalLM, which `architectures` names"


NOT_THERE = f"transformers {transformers.__version__} has no class for model_type 'new'"


@pytest.mark.parametrize(
    ("config", "counting", "running"),
    [({"auto_map": OWN_CODE},
      "its code comes with the checkpoint (`auto_map`), and moeprof runs no such code to count a model; describe",
      "its code comes with the checkpoint (`auto_map`); read it, then set `trust_remote_code: true`"),
     ({"transformers_version": "99.1.0"}, "transformers 99.1.0, which wrote the config, is newer; upgrade transformers",
      "transformers 99.1.0, which wrote the config, is newer; upgrade transformers"),
     ({"transformers_version": "4.40.1"}, "transformers 4.40.1, which wrote the config, is no newer",
      "transformers 4.40.1, which wrote the config, is no newer"),
     ({}, "the file says neither which transformers wrote it nor that its code comes with it",
      "the file says neither which transformers wrote it nor that its code comes with it")],
)  # fmt: skip
def test_why_there_is_no_class_is_what_the_file_says(
    config: dict[str, Any], counting: str, running: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, {"config.json": {"model_type": "new", **config}, "model.safetensors": b"x"})
    spec = ModelSpec(name="m", path=str(folder))
    said = []
    for ask in (lambda: count_model(str(folder)), lambda: read_config_object(spec, find_model(spec))):
        with pytest.raises(ModelError) as raised:
            ask()
        said.append(str(raised.value))
    assert NOT_THERE in said[0] and counting in said[0]
    assert NOT_THERE in said[1] and running in said[1]
    for words, key in (("comes with the checkpoint", "auto_map"), ("upgrade", "transformers_version")):
        assert key in config or not any(words in one for one in said), said


def test_a_nested_language_model_runs_at_random_and_a_checkpoint_of_it_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "new", "llm_config": TEXT}
    spec = ModelSpec(name="m", config=str(written(tmp_path, {"config.json": config}) / "config.json"), weights="random")
    opened = open_model(spec, None, TransformersSettings(dtype="float32"), torch.device("cpu"))
    counted = facts_of(opened, spec, None)
    assert counted.total_params == TOTAL and counted.notes[0].startswith("model_type 'new' is not known: the language")
    written(tmp_path, {"model.safetensors": b"x"})
    checkpoint = ModelSpec(name="m", path=str(tmp_path))
    with pytest.raises(ModelError, match=r"its language model \(llm_config\) can be run alone, with `weights: random`"):
        read_config_object(checkpoint, find_model(checkpoint))


def test_a_checkpoint_of_an_unknown_type_is_loaded_as_the_class_that_it_names(tmp_path: Path) -> None:
    config = tiny_config("deepseek_v3")
    auto = transformers.AutoModelForCausalLM
    saved = random_model(lambda: auto.from_config(config, dtype=torch.float32), torch.device("cpu"), seed=1, name="x")
    saved.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    kept = values | {"model_type": "kimi_k2", "architectures": ["DeepseekV3ForCausalLM"], "auto_map": OWN_CODE}
    written(tmp_path, {"config.json": kept})
    spec = ModelSpec(name="m", path=str(tmp_path))
    opened = open_model(spec, None, TransformersSettings(dtype="float32"), torch.device("cpu"))
    theirs = dict(saved.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in opened.model.named_parameters())
    told = "model_type 'kimi_k2' is not known: counted as DeepseekV3ForCausalLM, which `architectures` names"
    assert facts_of(opened, spec, None).notes[0] == told


# -- indexes and weights -----------------------------------------------------------------------------------------------


def index(*names: str, **metadata: int) -> dict[str, Any]:
    return {"metadata": metadata, "weight_map": {f"tensor {i}": name for i, name in enumerate(names)}}


def test_an_index_alone_gives_bytes_and_is_not_run(tmp_path: Path) -> None:
    shards = index("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", total_size=1000,
                   total_parameters=TOTAL + 7)  # fmt: skip
    folder = written(tmp_path, {"config.json": TEXT, "model.safetensors.index.json": shards})
    model = count_model(str(folder))
    assert (model.stored_bytes, model.stored_reason) == (1000, "total_size of model.safetensors.index.json")
    assert model.facts is not None
    assert f"model.safetensors.index.json says {TOTAL + 7} parameters, the class has {TOTAL}" in model.facts.notes
    spec = ModelSpec(name="m", path=str(folder))
    with pytest.raises(ModelError, match="2 of the 2 files of weights that the index in"):
        find_model(spec)
    written(folder, {"model-00001-of-00002.safetensors": safetensors_bytes({"a": (2, 3)})})
    assert count_model(str(folder)).stored_bytes == 1000  # of one shard of two nothing follows
    with pytest.raises(ModelError, match=r"1 of the 2 files .* are not there \(model-00002-of-00002.safetensors\)"):
        find_model(spec)
    written(folder, {"model-00002-of-00002.safetensors": safetensors_bytes({"b": (4,)})})
    assert count_model(str(folder)).stored_bytes == 20
    assert find_model(spec).weights_bytes is not None


def test_an_index_without_a_config_says_what_is_missing(tmp_path: Path) -> None:
    folder = written(tmp_path, {"model.safetensors.index.json": index("a.safetensors", total_size=10)})
    with pytest.raises(ModelError, match=r"names tensors and not their shapes, and there is no config.json"):
        count_model(str(folder))


def test_weights_that_lie_there_twice_are_counted_once(tmp_path: Path) -> None:
    """Mistral's repositories have them under transformers' name and under their own."""
    own, copy = safetensors_bytes({"a": (3, 5)}), safetensors_bytes({"b": (3, 5)})
    folder = written(tmp_path, {"config.json": TEXT, "model.safetensors": own, "consolidated.safetensors": copy})
    assert count_model(str(folder)).stored_bytes == 30
    source = find_model(ModelSpec(name="m", path=str(folder)))
    assert source.weights_bytes == len(own)
    (folder / "model.safetensors").unlink()
    assert count_model(str(folder)).stored_bytes == 30


@pytest.mark.parametrize(
    ("dtype", "told"),
    [({}, "all in bfloat16, assumed: the config names no dtype"),
     ({"torch_dtype": "float8_e4m3fn"}, "all in bfloat16, assumed: the config says float8_e4m3fn"),
     ({"dtype": "float16"}, "all in float16")],
)  # fmt: skip
def test_an_assumed_dtype_is_told(dtype: dict[str, str], told: str, tmp_path: Path) -> None:
    assert count_model(str(written(tmp_path, {"config.json": TEXT | dtype}))).stored_reason == told


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [("config.json", "[1]", "holds a JSON list; an object is expected"),
     ("config.json", "[" * 100_000, "cannot be read as JSON (nested deeper than 64 levels)"),
     ("config.json", '{"a": ' + "9" * 5000 + "}", "cannot be read as JSON (a whole number of"),
     ("config.json", b"\xff\xfe", "cannot be read as JSON"),
     ("config.json", {"model_type": ["a"]}, "model_type: found \"['a']\"; a text belongs there"),
     ("config.json", {"architectures": "X"}, "architectures: found 'X'; a list belongs there"),
     ("config.json", {"tokenizer_class": "X"}, "is the config of a tokenizer; a model's config.json is needed"),
     ("generation_config.json", {"eos_token_id": 1}, "is a config of generation; a model's"),
     ("weights.safetensors", b"x", "weights alone do not say what they are of"),
     ("params.json", {"dim": 8}, "no params.json as Mistral writes it: Object missing required field `n_layers`"),
     ("params.json", {"dim": 8, "n_layers": 10**9, "n_heads": 1, "hidden_dim": 8, "vocab_size": 8},
      "num_layers: found 1000000000; at most 10000"),
     ("model.safetensors.index.json", {}, "names tensors and not their shapes")],
)  # fmt: skip
def test_a_file_of_another_kind_is_called_what_it_is(name: str, content: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        count_model(str(written(tmp_path, {name: content}) / name))
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [("expert-choice", "is a routing scheme, not a model"), ("gpt-4", "it is an unconfirmed rumour"),
     ("grok-1", "the list has a description of its layers and no config")],
)  # fmt: skip
def test_a_row_that_is_not_run_says_why(name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        find_model(ModelSpec(name="m", config=name, weights="random"))
