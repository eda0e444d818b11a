"""Every MoE class of the installed transformers, tiny and random, through the real engine with the tap on."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
import transformers

from moeprof.capture.coverage import CoverageRow, coverage, moe_causal_lm_types
from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.static import StaticEngine

torch.set_num_threads(1)
# In transformers 5.17 Aria's experts are a grouped product that gets no picks; later they are as elsewhere.
REFUSED = {"doge", "aria_text"} if transformers.__version__.startswith("5.17.") else {"doge"}


def make_engine(model: Any, listeners: ListenerSet) -> Engine:
    """The engine that a run would choose; static batches while there is no chooser."""
    if importlib.util.find_spec("moeprof.capture.engines.hf") is None:
        return StaticEngine(model, max_batch=2, max_sequence_tokens=64, listeners=listeners)
    from moeprof.capture.engines.hf import build_engine
    from moeprof.core.workload.engine import TransformersSettings

    return build_engine(model, TransformersSettings(kv_tokens=256, max_batch=2, max_batch_tokens=64), listeners)


@pytest.fixture(scope="module")
def rows() -> dict[str, CoverageRow]:
    return {row.model_type: row for row in coverage(make_engine)}


def test_every_class_works_or_is_refused_by_name_with_a_reason(rows: dict[str, CoverageRow]) -> None:
    assert set(rows) == set(moe_causal_lm_types())
    failing = {name: row.reason for name, row in rows.items() if row.verdict == "fails"}
    assert not failing
    for row in rows.values():
        if row.verdict == "refused":
            assert row.architecture in row.reason


def test_counts_are_real_tokens_times_k_in_every_layer_phase_and_class(rows: dict[str, CoverageRow]) -> None:
    # 7 + 4 prompt tokens, 3 + 2 outputs: 11 prefill and (3 - 1) + (2 - 1) = 3 decode tokens.
    for row in rows.values():
        if row.check is not None:
            sums = next(check for check in row.check.checks if check.name == "counts_are_tokens_times_k")
            assert sums.passed and sums.detail.startswith("14 real tokens"), row.model_type


def test_the_architectures_that_break_the_rule_have_an_adapter(rows: dict[str, CoverageRow]) -> None:
    assert {name for name, row in rows.items() if row.verdict == "adapter"} >= {
        "jetmoe",
        "llama4_text",
        "longcat_flash",
        "zaya",
    }
    assert {name for name, row in rows.items() if row.verdict == "refused"} == REFUSED
    assert "hash" in rows["deepseek_v4"].reason
    llama4 = rows["llama4_text"].check
    assert llama4 is not None and llama4.executes_all_experts
