"""The built-in list: every row counted again, every published figure met, rumours and schemes marked."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import yaml

from moeprof.capture.models.count import count_system
from moeprof.capture.models.find import find_model, named_configs
from moeprof.core.description import ExpertsOnly, LayerDescription, described_facts
from moeprof.core.errors import ModelError
from moeprof.core.known_models import (
    FACTS,
    System,
    convention_of,
    find_system,
    nearest_names,
    systems,
)
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.headers import part_of, to_json
from moeprof.core.workload.models import ModelSpec
from tests.helpers.shared_data import SHARED, shared
from tests.helpers.system_facts import count_config

PUBLISHED = "params/published_params.yaml"
NAMES = [row.name for row in systems()]
COUNTED = [row.name for row in systems() if row.kind != "scheme"]
# Rows of the published file whose names here are other ones.
RENAMED = {
    "Llama-4-Scout (text)": "llama-4-scout",
    "Qwen3-8B (dense)": "qwen3-8b",
    "Mistral-7B (dense)": "mistral-7b",
    "Switch-C-2048": "switch-c",
    "GLaM-64B/64E": "glam-64b-64e",
}
CONVENTIONS = {
    "all_params_minus_idle_experts": "active_params",
    "minus_input_embedding": "active_params_no_embedding",
    "minus_embedding_and_lm_head": "active_params_no_embedding_no_head",
}


def row(name: str) -> System:
    found = find_system(name)
    assert found is not None, name
    return found


@cache
def facts(name: str) -> ModelFacts:
    counted = count_system(row(name)).facts
    assert counted is not None
    return counted


def published_rows() -> list[Any]:
    file = SHARED / "data" / PUBLISHED
    return [r["name"] for r in yaml.safe_load(file.read_text())["models"]] if file.exists() else ["absent"]


def listed(published: str) -> System:
    return row(RENAMED.get(published, published.removesuffix(" [HF default cfg]").casefold()))


# -- the list itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [row.name for row in systems() if row.config is not None])
def test_the_stored_count_of_every_config_is_what_its_class_gives(name: str) -> None:
    """After a wanted change: ``python -m tests.helpers.system_facts``, and read the diff."""
    assert facts(name) == count_config(row(name))


@pytest.mark.parametrize("name", COUNTED)
def test_the_groups_of_every_row_add_up_to_its_total(name: str) -> None:
    assert sum(facts(name).params_by_group.values()) == facts(name).total_params


def test_only_configs_have_stored_counts() -> None:
    assert list(json.loads(FACTS.read_text())) == [row.name for row in systems() if row.config is not None]


@pytest.mark.parametrize("name", COUNTED)
def test_our_total_is_within_a_few_percent_of_the_published_one(name: str) -> None:
    """4.4 % is Moonlight, which publishes its total without embeddings; 3.2 % is GLaM's 1.2T, rounded from 1.16T."""
    published = row(name).published_total_params
    if published is None:
        assert row(name).kind in ("rumour", "shape")
        return
    assert facts(name).total_params == pytest.approx(published, rel=0.045)


def test_every_system_that_the_field_names_is_there() -> None:
    wanted = "mixtral-8x7b llama-2-70b switch-c glam-64b-64e gpt-4 expert-choice soft-moe deepseek-v3 qwen3-30b-a3b "
    wanted += "olmoe-1b-7b gpt-oss-20b"
    assert set(wanted.split()) <= set(NAMES)


def test_figures_that_papers_print_are_met() -> None:
    assert round(facts("switch-c").total_params / 1e9) == 1571
    assert round(facts("switch-xxl").total_params / 1e9) == 395
    assert round(facts("glam-64b-64e").active_params / 1e9, 1) == 96.6
    assert round(facts("llama-2-70b").total_params / 1e9, 2) == 68.98
    assert round(facts("mixtral-8x7b").active_params / 1e9, 1) == 12.9
    assert round(facts("gpt-oss-120b").total_params / 1e9, 2) == 116.83
    assert round(facts("gpt-oss-120b").active_params_no_embedding / 1e9, 2) == 5.13
    assert round(facts("mixtral-8x22b").total_params / 1e9, 1) == 140.6


def test_names_stand_once_and_every_row_says_its_source() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 41
    for system in systems():
        assert system.source and system.title, system.name
        given = [what for what in (system.config, system.layers, system.experts_only) if what is not None]
        assert len(given) == (0 if system.kind == "scheme" else 1), system.name


def test_a_rumour_is_no_published_figure() -> None:
    rumour = row("gpt-4")
    assert rumour.status == "unconfirmed rumour"
    assert rumour.published_total_params is None and rumour.published_active_params is None
    assert (facts("gpt-4").total_params, facts("gpt-4").active_params) == (8 * 220 * 10**9, 2 * 220 * 10**9)


@pytest.mark.parametrize("name", ["expert-choice", "soft-moe"])
def test_a_routing_scheme_says_what_active_means(name: str) -> None:
    assert "active parameters" in row(name).note
    assert count_system(row(name)).facts is None


@pytest.mark.parametrize("text", ["Mixtral-8x7B", "mixtral 8x7b", "mistralai/Mixtral-8x7B-v0.1"])
def test_a_row_is_found_by_name_title_or_hub_id(text: str) -> None:
    assert row(text).name == "mixtral-8x7b"


def test_a_name_nearly_right_gets_the_nearest() -> None:
    assert nearest_names("deepseek_v3")[0] == "deepseek-v3"
    assert "gpt-oss-20b" in nearest_names("gpt-oss")
    assert nearest_names("zzzz") == []


def test_workloads_find_the_same_configs_and_the_names_of_before() -> None:
    configs = named_configs()
    assert {"mixtral-8x7b", "qwen3-30b-a3b", "olmoe-1b-7b", "qwen3-8b", "cpu-moe-211m", "deepseek-v3"} <= set(configs)
    assert all(isinstance(config["model_type"], str) for config in configs.values())
    assert configs["cpu-moe-211m"]["dtype"] == "float32"
    numbers = [v for config in configs.values() for key, v in config.items() if key.endswith(("size", "theta"))]
    assert all(isinstance(v, int | float) for v in numbers)


def test_a_row_without_a_class_is_counted_and_not_run() -> None:
    with pytest.raises(ModelError, match=r"can be counted .* and not run"):
        find_model(ModelSpec(name="m", config="glam-64b-64e", weights="random"))
    found = find_model(ModelSpec(name="m", config="deepseek-v3", weights="random"))
    assert found.config["n_routed_experts"] == 256


# -- conventions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "letter"),
    [("mixtral-8x7b", "A"), ("qwen3-30b-a3b", "A"), ("olmoe-1b-7b", "A"), ("dbrx", "A"), ("jamba-v0.1", "A"),
     ("gpt-oss-20b", "B"), ("deepseek-v3", "B"), ("glm-4.5", "C"), ("minimax-text-01", "C"),
     ("moonlight-16b-a3b", "C")],
)  # fmt: skip
def test_the_vendors_convention_is_named(name: str, letter: str) -> None:
    follows = convention_of(row(name), facts(name))
    assert follows is not None
    assert (follows.letter, follows.is_settled) == (letter, True)
    assert abs(follows.error_ratio) < 0.022


def test_a_figure_that_no_convention_gives_is_not_forced_into_one() -> None:
    assert convention_of(row("longcat-flash"), facts("longcat-flash")) is None
    follows = convention_of(row("jetmoe-8b"), facts("jetmoe-8b"))
    assert follows is not None and (follows.letter, follows.is_settled) == ("C", False)


# -- the published file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", published_rows())
def test_every_row_of_the_published_file_is_reproduced_to_its_stated_error(name: str) -> None:
    rows = yaml.safe_load(shared(PUBLISHED).read_text())["models"]
    published = next(r for r in rows if r["name"] == name)
    system, truth = listed(name), published["computed"]
    ours = facts(system.name)
    if name == "Switch-XXL":  # described with the paper's gated experts, which the class that was counted there lacks
        assert ours.total_params == pytest.approx(395e9, rel=0.0015)
        return
    # Formulas there leave out norms or routers, and LongCat's is rounded to 10 M.
    rel = 2e-4 if published.get("formula_only") else 0
    assert ours.total_params == pytest.approx(truth["total"], rel=rel, abs=0)
    if "active_all" in truth:
        assert ours.active_params == pytest.approx(truth["active_all"], rel=rel, abs=0)
    if published.get("total_rel_err") is not None:
        assert system.published_total_params is not None
        error = ours.total_params / system.published_total_params - 1
        assert error == pytest.approx(published["total_rel_err"], abs=6e-5)
    if published.get("convention"):
        nearest = CONVENTIONS[published["convention"]["nearest"]]
        assert system.published_active_params is not None
        error = getattr(ours, nearest) / system.published_active_params - 1
        assert error == pytest.approx(published["convention"]["rel_err"], abs=6e-5)


# -- descriptions ------------------------------------------------------------------------------------------------------


def test_a_description_is_counted_as_by_hand() -> None:
    shape = LayerDescription(
        hidden_size=8, num_layers=4, vocab_size=10, num_heads=2, head_dim=4, num_kv_heads=1, dense_width=16,
        num_experts=4, top_k=2, expert_width=6, shared_width=6, moe_every=2,
    )  # fmt: skip
    counted = described_facts(shape, name="m", source="test")
    # q and o: 8*8, k and v: 8*4; layers 1 and 3 have experts of 3*8*6 and one shared of the same size.
    assert counted.params_by_group == {
        "embedding": 80,
        "attention": 4 * (64 + 64 + 32 + 32),
        "dense_mlp": 2 * 3 * 8 * 16,
        "router": 2 * 4 * 8,
        "shared_experts": 2 * 144,
        "routed_experts": 2 * 4 * 144,
        "norm": 4 * 2 * 8 + 8,
        "lm_head": 80,
        "other": 0,
    }
    assert counted.active_params == counted.total_params - 2 * 2 * 144
    assert [layer.name for layer in counted.moe_layers] == ["layers.1", "layers.3"]
    assert counted.kv_bytes_per_token == 2 * 4 * 4 * 2  # k and v, head_dim 4, 4 layers, 2 bytes
    assert part_of(ModelFacts, to_json(counted)) == counted


@pytest.mark.parametrize("name", ["mixtral-8x7b", "qwen1.5-moe-a2.7b", "llama-2-70b", "moonlight-16b-a3b"])
def test_a_description_and_the_class_agree_where_both_exist(name: str) -> None:
    """All but attention, which has biases or a latent in some: the class and the formula count the same."""
    config = row(name).config
    assert config is not None
    moe = config.get("num_local_experts") or config.get("num_experts") or config.get("n_routed_experts") or 0
    width = config.get("moe_intermediate_size") or (config["intermediate_size"] if moe else 0)
    shape = LayerDescription(
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        dense_width=config["intermediate_size"],
        num_experts=moe,
        top_k=config.get("num_experts_per_tok", 0),
        expert_width=width,
        shared_width=config.get("shared_expert_intermediate_size") or config.get("n_shared_experts", 0) * width,
        first_moe_layer=config.get("first_k_dense_replace", 0),
    )
    described = described_facts(shape, name="m", source="test").params_by_group
    counted = facts(name).params_by_group
    for group in ("embedding", "dense_mlp", "shared_experts", "routed_experts", "lm_head"):
        assert described[group] == counted[group], group


def test_a_description_that_cannot_be_is_refused() -> None:
    good: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "vocab_size": 10, "num_heads": 2, "head_dim": 4}
    LayerDescription(**good)
    with pytest.raises(ModelError, match="num_layers: found 0; 1 or more"):
        LayerDescription(**{**good, "num_layers": 0})
    with pytest.raises(ModelError, match="top_k: found 5 of 4 experts"):
        LayerDescription(**good, num_experts=4, top_k=5, expert_width=3)
    with pytest.raises(ModelError, match="num_layers: found 2, fewer"):
        LayerDescription(**good, first_moe_layer=3)


def test_a_rumour_counts_experts_and_nothing_else() -> None:
    counted = described_facts(ExpertsOnly(num_experts=4, expert_params=10, top_k=1), name="m", source="test")
    assert (counted.total_params, counted.active_params) == (40, 10)
    assert counted.kv_bytes_per_token is None
    assert set(counted.params_by_group) == {"routed_experts"}
