"""Very many layers are counted by multiplication, and as building them counts."""

from __future__ import annotations

from typing import Any

import pytest

from moeprof.capture.models.count import facts_of_config
from moeprof.capture.models.counting import many_layers
from moeprof.core.errors import ModelError

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64,
    "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip


@pytest.mark.parametrize("extra", [{}, {"decoder_sparse_step": 3}, {"mlp_only_layers": [0, 5]}])
def test_multiplied_layers_are_those_that_would_be_built(
    extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CONFIG, **extra, "num_hidden_layers": 53}
    built = facts_of_config(config, name="m", source="s")
    monkeypatch.setattr(many_layers, "MANY_LAYERS", 45)
    assert facts_of_config(config, name="m", source="s") == built


def test_a_config_of_very_many_layers_answers() -> None:
    facts = facts_of_config({**CONFIG, "num_hidden_layers": 20_000}, name="m", source="s")
    assert facts.num_layers == 20_000
    assert facts.moe_layers[-1].name == "model.layers.19999.mlp"


@pytest.mark.parametrize(
    "extra",
    [{"mlp_only_layers": [300]}, {"layer_types": ["full_attention"] * 999 + ["sliding_attention"]},
     {"first_k_dense_replace": 400}],
)  # fmt: skip
def test_layers_that_are_not_alike_are_not_multiplied(extra: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="1,000 layers, which are not alike"):
        facts_of_config({**CONFIG, **extra, "num_hidden_layers": 1000}, name="m", source="s")
