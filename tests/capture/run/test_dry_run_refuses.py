"""What a worker would refuse is refused before anything loads, by the run and the dry run alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.models.find import find_model
from moeprof.capture.models.shapes import LayerShape
from moeprof.capture.run.examine import Answer, Question, answer
from moeprof.capture.run.prepare import check_examined
from moeprof.core.errors import WorkloadError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.capture.run.test_early_checks import workload
from tests.helpers.tiny_run import SHAPE, SHORT, Ran, run_main

MOE = (
    SHAPE
    | {"vocab_size": 2048}
    | {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
)
# The first layer of a DeepSeek-V3 is dense, the others have experts.
DEEPSEEK = {
    "model_type": "deepseek_v3", "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 2, "topk_group": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 400, "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}  # fmt: skip
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 400}
VISION = {
    "model_type": "dinov2", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def looked_at(folder: Path, config: dict[str, Any], **settings: Any) -> Answer:
    (folder / "m.json").write_text(json.dumps(config), encoding="utf-8")
    spec = ModelSpec(name="m", config=str(folder / "m.json"), weights="random")
    return answer(Question(spec=spec, base=None, source=find_model(spec), settings=TransformersSettings(**settings)))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (VISION, {}, "model m: transformers .* has no class that continues a text for model_type 'dinov2'"),
        ({"model_type": "nobody"}, {}, "model m: transformers .* has no class for model_type 'nobody'"),
        (MOE | {"num_attention_heads": "two"}, {}, "model m: .*"),
        (MOE, {"experts": "nothing"}, "model m: cannot be loaded: .*nothing"),
        (MOE, {"batching": "static", "prefix_cache": True}, "model m: engine.prefix_cache: Qwen3MoeForCausalLM runs"),
        ({"model_type": "mamba"}, {"batching": "continuous"}, "model m: Mamba.* cannot run in continuous batches"),
        ({"model_type": "doge", "is_moe": True, "num_experts": 16} | SMALL, {}, "model m: .*is not supported"),
    ],
)
def test_a_model_that_no_worker_could_run_is_refused_with_its_reason(
    config: dict[str, Any], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    import re

    refused = looked_at(tmp_path, config, **settings).refusal
    assert refused is not None and re.search(said, refused), refused
    assert "\n" not in refused


def test_layers_are_seen_by_the_numbers_that_the_model_gives_them(tmp_path: Path) -> None:
    shapes = looked_at(tmp_path, DEEPSEEK).shapes
    assert [(shape.number, shape.num_experts, shape.top_k) for shape in shapes] == [(1, 8, 2), (2, 8, 2)]
    whole = looked_at(tmp_path, MOE)
    # 2 x 2048 x 32 embeddings; a layer: attention 32 x (32 + 16 + 16 + 32) + 2 x 16, norms 64, router 8 x 32, experts
    # 8 x 3 x 32 x 16; the last norm 32
    layer = 32 * 96 + 32 + 64 + 256 + 8 * 3 * 32 * 16
    assert whole.refusal is None and whole.params == 2 * 2048 * 32 + 2 * layer + 32


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ([[1] + [0] * 7] * 2, "layer 0 picks 2 experts but fewer have popularity above 0"),
        ([[5] * 4] * 2, "counts of shape [2, 4] (layers, experts); this model has 8 experts"),
        ([[5] * 8] * 2 + [[-5] + [1] * 7], "popularity must be finite and not negative"),
    ],
)
def test_a_profile_is_held_against_the_layers_that_were_seen(
    profile: list[list[int]], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.json"
    file.write_text(json.dumps(profile), encoding="utf-8")
    seen = {"moe": Answer(shapes=(LayerShape(num_experts=8, top_k=2, number=0),) * 2)}
    asked = workload(policy="profile", path=str(file))
    with pytest.raises(WorkloadError, match=re.escape(f"model moe: {file}: {said}")):
        check_examined(asked, seen)


def test_the_dry_run_says_no_where_the_run_does(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(MOE), encoding="utf-8")
    (tmp_path / "p.json").write_text(json.dumps([[0] * 8, [1] * 8]), encoding="utf-8")
    model = "{name: moe, config: m.json, weights: random, routing: {policy: profile, path: p.json}}"
    file = tmp_path / "w.yaml"
    file.write_text(SHORT.format(rate=50, num_requests=2, models=model), encoding="utf-8")
    told: list[Ran] = [run_main(["run", file, *more]) for more in (["--dry-run"], ["--output-dir", tmp_path / "r"])]
    assert [ran.code for ran in told] == [2, 2] and told[0].stderr == told[1].stderr
    assert f"model moe: {tmp_path / 'p.json'}: layer 0 picks 2 experts but fewer" in told[0].stderr
    assert not (tmp_path / "r").exists()


def test_a_folder_with_something_in_it_is_refused_by_the_dry_run_too(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(MOE), encoding="utf-8")
    file = tmp_path / "w.yaml"
    model = "{name: moe, config: m.json, weights: random}"
    file.write_text(SHORT.format(rate=50, num_requests=2, models=model), encoding="utf-8")
    told: list[Ran] = [run_main(["run", file, "--output-dir", tmp_path, *more]) for more in (["--dry-run"], [])]
    assert [ran.code for ran in told] == [2, 2] and told[0].stderr == told[1].stderr
    assert f"{tmp_path}: is there already and is not empty" in told[0].stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"num_hidden_layers": 3}, "model m: the weights lack .* tensors that config.json asks for"),
        ({"vocab_size": 1024}, "model m: cannot be loaded"),
    ],
)
def test_tensors_that_are_not_the_classs_are_refused_before_anything_runs(
    change: dict[str, Any], said: str | None, tmp_path: Path
) -> None:
    import transformers

    config = transformers.AutoConfig.for_model(**MOE)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | change), encoding="utf-8")
    spec = ModelSpec(name="m", path=str(tmp_path))
    found = answer(
        Question(spec=spec, base=None, source=find_model(spec), settings=TransformersSettings(), weights=True)
    ).refusal
    assert found is None if said is None else found is not None and re.search(said, found), found
