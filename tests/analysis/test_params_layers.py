"""``moeprof params`` where layers are not alike: windows, latents, states, towers; and configs of other kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.params import Figure, Question, figures
from moeprof.capture.models.count import count_model
from moeprof.core.errors import ModelError
from moeprof.core.hardware import find_datasheet
from moeprof.core.known_models import CountedModel


def asked(model: CountedModel, *, batch: int = 1, context: int = 32768, device: str = "H100 SXM") -> dict[str, Any]:
    sheet = find_datasheet(device)
    assert sheet is not None
    found: dict[str, Any] = {}
    for figure in figures(model, Question(batches=(batch,), context=context, devices=(sheet,))):
        found[figure.name] = figure.value if isinstance(figure, Figure) else None
    return found


def test_mimo_keeps_windows_in_39_of_48_layers() -> None:
    """9 layers of 2,560 B a token see 32,769 tokens, 39 of 5,120 B see 129."""
    found = asked(count_model("mimo-v2-flash"), batch=8)
    assert found["kv_bytes_per_step"] == 8 * (9 * 2560 * 32769 + 39 * 5120 * 129)
    assert found["kv_bytes_per_step"] / 8 / 1e9 == pytest.approx(0.78, abs=0.005)
    assert found["flops_per_token"] / 1e9 == pytest.approx(41.9, abs=0.05)
    assert found["devices_needed"] == 9


def test_gpt_oss_keeps_128_tokens_in_every_second_layer() -> None:
    """20b: 12 of 24 layers; 120b: 18 of 36, 2,048 B each."""
    small = asked(count_model("gpt-oss-20b"))
    assert small["kv_bytes_per_step"] == 12 * 2048 * (32769 + 128)
    assert small["flops_per_token"] / 1e9 == pytest.approx(13.7, abs=0.05)
    large = asked(count_model("gpt-oss-120b"), batch=64, context=131072, device="H200 SXM")
    assert large["kv_bytes_per_step"] == 64 * 18 * 2048 * (131073 + 128) == 309_541_994_496
    assert large["devices_needed"] == 5
    assert asked(count_model("mistral-7b"))["kv_bytes_per_step"] == 131072 * 4096 == 536_870_912


def test_deepseek_decodes_on_its_latents() -> None:
    """61 layers * 2 * 128 heads * (2 * 512 + 64) = 17.0 MFLOP a token of context, beside 73.3 GFLOP of matrices."""
    for context, expected in ((32768, 630.0), (1024, 90.6)):
        found = asked(count_model("deepseek-v3"), context=context)
        assert found["flops_per_token"] / 1e9 == pytest.approx(expected, abs=0.05)
        assert found["kv_bytes_per_step"] == 61 * 576 * 2 * (context + 1)


def test_minimax_reads_and_writes_147_megabytes_of_states_a_sequence() -> None:
    """70 layers of 64 heads of 128 x 128 in two bytes; 10 layers of 8 heads of 128."""
    state = 70 * 64 * 128 * 128 * 2
    assert state == 146_800_640
    found = asked(count_model("minimax-text-01"), context=1024)
    assert found["kv_bytes_per_step"] == 2 * state + 10 * 4096 * 1025
    assert found["kept_bytes_per_sequence"] == state + 10 * 4096 * 1024


def config_file(folder: Path, **config: Any) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


QWEN = {
    "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
    "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
    "num_experts_per_tok": 8, "vocab_size": 151936, "tie_word_embeddings": False,
}  # fmt: skip
TOWER = {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304, "out_hidden_size": 2048,
         "deepstack_visual_indexes": [8, 16, 24]}  # fmt: skip


def test_qwen3_vl_is_as_active_as_its_language_model_and_keeps_as_much(tmp_path: Path) -> None:
    sees = count_model(config_file(tmp_path, model_type="qwen3_vl_moe", text_config=QWEN, vision_config=TOWER,
                                   tie_word_embeddings=False))  # fmt: skip
    reads = count_model("qwen3-30b-a3b")
    assert sees.facts is not None and reads.facts is not None
    tower = sees.facts.total_params - reads.facts.total_params
    assert sees.facts.active_params == reads.facts.active_params == 3_353_032_704
    assert sees.facts.other_parts == {"model.visual": tower} and tower > 5e8
    assert any("in the total only" in note and str(tower) in note for note in sees.facts.notes)
    own, other = asked(sees, batch=64, device="H200 SXM"), asked(reads, batch=64, device="H200 SXM")
    for name in ("kv_bytes_per_token", "kv_bytes_per_step", "flops_per_token", "weights_bytes_per_step"):
        assert own[name] == other[name], name
    assert own["kv_bytes_per_token"] == 2 * 48 * 4 * 128 * 2
    assert own["devices_needed"] == other["devices_needed"] == 3


def test_a_tower_beside_a_language_model_with_a_class_of_its_own_is_told_and_not_counted(tmp_path: Path) -> None:
    text = {"model_type": "mistral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000}  # fmt: skip
    vision = {"model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
              "intermediate_size": 64, "image_size": 56, "patch_size": 14, "head_dim": 16}  # fmt: skip
    facts = count_model(config_file(tmp_path, model_type="mistral3", text_config=text, vision_config=vision)).facts
    assert facts is not None
    assert facts.kv_bytes_per_token == 4 * 2 * 2 * 16 * 2
    assert (
        facts.notes[0]
        == "the language model alone: with its other parts (vision, sound) the model has 247488 parameters"
    )


def test_an_unknown_model_type_is_counted_as_the_class_that_architectures_names(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
             "first_k_dense_replace": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
             "qk_nope_head_dim": 8, "v_head_dim": 8, "vocab_size": 50, "n_group": 1, "topk_group": 1}  # fmt: skip
    (tmp_path / "own").mkdir()
    (tmp_path / "known").mkdir()
    own = count_model(config_file(tmp_path / "own", model_type="kimi_k2", architectures=["DeepseekV3ForCausalLM"],
                                  auto_map={"AutoModelForCausalLM": "modeling_deepseek.X"}, moe_layer_freq=1,
                                  num_nextn_predict_layers=1, **sizes)).facts  # fmt: skip
    known = count_model(config_file(tmp_path / "known", model_type="deepseek_v3", **sizes)).facts
    assert own is not None and known is not None
    assert (own.total_params, own.active_params) == (known.total_params, known.active_params)
    assert own.notes[:2] == (
        "model_type 'kimi_k2' is not known: counted as DeepseekV3ForCausalLM, which `architectures` names",
        "keys of its config without effect in DeepseekV3Config, so the count is without them: moe_layer_freq 1, "
        "num_nextn_predict_layers 1",
    )


@pytest.mark.parametrize(
    ("config", "told"),
    [({"model_type": "qwen3_moe", "moe_layer_freq": 2, "max_window_layers": 48, "use_sliding_window": False},
      "Qwen3MoeConfig, so the count is without them: moe_layer_freq 2"),
     ({"model_type": "dbrx", "n_layers": 1, "kv_n_heads": 4, "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0}},
      "DbrxConfig, so the count is without them: kv_n_heads 4"),
     ({"model_type": "qwen3_vl_moe", "num_hidden_layers": 2, "num_experts": 8},
      "Qwen3VLMoeConfig, so the count is without them: num_hidden_layers 2, num_experts 8")],
)  # fmt: skip
def test_keys_that_the_class_does_not_read_are_told_by_name(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    facts = count_model(config_file(tmp_path, **config)).facts
    assert facts is not None
    assert any(note.endswith(told) for note in facts.notes), facts.notes


@pytest.mark.parametrize(
    ("config", "told"),
    [({"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "auto_map": {"AutoModel": "modeling_qwen.X"},
       "transformers_version": "4.32.0"}, r"\(QWenLMHeadModel\): its code comes with the checkpoint \(`auto_map`\)"),
     ({"model_type": "mimo", "architectures": ["MiMoForCausalLM"], "transformers_version": "4.40.1"},
      r"transformers 4.40.1, which wrote the config, is no newer.*names no code of its own \(`auto_map`\)"),
     ({"model_type": "not_yet", "transformers_version": "99.0.0"}, "upgrade transformers")],
)  # fmt: skip
def test_where_the_code_comes_with_the_checkpoint_nobody_is_sent_to_upgrade(
    config: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=told) as raised:
        count_model(config_file(tmp_path, **config))
    assert ("upgrade" in str(raised.value)) == (told == "upgrade transformers")


def test_mistrals_own_params_are_counted_from_their_shape(tmp_path: Path) -> None:
    """Attention 2 * 8 * 4 * (2 + 1), router 4 * 8, experts 3 * 8 * 6 with one shared in the second layer."""
    params = {"dim": 8, "n_layers": 2, "head_dim": 4, "hidden_dim": 16, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 10,
              "moe": {"num_experts": 4, "num_experts_per_tok": 2, "expert_hidden_dim": 6, "num_shared_experts": 1,
                      "first_k_dense_replace": 1}}  # fmt: skip
    (tmp_path / "params.json").write_text(json.dumps(params))
    for text in (tmp_path, tmp_path / "params.json"):
        facts = count_model(str(text)).facts
        assert facts is not None
        assert facts.params_by_group["attention"] == 2 * 2 * 8 * 4 * 3
        assert facts.params_by_group["dense_mlp"] == 3 * 8 * 16
        assert facts.params_by_group["routed_experts"] == 4 * 144 and facts.params_by_group["shared_experts"] == 144
        assert facts.total_params == 384 + 384 + 32 + 5 * 144 + 160 + 5 * 8
        assert facts.total_params - facts.active_params == 2 * 144
    ranks = {"kv_lora_rank": 5, "q_lora_rank": 3, "v_head_dim": 3, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4}
    (tmp_path / "params.json").write_text(json.dumps(params | ranks))
    latent = count_model(str(tmp_path)).facts
    assert latent is not None
    # q 8 -> 3 -> 2 * 6 with a norm of 3, latent 8 -> 5 + 2 -> 2 * (4 + 3) with a norm of 5, out 2 * 3 -> 8
    assert latent.params_by_group["attention"] == 2 * (24 + 36 + 3 + 56 + 70 + 5 + 48)
    assert latent.kv_bytes_per_token == 2 * 7 * 2
    assert latent.decode_attention_flops(1) == 2 * 2 * 2 * (2 * 5 + 2)
