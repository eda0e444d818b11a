"""The whole built-in list against the figures that vendors publish, and public configs against theirs.

What a vendor rounds to a digit or two cannot be met closer; further than the usual tolerance only with a reason.
"""

from __future__ import annotations

from typing import Any

import pytest

from moeprof.analysis.params import Question, figures
from moeprof.capture.models.count import count_model, count_system
from moeprof.core.errors import ModelError
from moeprof.core.hardware import find_datasheet
from moeprof.core.known_models import CONVENTIONS, System, systems
from moeprof.core.model_facts import ModelFacts
from tests.helpers.shared_data import shared

USUAL = 0.015  # half of the last digit of figures such as 37B and 3.3B
TOTAL = {
    "glam-64b-64e": (0.032, "1.2T is rounded from 1.16T"),
    "kimi-k2": (0.027, "1T is rounded from 1.03T"),
    "moonlight-16b-a3b": (0.044, "the published total leaves embeddings out"),
    "granite-3.0-1b-a400m": (0.027, "1.3B is rounded from 1.33B"),
}
ACTIVE = {
    "qwen3-30b-a3b": (0.017, "3.3B is cut off from 3.35B"),
    "deepseek-v2-lite": (0.022, "2.4B is rounded from 2.45B"),
    "qwen3.5-35b-a3b": (0.019, "3B is a name, rounded to a digit"),
    "glm-4.7-flash": (0.088, "3B is a name, rounded to a digit"),
    "granite-3.0-1b-a400m": (0.055, "400M is rounded to a digit"),
    "hunyuan-a13b": (0.020, "13B is rounded from 12.75B"),
    "nllb-moe-54b": (0.023, "3.3B is the dense model that costs as much"),
    "jetmoe-8b": (0.031, "2.2B is rounded, and no convention gives it"),
    "grok-1": (0.027, "no convention gives the 86B of the card"),
    "snowflake-arctic": (0.019, "17B is rounded from 17.3B"),
    "longcat-flash": (0.133, "27B is an average over tokens that pick experts which compute nothing"),
}
ROWS = [row for row in systems() if row.kind == "model"]


def counted(row: System) -> ModelFacts:
    found = count_system(row).facts
    assert found is not None
    return found


def active_error(row: System) -> float:
    """Ours over the published figure less one, in the vendor's convention where it is settled, else the nearest."""
    assert row.published_active_params is not None
    names = [CONVENTIONS[row.convention]] if row.convention else list(CONVENTIONS.values())
    return min((float(getattr(counted(row), name)) / row.published_active_params - 1 for name in names), key=abs)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_is_its_published_total_and_active_count(row: System) -> None:
    assert row.source and "defaults" not in row.source, "a source is where the figures are published"
    assert row.published_total_params is not None
    allowed, _ = TOTAL.get(row.name, (USUAL, ""))
    assert abs(counted(row).total_params / row.published_total_params - 1) <= allowed
    if row.published_active_params is None:
        assert row.published_as or row.name == "flexolmo-7x7b", "why there is none"
        return
    allowed, _ = ACTIVE.get(row.name, (USUAL, ""))
    assert abs(active_error(row)) <= allowed


def test_no_exception_is_wider_than_it_must_be() -> None:
    for row in ROWS:
        if row.name in TOTAL:
            error = abs(counted(row).total_params / (row.published_total_params or 1) - 1)
            assert USUAL < error > TOTAL[row.name][0] - 0.002, row.name
        if row.name in ACTIVE:
            assert USUAL < abs(active_error(row)) > ACTIVE[row.name][0] - 0.002, row.name
    assert {*TOTAL, *ACTIVE} <= {row.name for row in ROWS}


# -- public configs ----------------------------------------------------------------------------------------------------

# Total and active parameters of the language model in billions, as the cards say them or as was worked out from them.
PUBLIC = {
    "params-gemma4-26b/google--gemma-4-26B-A4B_config.json": (25.233, 3.822),
    "params-kimi-k2/moonshotai--Kimi-K2-Instruct_config.json": (1026.4, 32.86),
    "params-vl-vision-counted-active/Qwen--Qwen3-VL-30B-A3B-Instruct_config.json": (30.532, 3.353),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_public_configs_are_counted_as_their_cards_say(case: str) -> None:
    facts = count_model(str(shared(f"cases/{case}"))).facts
    assert facts is not None
    total, active = PUBLIC[case]
    text = facts.total_params - sum(facts.other_parts.values())
    assert text / 1e9 == pytest.approx(total, rel=5e-5)
    assert facts.active_params / 1e9 == pytest.approx(active, rel=5e-4)


def asked(name: str, *, batch: int, context: int, device: str = "H200 SXM") -> dict[str, Any]:
    sheet = find_datasheet(device)
    assert sheet is not None
    question = Question(batches=(batch,), context=context, devices=(sheet,))
    return {figure.name: figure.value for figure in figures(count_model(name), question)}


def test_a_tower_beside_a_language_model_keeps_nothing() -> None:
    for name in ("qwen3-vl-30b-a3b", "qwen3-30b-a3b"):
        found = asked(str(shared(f"cases/kv-of-vision-tower/{name}.json")), batch=64, context=32768)
        assert (found["kv_bytes_per_token"], found["devices_needed"]) == (98_304, 3)


def test_windows_bound_what_is_read() -> None:
    window = str(shared("cases/sliding-window-kv/mixtral-window-32.json"))
    assert asked(window, batch=64, context=32768)["kv_bytes_per_step"] == 1_048_576


def test_mistrals_own_file_is_read() -> None:
    """As the file names no latents, attention has 2 * 7168 * 128 * 256 a layer; 58 layers have 129 experts."""
    facts = count_model(str(shared("cases/params-mistral-native/params.json"))).facts
    assert facts is not None
    attention, expert = 61 * 2 * 7168 * 128 * 256, 3 * 7168 * 4096
    ends, norms = 2 * 131072 * 7168, (2 * 61 + 1) * 7168
    rest = attention + 3 * 3 * 7168 * 16384 + 58 * 128 * 7168 + ends + norms
    assert facts.total_params == rest + 58 * 129 * expert
    assert facts.active_params == rest + 58 * 5 * expert


@pytest.mark.parametrize(
    ("case", "told"),
    [("qwen_7b", r"its code comes with the checkpoint \(`auto_map`\)"),
     ("XiaomiMiMo--MiMo-7B-Base_config", r"transformers 4\.40\.1, which wrote the config, is no newer")],
)  # fmt: skip
def test_own_code_sends_nobody_to_upgrade(case: str, told: str) -> None:
    with pytest.raises(ModelError, match=told) as raised:
        count_model(str(shared(f"cases/params-own-code/{case}.json")))
    assert "upgrade" not in str(raised.value)
