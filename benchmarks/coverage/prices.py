"""Prices of input, output and all tokens against the true cost of every step, and of each side of a mixed one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.coverage.cells import Cell, holds
from benchmarks.coverage.worlds import IID, ROUNDS, World
from moeprof.analysis.metrics.cost.metrics import cost_metrics
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.pricing import Pricing
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps

NUM_ROUNDS, REQUESTS, OUTPUTS, PROMPT = 5, 30, 8, 32
PRICING = Pricing(usd_per_device_hour=3.6)  # 0.001 USD per second
PREFILL, MIXED, DECODE = 10, 20, 60
SHARED_S = 0.004  # what a mixed step saves, as both sides read the same weights
FACTS = make_facts()
BOUNDS = "the interval holds the bounds of the split, however well it was learnt"
NAMES = ("usd_per_1m_input_tokens", "usd_per_1m_output_tokens", "usd_per_1m_total_tokens")


def cells() -> Iterator[Cell]:
    """All of this file."""
    for world in (IID, ROUNDS[1]):
        for name in NAMES:
            trial = partial(_price, world, name, 1.0)
            note = BOUNDS if name != NAMES[2] else ""
            yield Cell(figure=name, world=f"{NUM_ROUNDS} rounds, {world.name}", kind="interval", trial=trial, note=note)
    for name in NAMES[:2]:
        yield Cell(
            figure=name,
            world="calibration steps take 20 % longer than they would in a mixed step",
            kind="interval",
            trial=partial(_price, IID, name, 1.2),
            note=BOUNDS,
        )


def _schedule() -> tuple[FloatArray, FloatArray, list[str]]:
    """Prompt and output tokens of every step, and its phase; the sizes vary, so that slopes can be learnt."""
    prompts = np.concatenate([np.tile([16, 32, 48], 10), np.zeros(DECODE)])
    outputs = np.concatenate([np.zeros(PREFILL), np.tile([2, 3], MIXED // 2), np.tile([2, 3], DECODE // 2)])
    return prompts, outputs, ["prefill"] * PREFILL + ["mixed"] * MIXED + ["decode"] * DECODE


def _alone(prompts: FloatArray, outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """True seconds of each side alone."""
    prefill, decode = 0.005 + 0.0002 * prompts, 0.005 + 0.0005 * outputs
    return np.where(prompts > 0, prefill, 0.0), np.where(outputs > 0, decode, 0.0)


def _steps(factors: FloatArray) -> pd.DataFrame:
    prompts, outputs, phases = _schedule()
    prefill, decode = _alone(prompts, outputs)
    step_s = (prefill + decode - SHARED_S * (np.array(phases) == "mixed")) * factors
    return _frame(prompts, outputs, phases, step_s)


def _frame(prompts: FloatArray, outputs: FloatArray, phases: Any, step_s: FloatArray) -> pd.DataFrame:
    return make_steps(
        len(step_s),
        step_s=step_s,
        phase=phases,
        prefill_tokens=prompts.astype(int).tolist(),
        decode_tokens=outputs.astype(int).tolist(),
        context_tokens=0,
        prefill_context_tokens=0,
    )


def _calibration(rng: np.random.Generator, bias: float) -> pd.DataFrame:
    prompts = np.concatenate([np.tile([16.0, 48.0], 4), np.zeros(8)])
    outputs = np.concatenate([np.zeros(8), np.tile([1.0, 3.0], 4)])
    prefill, decode = _alone(prompts, outputs)
    step_s = (prefill + decode) * bias * np.exp(0.02 * rng.standard_normal(16))
    return _frame(prompts, outputs, ["prefill"] * 8 + ["decode"] * 8, step_s)


def _truth(world: World) -> dict[str, float]:
    """By the Shapley value of the true costs; USD per 1M tokens."""
    prompts, outputs, phases = _schedule()
    prefill, decode = _alone(prompts, outputs)
    is_mixed = np.array(phases) == "mixed"
    saved = float((SHARED_S * is_mixed).sum()) / 2
    usd = 0.001 * world.mean
    sides = usd * (float(prefill.sum()) - saved), usd * (float(decode.sum()) - saved)
    tokens = float(REQUESTS * PROMPT), float(np.maximum(outputs, 1).sum())  # new tokens of the planted steps
    per_token = sides[0] / tokens[0], sides[1] / tokens[1], sum(sides) / sum(tokens)
    return dict(zip(NAMES, (1e6 * x for x in per_token), strict=True))


def _price(world: World, name: str, bias: float, rng: np.random.Generator) -> bool | None:
    wall, _ = world.factors(rng, NUM_ROUNDS, PREFILL + MIXED + DECODE)
    requests = make_requests(
        REQUESTS, arrival_s=np.zeros(REQUESTS), itl_s=0.001, output_tokens=OUTPUTS, input_tokens=PROMPT
    )
    rounds = [
        make_pass(name=f"round-{i}", traffic="offline", requests=requests, steps=_steps(own))
        for i, own in enumerate(wall)
    ]
    values = cost_metrics(rounds, PRICING, FACTS, _calibration(rng, bias))
    found = next(value for value in values if value.name == name)
    return holds((found.ci_low, found.ci_high), _truth(world)[name])
