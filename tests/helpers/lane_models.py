"""Tiny models and schedules for lock-step tests: two layers, eight experts of which a token takes two."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moeprof.capture.engines.base import Engine, ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.lockstep.lanes import LaneSetup, set_up_lane
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.protocol import LanePlan
from moeprof.core.trace import Pattern, Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.tiny_run import NUM_EXPERTS, SHAPE, TOP_K, VOCABULARY

torch.set_num_threads(1)
SETTINGS = TransformersSettings(kv_tokens=1024, max_batch_tokens=64)
MOE = ModelSpec(name="moe", path="moe")


def moe_model() -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SHAPE, num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K, moe_intermediate_size=16, intermediate_size=32
    )
    return Qwen3MoeForCausalLM(config).eval()


def dense_model() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, intermediate_size=32)).eval()


def schedule(
    num: int = 6, *, pattern: Pattern = "offline", concurrency: int | None = None, output: int = 5
) -> Schedule:
    """Prompts of 4, 5, 6... tokens; request r gives ``output`` + r mod 3 tokens."""
    random = np.random.default_rng(0)
    lengths = [output + r % 3 for r in range(num)]
    return Schedule(
        pattern=pattern,
        concurrency=concurrency,
        request_id=tuple(f"r{r}" for r in range(num)),
        arrival_s=np.zeros(num),
        input_ids=tuple(random.integers(3, VOCABULARY, 4 + r).astype(np.int32) for r in range(num)),
        output_tokens=np.array(lengths, dtype=np.int64),
        output_ids=tuple(random.integers(3, VOCABULARY, n).astype(np.int32) for n in lengths),
        request_class=("all",) * num,
        session=("",) * num,
        prefix_blocks=((),) * num,
        outputs="forced",
        num_characters=np.full(num, -1, dtype=np.int64),
    )


def seat(
    name: str,
    model: Any,
    *,
    rung: str | None = None,
    distinct: int | None = None,
    settings: TransformersSettings = SETTINGS,
    spec: ModelSpec = MOE,
) -> LaneSetup:
    def build(model: Any, listeners: ListenerSet) -> Engine:
        return build_engine(model, settings, listeners)

    plan = LanePlan(name=name, model=spec, rung=rung, distinct=distinct)
    return set_up_lane(plan, model, find_moe_layers(model), build)
