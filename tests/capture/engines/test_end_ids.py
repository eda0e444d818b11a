"""Free outputs end where the checkpoint says: which ids these are, and that every engine of a model stops at them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.engines.end_ids import end_ids
from moeprof.capture.models.find import find_model
from moeprof.core.errors import ModelError
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.tiny_run import write_models, write_tokenizer

NUM_REQUESTS, PROMPT, OUTPUT = 12, 8, 20
CONFIG = {"model_type": "qwen3", "hidden_size": 32, "num_attention_heads": 2}


def found(folder: Path, config: dict[str, Any], generation: Any = None, **more: Any) -> tuple[int, ...]:
    (folder / "config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    if generation is not None:
        text = generation if isinstance(generation, str) else json.dumps(generation)
        (folder / "generation_config.json").write_text(text, encoding="utf-8")
    spec = ModelSpec(name="m", path=str(folder), weights="random", **more)
    return end_ids(spec, find_model(spec))


def test_generation_config_goes_before_config_and_config_before_its_text_part(tmp_path: Path) -> None:
    text = {"text_config": {"eos_token_id": 5}}
    assert found(tmp_path, {}) == ()
    assert found(tmp_path, text) == (5,)
    assert found(tmp_path, text | {"eos_token_id": 7}) == (7,)
    assert found(tmp_path, {"eos_token_id": 7}, {"eos_token_id": [9, 3]}) == (3, 9)
    assert found(tmp_path, {"eos_token_id": 7}, {"eos_token_id": None}) == (7,)
    assert found(tmp_path, {"eos_token_id": -1}, {}) == ()


def test_an_override_is_the_users_word(tmp_path: Path) -> None:
    generation = {"eos_token_id": [9, 3]}
    assert found(tmp_path, {"eos_token_id": 7}, generation, override={"eos_token_id": 4}) == (4,)


def test_the_tokenizer_is_asked_last(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "."}}), encoding="utf-8")
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    assert found(tmp_path, {}) == (vocabulary["."],)
    assert found(tmp_path, {"eos_token_id": 2}) == (2,)


def test_a_damaged_file_is_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model m: .*generation_config\.json cannot be read as JSON"):
        found(tmp_path, {}, "{")


def free(prompts: list[list[int]]) -> Schedule:
    import numpy as np

    number = len(prompts)
    ones = np.ones(number, dtype=np.int64)
    return Schedule(
        pattern="offline", concurrency=None, outputs="free", realism="random_ids", arrival_s=np.zeros(number),
        request_id=tuple(f"r{i}" for i in range(number)), request_class=("all",) * number,
        input_ids=tuple(np.array(ids, dtype=np.int32) for ids in prompts), output_tokens=OUTPUT * ones,
        output_ids=None, session=("",) * number, prefix_blocks=((),) * number, num_characters=-ones,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[list[int]], list[int]]:
    """A folder whose generation_config.json has two end ids, prompts, and lengths of transformers' answers."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("ends")
    write_models(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "moe").eval()
    torch.manual_seed(1)
    prompts = torch.randint(3, 400, (NUM_REQUESTS, PROMPT)).tolist()

    def answers(**more: Any) -> list[list[int]]:
        rows = [model.generate(torch.tensor([ids]), max_new_tokens=OUTPUT, do_sample=False, **more) for ids in prompts]
        return [row[0, PROMPT:].tolist() for row in rows]

    whole = answers(eos_token_id=-1)
    (folder / "moe" / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [whole[0][3], whole[1][6]], "pad_token_id": 0}), encoding="utf-8"
    )
    model = AutoModelForCausalLM.from_pretrained(folder / "moe").eval()
    return str(folder / "moe"), prompts, [len(answer) for answer in answers()]


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_outputs_are_as_long_as_those_of_transformers(
    checkpoint: tuple[str, list[list[int]], list[int]], batching: str
) -> None:
    import torch

    from moeprof.capture.engines.base import ListenerSet
    from moeprof.capture.engines.hf import open as open_model

    folder, prompts, right = checkpoint
    assert right[0] <= 4 and max(right) <= OUTPUT
    settings = TransformersSettings(kv_tokens=2048, batching=batching, dtype="float32")  # type: ignore[arg-type]
    spec, schedule = ModelSpec(name="m", path=folder), free(prompts)

    def lengths(warmup: Schedule, served: Schedule) -> list[int]:
        opened = open_model(spec, settings, torch.device("cpu"), warmup=warmup)
        engine: Any = opened.build(settings, ListenerSet())
        produced = [0] * NUM_REQUESTS
        for request in served.requests():
            engine.submit(request)
        while (step := engine.step()) is not None:
            for sequence in step.sequences:
                produced[sequence.request] += sequence.token is not None
        engine.close()
        return produced

    assert lengths(schedule, schedule) == right
    forced = replace(schedule, outputs="forced_length")
    assert lengths(forced, forced) == [OUTPUT] * NUM_REQUESTS
