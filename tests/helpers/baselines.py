"""Small baselines with round numbers, and when two are the same. Nothing here needs a record or torch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from moeprof.core.baseline.baseline import STEP_PHASES, Baseline, BaselineModel, RoutingLoad, StepSums
from moeprof.core.metric import MetricValue
from moeprof.core.record.picks import ForcedPicks

LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")


def make_picks(
    tokens: int = 64, *, layers: int = 2, top_k: int = 2, num_experts: int = 4, seed: int = 0
) -> ForcedPicks:
    """Uniform picks without replacement, the first half of the prompt; margins in halves of powers of two."""
    random = np.random.default_rng(seed)
    picks = random.random((tokens, layers, num_experts)).argsort(axis=-1)[..., :top_k]
    margin = random.integers(0, 64, (tokens, layers)) / 128
    margin[0, 0] = np.nan
    return ForcedPicks(
        picks_TLK=picks,
        request_T=np.arange(tokens) // 16,
        position_T=np.arange(tokens) % 16,
        class_T=np.zeros(tokens, dtype=np.int64),
        is_output_T=np.arange(tokens) >= tokens // 2,
        margin_TL=margin.astype(np.float32),
        layers=tuple(f"model.layers.{i}.mlp" for i in range(layers)),
        classes=("all",),
        tokens_sha256="c" * 64,
    )


def make_steps_of_launches(num: int = 6) -> StepSums:
    """10 s of prefill, 50 s of decode and no mixed step in each launch, of 10 and 50 steps."""
    return StepSums(
        launches=tuple(range(num)),
        seconds_LP=np.tile([10.0, 50.0, 0.0], (num, 1)),
        steps_LP=np.tile(np.array([10, 50, 0]), (num, 1)),
    )


def make_metrics() -> tuple[MetricValue, ...]:
    """One of each kind: exact, over three launches, not measured, not valid with nulls."""
    decode = {"phase": "decode", "traffic": "closed", "window": "total"}
    mean = MetricValue(name="step_mean_s", value=0.011, n=3, ci_low=0.01, ci_high=0.012, labels=decode)
    return (
        MetricValue(name="total_params", value=1_080_000, exact=True),
        mean,
        *(
            MetricValue(name=mean.name, value=value, labels={**decode, "launch": str(number)})
            for number, value in enumerate((0.010, 0.011, 0.012))
        ),
        MetricValue(name="ttft_p99_s", value=None, n=12, reasons=("12 independent samples, p99 needs 662",)),
        MetricValue(
            name="router_gini",
            value=0.25,
            valid=False,
            reasons=("the tap failed",),
            labels={"phase": "decode"},
            null={"uniform": 0.1, "marginal": 0.2},
        ),
    )


def make_model(name: str = "moe", **changes: Any) -> BaselineModel:
    """An MoE of two layers with four experts each."""
    counts = ((30, 30, 30, 30), (60, 30, 20, 10))
    model = BaselineModel(
        name=name,
        facts={"model": "TestForCausalLM with 1,080,000 parameters, checkpoint", "revision": "a", "dtype": "bfloat16",
               "requests": [4, "offline", None, 0.0]},
        metrics=make_metrics(),
        routing=RoutingLoad(
            layers=LAYERS, counts={"decode": counts, "prefill": counts}, tokens={"decode": 60, "prefill": 60}
        ),
        steps=make_steps_of_launches(),
        picks=make_picks(),
        top_k=(2, 2),
        num_experts=(4, 4),
        own_traffic="closed",
        priced_traffic="closed",
    )  # fmt: skip
    return replace(model, **changes)


def make_baseline(name: str = "main", **changes: Any) -> Baseline:
    """Of one MoE on a processor."""
    baseline = Baseline(
        name=name,
        run="20261121-smoke",
        created_at="2026-11-21T21:45:00+00:00",
        moeprof="0.1.0",
        workload="smoke",
        device="a processor, 2 logical (avx2)",
        device_kind="cpu",
        status="done",
        facts={"device": "a processor, 2 logical (avx2)", "threads": 1, "kv_tokens": None},
        usd_per_second=0.001,
        models=(make_model(),),
    )
    return replace(baseline, **changes)


def differing(one: Any, other: Any, place: str = "") -> list[str]:
    """Names of the fields in which two baselines (or parts of them) differ; arrays by content."""
    if isinstance(one, np.ndarray):
        same = np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        return [] if same and one.dtype == other.dtype else [place]
    if isinstance(one, Baseline | BaselineModel | StepSums | ForcedPicks):
        inside = [(getattr(one, f.name), getattr(other, f.name, None), f"{place}.{f.name}") for f in fields(one)]
        return [found for first, second, at in inside for found in differing(first, second, at)]
    if isinstance(one, tuple) and one and isinstance(one[0], BaselineModel):
        pairs = zip(one, other, strict=True)
        return [found for n, (a, b) in enumerate(pairs) for found in differing(a, b, f"{place}[{n}]")]
    return [] if one == other and type(one) is type(other) else [place]


assert len(STEP_PHASES) == 3, "make_steps_of_launches has three phases"
