"""Planted baselines of one workload for the trend. Figures are invented. Same call, same baselines."""

from __future__ import annotations

import numpy as np

from moeprof.analysis.metrics.lookup import Key
from moeprof.core.baseline.baseline import Baseline, BaselineModel
from moeprof.core.metric import MetricValue

MODEL = "moe-demo"
DECODE: Key = ("step_mean_s", (("phase", "decode"),))
PREFILL: Key = ("step_mean_s", (("phase", "prefill"),))
WEIGHTS: Key = ("weights_bytes", ())
WANTED = ((MODEL, DECODE), (MODEL, PREFILL), (MODEL, WEIGHTS))
STEP_AT, NUM = 13, 20  # decode is 10 % slower from this baseline on; the driver changed with it
WEIGHTS_AT = 9


def baselines(num: int = NUM) -> list[Baseline]:
    """Baselines b01, b02, ... one a day: a driver makes decode 10 % slower, a commit adds 5 % weights."""
    rng = np.random.default_rng(1)
    return [one(number, rng) for number in range(1, num + 1)]


def one(number: int, rng: np.random.Generator) -> Baseline:
    """A baseline of 5 launches."""
    decode = 0.024 * (1.1 if number >= STEP_AT else 1.0) * float(np.exp(0.02 * rng.standard_normal()))
    prefill = 0.11 * float(np.exp(0.03 * rng.standard_normal()))
    weights = 210_000 if number >= WEIGHTS_AT else 200_000
    metrics = [
        *launched("step_mean_s", decode, rng, phase="decode"),
        *launched("step_mean_s", prefill, rng, phase="prefill"),
        MetricValue(name="weights_bytes", value=weights, exact=True),
    ]
    driver = "560.35" if number >= STEP_AT else "550.54"
    return Baseline(
        name=f"b{number:02}",
        run=f"run-{number}",
        created_at=f"2026-11-{number:02}T03:15:00+00:00",
        moeprof="0.1.0",
        workload="ci-smoke",
        device="1 x NVIDIA H200",
        device_kind="cuda",
        status="done",
        facts={"device": "1 x NVIDIA H200", "versions": f"moeprof 0.1.0, torch 2.13.0, driver {driver}"},
        usd_per_second=0.001 if number > 3 else 0.0009,
        models=(BaselineModel(name=MODEL, facts={}, metrics=tuple(metrics)),),
    )


def launched(name: str, mean: float, rng: np.random.Generator, **labels: str) -> list[MetricValue]:
    """A value and those of its five launches, which spread by 1 %."""
    values = [mean * float(np.exp(0.01 * rng.standard_normal())) for _ in range(5)]
    whole = MetricValue(name=name, value=sum(values) / 5, n=5, labels=labels)
    return [
        whole,
        *(MetricValue(name=name, value=v, labels={**labels, "launch": str(i)}) for i, v in enumerate(values)),
    ]
