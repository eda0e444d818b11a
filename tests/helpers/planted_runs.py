"""Runs with planted step times, for the tests of comparisons: launches of two rounds of 60 steps each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from tests.helpers.records import make_facts, make_pass, make_requests, make_routing, make_steps, write_record

PRICING = Pricing(usd_per_device_hour=3.6)
PREFILL, DECODE = 10, 50


def launch(seed: int, slow: float = 1.0, *, moe: bool = False, rounds: int = 2, **steps: Any) -> list[PassTables]:
    """Steps of 10 ms times ``slow``, 5 % noise a step and 2 % a launch; requests take 100 ms + 3 x 10 ms."""
    generator = np.random.default_rng(seed)
    of_launch = slow * generator.lognormal(0, 0.02)
    passes = []
    for number in range(rounds):
        table = make_steps(
            PREFILL + DECODE,
            step_s=0.01 * of_launch * generator.lognormal(0, 0.05, PREFILL + DECODE),
            phase=["prefill"] * PREFILL + ["decode"] * DECODE,
            prefill_tokens=[16] * PREFILL + [0] * DECODE,
            decode_tokens=[0] * PREFILL + [4] * DECODE,
            **steps,
        )
        noise = of_launch * generator.lognormal(0, 0.02)
        requests = make_requests(12, arrival_s=np.zeros(12), ttft_s=0.1 * noise, itl_s=0.01 * noise)
        counts = np.ones((PREFILL + DECODE, 2, 2, 4), dtype=np.int64)
        routing = make_routing(counts) if moe else None
        passes.append(
            make_pass(name=f"round-{number}", traffic="offline", steps=table, requests=requests, routing=routing)
        )
    return passes


def planted_run(
    folder: Path, *, seed: int = 0, slow: float = 1.0, launches: int = 6, rounds: int = 2, **record: Any
) -> Summary:
    """An MoE, and a dense model whose every step takes ``slow`` times as long."""
    models = {
        "moe": (make_facts(), [launch(1000 * seed + i, moe=True, rounds=rounds) for i in range(launches)]),
        "dense": (
            make_facts(num_experts=0, name="dense"),
            [launch(1000 * seed + 500 + i, slow, rounds=rounds) for i in range(launches)],
        ),
    }
    return summarise(open_record(write_record(folder, models, **record)), PRICING)
