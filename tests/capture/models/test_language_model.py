"""Checkpoints that see or hear: a run takes their language model, and what is counted for a text token is that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from moeprof.capture.models.find import find_model
from moeprof.capture.models.language_model import language_model_config, other_parts, why_not_continued
from moeprof.capture.models.meta import facts_from_config
from moeprof.capture.models.open import facts_of, open_model
from moeprof.capture.run.examine import Answer, Question, answer
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

CPU = torch.device("cpu")
SETTINGS = TransformersSettings(dtype="float32")
IDS = torch.arange(5, 15)[None]
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 100, "num_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 64,
}  # fmt: skip


def qwen3_vl_moe() -> PreTrainedConfig:
    """Without a class of the language model alone in transformers."""
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "out_hidden_size": 32,
              "deepstack_visual_indexes": [0], "num_position_embeddings": 16}  # fmt: skip
    return transformers.Qwen3VLMoeConfig(text_config=TEXT, vision_config=vision, tie_word_embeddings=False)


def gemma4() -> PreTrainedConfig:
    """With a class of the language model alone; its causal class is the whole all the same."""
    text = TEXT | {"num_experts_per_tok": None, "top_k_experts": 2, "enable_moe_block": True, "global_head_dim": 8,
                   "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 100,
                   "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}  # fmt: skip
    return transformers.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)


def saved(folder: Path, config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    whole.save_pretrained(folder)
    return whole


@pytest.mark.parametrize("build", [qwen3_vl_moe, gemma4])
def test_a_checkpoint_that_sees_is_loaded_without_its_tower_and_continues_text_as_the_whole_does(
    build: Any, tmp_path: Path
) -> None:
    whole = saved(tmp_path, build())
    parts = other_parts(whole)
    assert parts and all("vision" in path or "visual" in path for path in parts)
    opened = open_model(ModelSpec(name="m", path=str(tmp_path)), None, SETTINGS, CPU)
    assert other_parts(opened.model) == {}
    with torch.inference_mode():
        assert torch.equal(opened.model(input_ids=IDS).logits, whole(input_ids=IDS).logits)
    facts = facts_of(opened, ModelSpec(name="m", path=str(tmp_path)), None)
    assert facts.total_params == sum(p.numel() for p in whole.parameters()) - sum(parts.values())
    assert any(note.startswith("the language model alone") for note in facts.notes)


def examined(spec: ModelSpec) -> Answer:
    return answer(Question(spec=spec, base=None, source=find_model(spec), settings=SETTINGS))


def test_a_dry_run_counts_the_parameters_that_a_run_loads(tmp_path: Path) -> None:
    qwen3_vl_moe().save_pretrained(tmp_path)
    spec = ModelSpec(name="m", path=str(tmp_path), weights="random", dtype="float32")
    opened = open_model(spec, None, SETTINGS, CPU)
    assert examined(spec).params == sum(p.numel() for p in opened.model.parameters())
    assert other_parts(opened.model) == {}


def test_a_model_that_continues_no_text_is_refused_by_dry_run_and_run_in_the_same_words(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.Siglip2VisionConfig(**sizes).save_pretrained(tmp_path)
    spec = ModelSpec(name="m", path=str(tmp_path), weights="random")
    with pytest.raises(
        UnsupportedModelError, match=r"no class that continues a text .* 'siglip2_vision_model'"
    ) as said:
        open_model(spec, None, SETTINGS, CPU)
    assert examined(spec).refusal == str(said.value)


def test_a_text_token_passes_no_tower() -> None:
    """Experts of 3 * 32 * 16 = 1536 parameters, 2 of 4 idle in 2 layers; the tower is in the total alone."""
    facts = facts_from_config(qwen3_vl_moe(), name="m", source="t")
    tower = sum(facts.other_parts.values())
    assert list(facts.other_parts) == ["model.visual"] and tower > 0
    assert facts.params_by_group["other_modalities"] == tower
    assert facts.active_params == facts.total_params - tower - 2 * 2 * 1536
    assert facts.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2  # layers * (k, v) * heads * width * bf16: no vision layer
    text = transformers.Qwen3MoeConfig(**TEXT, tie_word_embeddings=False)
    assert facts.active_params == facts_from_config(text, name="m", source="t").active_params


def test_the_language_model_alone_is_tied_as_the_whole_says() -> None:
    assert language_model_config(qwen3_vl_moe()) is None
    alone = language_model_config(gemma4())
    assert alone.model_type == "gemma4_text" and alone.tie_word_embeddings is True
    assert why_not_continued(gemma4()) is None
