"""Bits per byte: against the library's own loss, against a model that knows nothing, and where it means nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moeprof.analysis.metrics.quality import NOT_MEASURED, quality_metrics
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.measure.quality import MAX_REQUESTS, measure_quality, no_quality, output_bits
from moeprof.capture.run.schedules import Scheduled
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prompts, Traffic
from moeprof.sources.schedule import BuiltSchedule, build_schedule
from moeprof.sources.tokenizer import load_tokenizer
from tests.helpers.tiny_run import VOCABULARY, Ran

NUM_REQUESTS = 20


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(tiny / "moe").eval()


@pytest.fixture(scope="module")
def built(tiny: Path) -> BuiltSchedule:
    fixed = LengthPair(input=Lengths(value=9), output=Lengths(value=5))
    traffic = Traffic(
        arrivals=Arrivals(pattern="offline"), lengths=fixed, prompts=Prompts(source="packaged"),
        num_requests=NUM_REQUESTS,
    )  # fmt: skip
    return build_schedule(traffic, tokenizer=load_tokenizer(tiny / "moe"), seed=1)


def loss_bits(model: Any, schedule: Schedule, row: int) -> float:
    """The library's own loss over the outputs alone, in bits."""
    assert schedule.output_ids is not None
    prompt, output = schedule.input_ids[row].tolist(), schedule.output_ids[row].tolist()
    labels = torch.tensor([[-100] * len(prompt) + output])
    with torch.no_grad():
        loss = model(torch.tensor([prompt + output]), labels=labels).loss
    return float(loss) * len(output) / math.log(2)


def test_bits_are_those_of_the_librarys_own_loss(model: Any, built: BuiltSchedule) -> None:
    schedule = built.measured
    found = measure_quality(model, schedule, [10] * NUM_REQUESTS, max_tokens=14)
    assert found["requests"] == NUM_REQUESTS
    assert found["tokens"] == 5 * NUM_REQUESTS
    assert found["bytes"] == 10 * NUM_REQUESTS
    for row, (bits, _) in enumerate(found["per_request"]):
        assert bits == pytest.approx(loss_bits(model, schedule, row), rel=1e-4)
    assert found["bits"] == pytest.approx(sum(bits for bits, _ in found["per_request"]))


def test_a_model_that_knows_nothing_needs_log2_of_its_vocabulary_per_token(model: Any) -> None:
    head = model.lm_head.weight.detach().clone()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    try:
        assert output_bits(model, [1, 2, 3], [4, 5]) == pytest.approx(2 * math.log2(VOCABULARY))
    finally:
        with torch.no_grad():
            model.lm_head.weight.copy_(head)


def test_the_engine_may_have_had_the_model_before(model: Any, built: BuiltSchedule) -> None:
    """A closed engine leaves its own attention on the model, which needs the engine."""
    before = output_bits(model, [1, 2, 3], [4, 5])
    build_engine(model, TransformersSettings(kv_tokens=256)).close()
    after = measure_quality(model, built.measured, [10] * NUM_REQUESTS, max_tokens=14)
    assert after["requests"] == NUM_REQUESTS
    assert output_bits(model, [1, 2, 3], [4, 5]) == pytest.approx(before)


def test_outputs_that_are_no_whole_text_and_requests_that_do_not_fit_are_left_out(
    model: Any, built: BuiltSchedule
) -> None:
    sizes = [None if row % 2 else 10 for row in range(NUM_REQUESTS)]
    assert measure_quality(model, built.measured, sizes, max_tokens=14)["requests"] == NUM_REQUESTS // 2
    none = measure_quality(model, built.measured, sizes, max_tokens=13)
    assert none == {"reason": "no output of the schedule is whole text that the model can hold"}


def test_it_ends_when_its_time_is_over_or_when_told_to(model: Any, built: BuiltSchedule) -> None:
    times = iter([0.0, 10.0, 19.0, 20.0])
    found = measure_quality(model, built.measured, [10] * NUM_REQUESTS, max_tokens=14, clock=lambda: next(times))
    assert found["requests"] == 3
    stopped = measure_quality(model, built.measured, [10] * NUM_REQUESTS, max_tokens=14, should_stop=lambda: True)
    assert stopped["requests"] == 1
    assert MAX_REQUESTS == 64


def test_where_a_figure_would_mean_nothing_the_reason_is_said(built: BuiltSchedule) -> None:
    trained, schedule = ModelSpec(name="a", path="somewhere"), built.measured
    assert no_quality(trained, schedule) is None
    assert no_quality(ModelSpec(name="a", config="c.json", weights="random"), schedule) == "random weights"
    twin = ModelSpec(name="t", twin_of="a", match="active")
    assert no_quality(twin, schedule) == "random weights in the twin's MLPs"
    assert no_quality(replace(twin, initialise="popular_experts"), schedule) is None
    balanced = replace(trained, routing=RoutingPolicy(policy="balanced"))
    assert no_quality(balanced, schedule) == "routing is overridden (balanced)"
    assert "not forced" in str(no_quality(trained, replace(schedule, output_ids=None, outputs="free")))


def test_bytes_are_those_of_the_text_and_half_a_character_is_no_text(built: BuiltSchedule) -> None:
    scheduled = Scheduled(
        tokenizer_hash="x", bundled=False, measured=built.measured, warmup=built.warmup, file_name="s",
        output_text=("abc", "é", "a\ufffd", None, "later"),
    )  # fmt: skip
    assert scheduled.output_bytes(4) == [3, 2, None, None]
    assert built.text is not None
    own = replace(scheduled, output_text=built.text.outputs).output_bytes(NUM_REQUESTS)
    assert own == [len(str(text).encode()) for text in built.text.outputs]


# -- the metric --------------------------------------------------------------------------------------------------------


def test_bits_per_byte_is_the_sum_of_bits_over_the_sum_of_bytes() -> None:
    pairs = [[10.0, 10.0], [90.0, 30.0]]
    told = {"quality": {"bits": 100.0, "bytes": 40, "requests": 2, "per_request": pairs}}
    (value,) = quality_metrics([{}, told])
    assert value.value == 2.5
    assert value.n == 2
    assert value.ci_low is None
    assert value.reasons == ("no interval: too few requests",)


def test_its_interval_holds_it_and_narrows_with_more_requests() -> None:
    generator = np.random.default_rng(0)

    def told(number: int) -> dict[str, Any]:
        pairs = np.stack([generator.normal(50, 10, number), np.full(number, 25.0)], axis=1)
        return {"quality": {"bits": float(pairs[:, 0].sum()), "bytes": 25 * number, "per_request": pairs.tolist()}}

    (few,), (many,) = quality_metrics([told(64)]), quality_metrics([told(640)])
    for value in (few, many):
        assert value.value is not None
        assert value.ci_low is not None
        assert value.ci_high is not None
        assert value.ci_low < value.value < value.ci_high
    assert many.ci_high - many.ci_low < few.ci_high - few.ci_low  # type: ignore[operator]


def test_what_was_not_measured_says_why() -> None:
    assert quality_metrics([{"quality": {"reason": "random weights"}}])[0].reasons == ("random weights",)
    assert quality_metrics([{}])[0].reasons == (NOT_MEASURED,)
    assert quality_metrics([])[0].value is None


def test_a_real_run_reports_it_for_every_model(tiny_run: tuple[Path, Ran]) -> None:
    summary = json.loads((tiny_run[0] / "summary.json").read_text())
    for name, model in summary["models"].items():
        (found,) = [value for value in model["metrics"] if value["name"] == "bits_per_byte"]
        told = json.loads((tiny_run[0] / name / "launch-0" / "launch.json").read_text())["quality"]
        assert found["value"] == pytest.approx(told["bits"] / told["bytes"])
        assert found["unit"] == "bits / byte"
        # Random weights as a checkpoint: about log2(400) = 8.6 bits a token of one to two bytes or more.
        assert 2 < found["value"] < 12
