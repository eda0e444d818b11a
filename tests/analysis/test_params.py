"""``moeprof params``: arithmetic that fits in the head, every form of output, rumours marked, bad input in one line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.params import Figure, Question, figures, flops_per_token, notes_of, weights_bytes_per_step
from moeprof.capture.models.count import count_model
from moeprof.core.description import LayerDescription, described_facts
from moeprof.core.hardware import Datasheet
from moeprof.core.known_models import CountedModel
from tests.helpers.tiny_run import Ran, run_main

# d = 8, 2 layers with 4 experts of 3*8*5 = 120 parameters, top-2; attention 4 * 64 a layer, vocabulary 10.
TINY = LayerDescription(
    hidden_size=8, num_layers=2, vocab_size=10, num_heads=2, head_dim=4, num_experts=4, top_k=2, expert_width=5,
    norms_per_layer=0,
)  # fmt: skip
DEVICE = Datasheet(
    name="box", pattern="box", bf16_flops_per_s=1.0, bandwidth_bytes_per_s=1.0, memory_bytes=1000, source="", date=""
)
ATTENTION, ROUTER, EXPERT, TABLE = 2 * 256, 2 * 32, 120, 80
FORMS = ("table", "json", "csv", "md")


def tiny(**question: Any) -> dict[tuple[str, ...], Figure]:
    model = CountedModel(name="tiny", facts=described_facts(TINY, name="tiny", source="test"))
    found = figures(model, Question(**{"batches": (1, 3), "context": 10, **question}))
    return {(f.name, *f.labels.values()): f for f in found}


def value(found: dict[tuple[str, ...], Figure], *key: str) -> Any:
    return found[key].value


def params(*words: object) -> Ran:
    return run_main(["params", *words])


def metrics(ran: Ran) -> dict[str, dict[str, Any]]:
    assert (ran.code, ran.stderr) == (0, "")
    return {m["name"]: {k["name"]: k["value"] for k in m["metrics"]} for m in json.loads(ran.stdout)["models"]}


# -- arithmetic --------------------------------------------------------------------------------------------------------


def test_counts_of_a_small_moe_are_those_of_the_head() -> None:
    found = tiny()
    total = ATTENTION + ROUTER + 8 * EXPERT + 2 * TABLE
    assert value(found, "total_params") == total == 1696
    assert value(found, "active_params") == total - 2 * 2 * EXPERT == 1216
    assert value(found, "active_params_no_embedding") == 1216 - TABLE
    assert value(found, "active_params_no_embedding_no_head") == 1216 - 2 * TABLE
    assert value(found, "active_params_ratio") == 1216 / 1696
    assert value(found, "twin_params", "active") == 1216 - ROUTER
    assert value(found, "twin_params", "total") == 1696 - ROUTER
    assert [value(found, "weights_bytes", d) for d in ("bfloat16", "8 bits", "4 bits")] == [2 * 1696, 1696, 848]


def test_flops_of_a_token_are_two_per_parameter_it_passes_and_attention() -> None:
    facts = described_facts(TINY, name="tiny", source="test")
    through = ATTENTION + ROUTER + 2 * 2 * EXPERT + TABLE  # the head; the embedding is looked up
    assert flops_per_token(facts, 0) == 2 * through
    assert flops_per_token(facts, 10) == 2 * through + 10 * 4 * 8 * 2  # 4 * heads * head_dim * layers


def test_a_step_reads_the_experts_that_its_tokens_touch() -> None:
    found = tiny()
    resident = ATTENTION + ROUTER + TABLE
    assert value(found, "distinct_experts_per_step", "1", "10") == 2
    assert value(found, "weights_bytes_per_step", "1", "10") == 2 * (resident + 2 * 2 * EXPERT)
    # Three tokens with 2 of 4 each touch 4 * (1 - 1/8) = 3.5.
    assert value(found, "distinct_experts_per_step", "3", "10") == 3.5
    assert value(found, "weights_bytes_per_step", "3", "10") == 2 * (resident + 2 * 3.5 * EXPERT)
    kv = 2 * 8 * 2 * 2  # k and v, width 8, 2 layers, 2 bytes
    assert value(found, "kv_bytes_per_token") == kv
    assert value(found, "kv_bytes_per_step", "3", "10") == 3 * 11 * kv
    both = value(found, "weights_bytes_per_step", "3", "10") + 3 * 11 * kv
    assert value(found, "bytes_per_token", "3", "10") == both / 3


def test_with_many_tokens_every_weight_is_read() -> None:
    facts = described_facts(TINY, name="tiny", source="test")
    assert weights_bytes_per_step(facts, 10_000, 16) == pytest.approx(2 * (facts.total_params - TABLE))


def test_devices_hold_weights_and_the_keys_and_values_of_the_largest_batch() -> None:
    # 3392 B of weights and 3 * 10 * 64 B of KV in boxes that give 900 B.
    assert value(tiny(devices=(DEVICE,)), "devices_needed", "box", "bfloat16") == -(-(3392 + 1920) // 900) == 6
    assert value(tiny(devices=(DEVICE,), dtype="int4"), "devices_needed", "box", "int4") == -(-(848 + 1920) // 900)


def test_every_figure_has_a_card_of_its_unit_and_a_gap_its_reason() -> None:
    for name in ("gpt-4", "switch-xxl", "expert-choice", "glam-64b-64e"):
        for figure in figures(count_model(name), Question(devices=(DEVICE,))):
            assert card_for(figure.name).unit == figure.unit, figure.name
            assert figure.value is not None or figure.remark, figure.name


def test_what_a_rumour_does_not_say_is_not_made_up() -> None:
    found = {f.name: f for f in figures(count_model("gpt-4"), Question())}
    assert found["total_params"].value == 1.76e12
    for name in ("active_params_no_embedding", "kv_bytes_per_token", "num_layers", "bytes_per_token"):
        assert found[name].value is None and found[name].remark, name
    assert notes_of(count_model("gpt-4"))[0] == "UNCONFIRMED RUMOUR"


def test_an_encoder_with_a_decoder_has_no_work_per_token() -> None:
    found = {f.name: f for f in figures(count_model("switch-xxl"), Question())}
    for name in ("flops_per_token", "weights_bytes_per_step", "kv_bytes_per_token"):
        assert found[name].value is None
        assert "encoder and decoder" in found[name].remark


def test_bytes_as_stored_follow_the_vendors_format() -> None:
    """The checkpoint of gpt-oss-20b takes 12.8 GiB."""
    stored = count_model("gpt-oss-20b").stored_bytes
    assert stored is not None
    assert round(stored / 2**30, 1) == 12.8


# -- output ------------------------------------------------------------------------------------------------------------


def test_json_has_raw_numbers_under_the_names_of_metrics() -> None:
    found = metrics(params("mixtral-8x7b", "llama-2-70b", "--format", "json"))
    assert found["mixtral-8x7b"]["total_params"] == 46702792704
    assert found["mixtral-8x7b"]["active_params"] == 12879925248
    assert found["mixtral-8x7b"]["published_convention"] == "A"
    assert found["mixtral-8x7b"]["kv_bytes_per_token"] == 131072
    assert found["llama-2-70b"]["total_params"] == found["llama-2-70b"]["active_params"] == 68976648192


def test_csv_has_one_row_per_model_and_figure_with_equal_values() -> None:
    rows = list(csv.DictReader(io.StringIO(params("glam-64b-64e", "--format", "csv").stdout)))
    by_name = {r["name"]: r for r in rows}
    assert by_name["total_params"]["value"] == "1161756155904"
    assert by_name["total_params"]["status"] == "published"
    listed = metrics(params("glam-64b-64e", "--format", "json"))["glam-64b-64e"]
    assert {r["name"] for r in rows} == set(listed)


@pytest.mark.parametrize("form", FORMS)
def test_a_rumour_is_marked_in_every_form(form: str) -> None:
    ran = params("gpt-4", "--format", form)
    assert ran.code == 0
    assert "unconfirmed rumour" in ran.stdout
    listed = params("--list", "--format", form).stdout
    assert "unconfirmed rumour" in " ".join(listed.split()).casefold()
    if form == "csv":
        assert all(r["status"] == "unconfirmed rumour" for r in csv.DictReader(io.StringIO(ran.stdout)))


@pytest.mark.parametrize("form", FORMS)
def test_a_routing_scheme_says_what_active_means_in_every_form_that_has_notes(form: str) -> None:
    ran = params("expert-choice", "--format", form)
    assert ran.code == 0
    assert "routing scheme, not a model" in ran.stdout
    if form != "csv":
        assert "mean over tokens" in " ".join(ran.stdout.split())


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_tables_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = ["gpt-4", "glam-64b-64e", "grok-1", "snowflake-arctic", "deepseekmoe-16b", "switch-xxl"]
    lines = params(*names).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    heads = " ".join(lines)
    assert all(name in heads for name in names)
    shown = [line for line in lines if line.startswith("  total-matched")]
    assert len(shown) == {60: 6, 80: 2, 160: 1}[columns]
    assert sum(len(line.split()[1::2]) for line in shown) == len(names)


def test_the_list_has_every_row_and_our_count_beside_the_published_one() -> None:
    rows = {r["name"]: r for r in json.loads(params("--list", "--format", "json").stdout)}
    assert rows["switch-c"]["published_total_params"] == 1.571e12
    assert rows["switch-c"]["total_params"] == 1571308972448
    assert rows["glam-64b-64e"]["source"].startswith("arXiv")
    table = params("--list").stdout
    assert all(name in table.replace("\n", "") for name in ("mixtral-8x7b", "gpt-4", "soft-moe", "kimi-k2"))
    assert "how the vendor counts" in table


# -- models that are not in the list -----------------------------------------------------------------------------------


class UnseenConfig(PreTrainedConfig):  # type: ignore[misc]
    model_type = "moeprof_unseen"

    def __init__(self, width: int = 8, num_units: int = 4, chosen: int | None = 1, **more: Any) -> None:
        self.width, self.num_units, self.num_hidden_layers = width, num_units, 3
        if chosen is not None:
            self.top_k = chosen
        super().__init__(**more)


class UnseenBlock(nn.Module):
    def __init__(self, width: int, num_units: int) -> None:
        super().__init__()
        self.choose = nn.Linear(width, num_units, bias=False)
        self.units = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 6, bias=False), nn.Linear(6, width, bias=False)) for _ in range(num_units)
        )


class UnseenModel(PreTrainedModel):  # type: ignore[misc]
    config_class = UnseenConfig

    def __init__(self, config: UnseenConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(10, config.width)
        self.stack = nn.ModuleList(UnseenBlock(config.width, config.num_units) for _ in range(3))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.words


@pytest.fixture(scope="module")
def unseen() -> None:
    AutoConfig.register("moeprof_unseen", UnseenConfig)
    AutoModelForCausalLM.register(UnseenConfig, UnseenModel)


def folder(path: Path, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_an_architecture_never_seen_is_counted_by_structure(unseen: None, tmp_path: Path) -> None:
    found = metrics(params(folder(tmp_path / "new", model_type="moeprof_unseen"), "--format", "json"))["new"]
    assert found["total_params"] == 80 + 3 * (32 + 4 * 96)
    assert found["active_params"] == 80 + 3 * (32 + 96)
    assert (found["num_experts"], found["top_k"]) == (4, 1)


def test_an_active_count_that_nobody_can_know_is_refused_with_the_reason(unseen: None, tmp_path: Path) -> None:
    refused(folder(tmp_path / "new", model_type="moeprof_unseen", chosen=None), "nothing says how many a token uses")


def test_two_folders_of_one_name_are_told_apart(unseen: None, tmp_path: Path) -> None:
    for where in ("a", "b"):
        (tmp_path / where).mkdir()
    homes = [folder(tmp_path / where / "new", model_type="moeprof_unseen") for where in ("a", "b")]
    assert list(metrics(params(*homes, "--format", "json"))) == [str(home) for home in homes]


def test_weights_in_a_folder_are_bytes_as_stored(unseen: None, tmp_path: Path) -> None:
    home = folder(tmp_path / "new", model_type="moeprof_unseen")
    (home / "model.safetensors").write_bytes(b"x" * 77)
    assert count_model(str(home)).stored_bytes == 77


def test_a_quantised_config_says_that_its_bytes_stand_elsewhere(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10}
    home = folder(tmp_path / "q", model_type="qwen3", quantization_config={"quant_method": "gptq"}, **sizes)
    counted = count_model(str(home))
    assert counted.stored_bytes is None and "gptq" in counted.stored_reason
    (home / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 55}}')
    assert count_model(str(home)).stored_bytes == 55


def test_a_model_with_other_parts_says_what_they_weigh(tmp_path: Path) -> None:
    from transformers import Llama4Config

    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "vocab_size": 10, "num_local_experts": 2, "intermediate_size": 4, "intermediate_size_mlp": 4,
            "head_dim": 4}  # fmt: skip
    vision = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "vision_output_dim": 8, "projector_input_dim": 8, "projector_output_dim": 8}  # fmt: skip
    config = Llama4Config(text_config=text, vision_config=vision).to_dict()
    counted = count_model(str(folder(tmp_path / "seeing", **config)))
    assert counted.facts is not None
    assert "the language model alone" in counted.facts.notes[0]
    assert counted.facts.total_params < int(counted.facts.notes[0].split()[-2])


def test_a_description_of_layers_can_be_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("layers: {hidden_size: 8, num_layers: 2, vocab_size: 10, num_heads: 2, head_dim: 4,\n"
                    "  num_experts: 4, top_k: 2, expert_width: 5, norms_per_layer: 0}\n")  # fmt: skip
    assert metrics(params(file, "--format", "json"))["mine"]["total_params"] == 1696


def test_a_trillion_parameters_are_counted_without_a_byte_of_them() -> None:
    before = torch.get_default_device()
    counted = count_model("kimi-k2").facts
    assert counted is not None and counted.total_params > 10**12
    assert torch.get_default_device() == before


# -- bad input ---------------------------------------------------------------------------------------------------------


def refused(*words: object) -> str:
    """Runs the words but the last, which the one line on stderr has to hold."""
    ran = params(*words[:-1])
    assert ran.code == 2, ran.stdout
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert str(words[-1]) in ran.stderr, ran.stderr
    return ran.stderr


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    refused("mixtral", "did you mean mixtral-8x7b")
    refused("deepseek-v4", "did you mean deepseek-v3")
    refused("qqqqqqq", "`moeprof params --list`")
    refused("", "no model given")


def test_nothing_to_count_is_an_error() -> None:
    refused("no model given")
    refused("--list", "gpt-4", "--list stands alone")


def test_a_folder_or_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    refused(tmp_path, "no config.json")
    refused(tmp_path / "config.json", "no such file")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "nonsuch"}, "has no class for model_type 'nonsuch'"),
        ({"hidden_size": 8}, "names no model_type"),
        ({"model_type": "qwen3", "num_attention_heads": 0}, "the config cannot be built"),
        ({"model_type": "qwen3", "hidden_size": "wide"}, "the config cannot be used"),
        ({"model_type": "doge", "is_moe": True, "num_hidden_layers": 1}, "its active parameters cannot be counted"),
    ],
)
def test_a_config_that_cannot_be_counted_is_refused(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    refused(folder(tmp_path / "bad", **config), said)


def test_a_broken_description_names_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("layers:\n  hiden_size: 8\n")
    refused(file, "mine.yaml:2: layers.hiden_size: unknown key")


@pytest.mark.parametrize(
    ("option", "found", "said"),
    [
        ("--gpu", "H100", "did you mean H100 NVL or H100 PCIe or H100 SXM?"),
        ("--gpu", "abacus", "allowed: H200 NVL"),
        ("--batch", "0", "whole numbers from 1"),
        ("--batch", "1,x", "found 'x'"),
        ("--context", "-1", "0 to"),
    ],
)
def test_options_out_of_range_say_what_is_allowed(option: str, found: str, said: str) -> None:
    refused("gpt-4", f"{option}={found}", said)


@pytest.mark.parametrize(
    ("asked", "found"), [("H100 80GB", "H100 SXM"), ("h200", "H200 SXM"), ("A100 40 GB", "A100 SXM 40 GB")]
)
def test_devices_are_found_by_their_words(asked: str, found: str) -> None:
    said = params("gpt-4", "--gpu", asked, "--format", "csv").stdout
    assert f"devices_needed,device={found};" in said


def test_experts_beyond_those_there_are_counted_as_all_and_said(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 10, "num_experts": 4}
    home = folder(tmp_path / "many", model_type="qwen3_moe", num_experts_per_tok=9, **sizes)
    counted = count_model(str(home)).facts
    assert counted is not None
    assert counted.active_params == counted.total_params
    assert "asks for 9 experts per token" in " ".join(counted.notes)
