"""Both sides of a check, planted: baselines whose every figure is given, and launch pairs whose ratios are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.core.baseline.baseline import Baseline, BaselineModel
from moeprof.core.metric import MetricValue
from moeprof.core.record.lanes import LanePass
from tests.helpers.lane_records import write_lanes

RUN_FACTS = {"device": "1 x NVIDIA H200", "threads": 8, "versions": "moeprof 1", "outputs": "forced"}
MODEL_FACTS = {
    "model": "TestForCausalLM with 1,000 parameters, checkpoint",
    "revision": "a" * 12,
    "dtype": "bfloat16",
    "backend": "sdpa, grouped_mm, continuous",
    "routing_policy": "native",
    "tokenizer": "t",
    "schedule": "sha256 " + "5" * 64,
    "requests": [8, "offline", None, None],
}
DECODE = {"phase": "decode", "traffic": "offline", "window": "total"}
STEADY = (1.00, 1.02, 0.98, 1.01, 0.99, 1.00)  # launches: about 1.4 % apart


def value(name: str, number: float | None, **labels: str) -> MetricValue:
    """A figure without an interval."""
    return MetricValue(name=name, value=number, labels=labels, reasons=() if number is not None else ("no_counter",))


def exact(name: str, number: float, **labels: str) -> MetricValue:
    """A counted fact."""
    return MetricValue(name=name, value=number, exact=True, labels=labels)


def launches(name: str, seconds: Sequence[float], **labels: str) -> tuple[MetricValue, ...]:
    """A timed figure: its mean, and each launch's own where there are several."""
    mean = MetricValue(name=name, value=float(np.mean(seconds)), n=len(seconds), labels=labels)
    own = [value(name, one, **labels, launch=str(number)) for number, one in enumerate(seconds)]
    return (mean, *(own if len(own) > 1 else ()))


def model(*values: MetricValue, name: str = "moe", facts: Mapping[str, Any] | None = None) -> BaselineModel:
    """A model with these figures."""
    return BaselineModel(name=name, facts={**MODEL_FACTS, **(facts or {})}, metrics=values)


def side(*models: BaselineModel, run: str = "run", facts: Mapping[str, Any] | None = None, **fields: Any) -> Baseline:
    """One side of a check."""
    plain = Baseline(
        name=run,
        run=run,
        created_at=f"2026-11-22T00:00:00+00:00 {run}",
        moeprof="1",
        workload="w",
        device="1 x NVIDIA H200",
        device_kind="cuda",
        status="done",
        facts={**RUN_FACTS, **(facts or {})},
        usd_per_second=0.001,
        models=models,
    )
    return replace(plain, **fields)


def priced(times: float, method: str) -> tuple[MetricValue, ...]:
    """An output price of about ``times`` a dollar over six launches, by this split, which leaves it 20 % either way."""
    name, where = "usd_per_1m_output_tokens", {"traffic": "offline"}
    return (
        *launches(name, [times * s for s in STEADY], **where),
        *launches(f"{name}_low", [0.8 * times], **where),
        *launches(f"{name}_high", [1.2 * times], **where),
        exact("mixed_steps_ratio", 0.4, split_method=method, **where),
    )


def stepped(times: float = 1.0, seconds: Sequence[float] = STEADY, run: str = "run", **fields: Any) -> Baseline:
    """A side with decode steps of ``times`` the seconds of each launch."""
    return side(model(*launches("step_mean_s", [times * s for s in seconds], **DECODE)), run=run, **fields)


def pairs(
    folder: Path, ratios: Sequence[float], *, lanes: Mapping[str, Any] | None = None, **written: Any
) -> tuple[LanePass, ...]:
    """One launch pair per ratio: base steps of 10 ms, new steps of ratio times that; ``lanes`` replaces the seconds."""
    return tuple(
        write_lanes(folder, lanes or {"base": 0.01, "new": 0.01 * ratio}, launch=number, **written)
        for number, ratio in enumerate(ratios)
    )
