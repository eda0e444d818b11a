"""Memory predicted before anything loads: parts that can be computed in the head, KV space, words of a refusal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moeprof.capture.devices.gpu import Gpu, GpuReading
from moeprof.capture.memory import predict as fitting
from moeprof.capture.memory.predict import Fit, device_memory, predict, remedy
from moeprof.capture.memory.shape import (
    DeviceMemory,
    ModelMemory,
    activation_bytes,
    dtype_bytes,
    load_extra_bytes,
    model_memory,
)
from moeprof.capture.models.find import ModelSource, named_configs
from moeprof.capture.models.shapes import kv_bytes_per_token, read_widths
from moeprof.core.errors import ModelError
from moeprof.core.record.headers import to_json
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

GB = 10**9
# One card of 141 GB, 0.6 GB of it in use.
CARD = DeviceMemory(total_bytes=141 * GB, free_bytes=int(140.4 * GB), is_host=False)
HOST = DeviceMemory(total_bytes=24 * GB, free_bytes=20 * GB, is_host=True)
SETTINGS = TransformersSettings(max_batch_tokens=8192, dtype="bfloat16")
# Bytes of weights in bfloat16: 2 * the counts of the built-in list.
WEIGHTS = {
    "mixtral-8x7b": 93_405_585_408,
    "qwen3-30b-a3b": 61_064_245_248,
    "olmoe-1b-7b": 13_838_323_712,
    "gpt-oss-20b": 41_829_514_368,
    "deepseek-v2-lite": 31_412_968_448,
}


def schedule(num: int = 64, concurrency: int | None = 64, tokens: int = 1000) -> Any:
    ones = np.ones(num, dtype=np.int64)
    columns = {"input_tokens": ones * (tokens - 10), "output_tokens": ones * 10}
    return type("S", (), columns | {"concurrency": concurrency, "turns": None})


def source(config: dict[str, Any]) -> ModelSource:
    return ModelSource(folder=None, hub_id=None, config=config, tokenizer_file=None, weights_bytes=None)


def random_spec(name: str) -> ModelSpec:
    return ModelSpec(name=name, config=name, weights="random")


def predicted(
    names: tuple[str, ...], memory: DeviceMemory = CARD, settings: TransformersSettings = SETTINGS, planned: Any = None
) -> Fit:
    return predict(
        [random_spec(name) for name in names],
        {name: source(named_configs()[name]) for name in names},
        [planned or schedule()],
        settings=settings,
        memory=memory,
        weights_bytes={name: WEIGHTS[name] for name in names},
    )


@pytest.mark.parametrize(
    ("name", "per_token"),
    [
        ("mixtral-8x7b", 32 * 8 * 256 * 2),  # layers * heads * (key + value) * bytes
        ("qwen3-30b-a3b", 48 * 4 * 256 * 2),
        ("olmoe-1b-7b", 16 * 16 * 256 * 2),
        ("gpt-oss-20b", 24 * 8 * 128 * 2),
        ("deepseek-v2-lite", 27 * 16 * (128 + 64 + 128) * 2),  # expanded to all heads
    ],
)
def test_kv_bytes_per_token_of_the_models_of_the_card(name: str, per_token: int) -> None:
    assert kv_bytes_per_token(named_configs()[name]) == per_token


def test_a_cache_of_another_kind_is_not_guessed() -> None:
    assert kv_bytes_per_token(named_configs()["deepseek-v2-lite"], paged=False) is None
    assert kv_bytes_per_token(named_configs()["mixtral-8x7b"] | {"mamba_d_state": 16}) is None
    assert kv_bytes_per_token({"model_type": "what"}) is None
    assert kv_bytes_per_token(named_configs()["mixtral-8x7b"], width_bytes=4) == 2 * 131072


TOY = {"hidden_size": 10, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 5, "vocab_size": 100}
TOY |= {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 20, "num_key_value_heads": 1}


def test_activations_are_counted_part_by_part() -> None:
    widths = read_widths(TOY)
    assert widths is not None
    # residual 40, attention 2 * (10 + 10) + 10 = 50, experts 3 * 2 * (10 + 20) = 180: 270 elements of 2 bytes a token
    assert activation_bytes(widths, tokens=3, logit_rows=0, width_bytes=2) == 3 * 270 * 2
    # logits: 100 in the dtype and in float32
    assert activation_bytes(widths, tokens=3, logit_rows=5, width_bytes=2) == 3 * 270 * 2 + 5 * 100 * 6
    # a twin of all 4 experts: 3 * 80 instead of 180; of 2: 3 * 40; of half: 3 * 20; of 7 units: 21
    for match, mlp in (("total", 240), ("active", 120), ("0.5x", 60), ("7", 21)):
        assert activation_bytes(widths, tokens=1, logit_rows=0, width_bytes=2, match=match) == (90 + mlp) * 2


def test_loading_a_checkpoint_joins_the_experts_of_a_layer() -> None:
    widths = read_widths(TOY)
    assert widths is not None
    # gate and up of 4 experts: 2 * 4 * 20 * 10 elements of 2 bytes, twice
    assert load_extra_bytes(widths, 2) == 2 * 3200
    spec, random = ModelSpec(name="m", path="org/m"), random_spec("m")
    assert model_memory(spec, TOY, 100, SETTINGS, is_host=False).load_extra_bytes == 6400
    assert model_memory(random, TOY, 100, SETTINGS, is_host=False).load_extra_bytes == 0


def test_auto_dtype_is_what_the_device_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, auto, config = random_spec("m"), TransformersSettings(), {"dtype": "bfloat16"}
    monkeypatch.setattr("moeprof.capture.memory.shape.cpu_flags", lambda: ["avx2"])
    assert dtype_bytes(spec, config, auto, is_host=False) == 2
    assert dtype_bytes(spec, config, auto, is_host=True) == 4
    assert dtype_bytes(replace(spec, dtype="float16"), config, auto, is_host=True) == 2
    monkeypatch.setattr("moeprof.capture.memory.shape.cpu_flags", lambda: ["avx512_bf16"])
    assert dtype_bytes(spec, config, auto, is_host=True) == 2


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_model_fits_the_card_with_the_cache_of_64_requests(name: str) -> None:
    fit = predicted((name,))
    assert fit.fits(name) and fit.together and fit.refusal is None
    assert fit.kv_tokens == fit.wanted_kv_tokens  # nothing had to be lowered
    fit.require()


def test_two_models_that_fill_the_card_are_loaded_in_turn_with_all_of_its_kv_space() -> None:
    fit = predicted(("mixtral-8x7b", "qwen3-30b-a3b"))  # 93 + 61 GB
    assert not fit.together and fit.kv_tokens == fit.wanted_kv_tokens
    assert all(fit.fits(name) for name in fit.models)


def test_small_models_lie_side_by_side() -> None:
    fit = predicted(("olmoe-1b-7b", "gpt-oss-20b"))
    assert fit.together and fit.kv_tokens == fit.wanted_kv_tokens


def test_all_models_get_the_kv_space_that_the_tightest_leaves() -> None:
    fit = predicted(("mixtral-8x7b", "qwen3-30b-a3b"), planned=schedule(num=4000, concurrency=None, tokens=8000))
    tightest = fit.models["mixtral-8x7b"]
    left = fit.usable_bytes - tightest.fixed_bytes
    # 256 sequences at once want 2.5 M tokens; Mixtral leaves some 30 GB at 131,072 bytes a token
    assert fit.wanted_kv_tokens > 2_000_000
    assert fit.kv_tokens == left // 131072 // 16 * 16
    assert 200_000 < fit.kv_tokens < 320_000


def test_on_a_host_a_worker_counts_its_libraries_and_a_small_model_is_not_free() -> None:
    fit = predict(
        [random_spec("m")], {"m": source(TOY)}, [schedule(num=2, tokens=20)],
        settings=TransformersSettings(dtype="float32"), memory=HOST, weights_bytes={"m": 1000},
    )  # fmt: skip
    needed = fit.needed_bytes("m")
    assert needed is not None and 720 * 2**20 < needed < 740 * 2**20  # and 20 MiB of recorders


@pytest.mark.parametrize(("match", "weights"), [("active", 25_757_753_344), ("total", 93_403_488_256)])
def test_a_full_mixtral_and_each_of_its_twins_fit_the_card_in_turn(match: str, weights: int) -> None:
    moe, config = random_spec("mixtral-8x7b"), source(named_configs()["mixtral-8x7b"])
    fit = predict(
        [moe, ModelSpec(name="twin", twin_of="mixtral-8x7b", match=match)],
        {"mixtral-8x7b": config, "twin": config},
        [schedule()],
        settings=SETTINGS,
        memory=CARD,
        weights_bytes={"mixtral-8x7b": WEIGHTS["mixtral-8x7b"], "twin": weights},
    )
    assert fit.fits("mixtral-8x7b") and fit.fits("twin") and fit.kv_tokens == fit.wanted_kv_tokens
    assert not fit.together  # 93 + 26 GB and two caches of 10 GB; 93 + 93 GB


def test_models_stepped_in_turn_in_one_process_must_fit_at_once() -> None:
    fit = predicted(("mixtral-8x7b", "qwen3-30b-a3b"))
    assert fitting.in_one_process(fit, ["qwen3-30b-a3b"], "lockstep").refusal is None
    said = fitting.in_one_process(fit, ["mixtral-8x7b", "qwen3-30b-a3b"], "lockstep").refusal
    assert said is not None and said.startswith("lockstep: 2 models are stepped in turn in one process and need 14")
    assert "mixtral-8x7b 87 GiB, qwen3-30b-a3b 56.9 GiB" in said and "name fewer in lockstep.models" in said


def test_unknown_weights_are_no_verdict() -> None:
    fit = predict([random_spec("m")], {"m": source(TOY)}, [], settings=SETTINGS, memory=CARD, weights_bytes={"m": None})
    assert fit.fits("m") is None and fit.needed_bytes("m") is None and fit.refusal is None


def test_a_cache_that_is_too_large_is_refused_with_the_size_that_fits() -> None:
    asked = replace(SETTINGS, kv_tokens=1_000_000)
    fit = predicted(("mixtral-8x7b",), settings=asked)
    with pytest.raises(ModelError, match=r"model mixtral-8x7b: needs about .* lower engine\.kv_tokens from 1000000 to"):
        fit.require()
    assert fit.refusal is not None and "\n" not in fit.refusal
    lower = int(fit.refusal.rsplit(" ", 1)[1])
    assert predicted(("mixtral-8x7b",), settings=replace(asked, kv_tokens=lower)).refusal is None
    assert predicted(("mixtral-8x7b",), settings=replace(asked, kv_tokens=lower + 16)).refusal is not None


def test_weights_that_do_not_fit_say_how_many_layers_would() -> None:
    small = DeviceMemory(total_bytes=80 * GB, free_bytes=79 * GB, is_host=False)
    said = predicted(("mixtral-8x7b",), memory=small).refusal
    assert said is not None and "87 GiB weights" in said and "73.6 GiB of 74.5 GiB is free" in said
    assert "engine.memory_margin_ratio 0.05" in said
    # (79 - 4 margin - 0.7 context - 2.4 activations) / 93.4 * 32 = 24.6
    assert "24 of 32 layers (override: {num_hidden_layers: 24})" in said


def test_activations_that_do_not_fit_say_how_many_tokens_a_step_may_have() -> None:
    model = ModelMemory(
        weights_bytes=500, load_extra_bytes=0, kv_bytes_per_token=1, activation_bytes=1000, workspace_bytes=0,
        base_bytes=0,
    )  # fmt: skip
    # 1,256 - 500 - 256 KV tokens = 500, half of the activations of 512 tokens
    said = remedy(model, 1256, 400, TransformersSettings(max_batch_tokens=512))
    assert said == "lower engine.max_batch_tokens from 512 to 256 and engine.kv_tokens to 256"
    assert "leave no room for a step" in remedy(replace(model, weights_bytes=2000), 1256, 400, TransformersSettings())


def test_memory_of_a_gpu_is_what_its_driver_tells_and_else_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Known(Gpu):
        def read(self) -> GpuReading:
            return GpuReading(memory_total_bytes=141, memory_used_bytes=41)

    assert device_memory("cuda:0", Known()) == DeviceMemory(total_bytes=141, free_bytes=100, is_host=False)
    monkeypatch.setattr(fitting, "free_memory_bytes", lambda device, gpu: 7)
    assert device_memory("cpu", None).free_bytes == 7 and device_memory("cpu", None).is_host


def test_the_record_keeps_what_was_predicted() -> None:
    facts = to_json(predicted(("olmoe-1b-7b",)).header())
    assert facts["together"] is True and facts["margin_bytes"] == int(0.05 * 141 * GB)
    assert facts["models"]["olmoe-1b-7b"]["weights_bytes"] == WEIGHTS["olmoe-1b-7b"]
    assert facts["models"]["olmoe-1b-7b"]["needed_bytes"] > WEIGHTS["olmoe-1b-7b"]


def test_no_more_requests_are_counted_on_than_the_engine_takes_at_once() -> None:
    few, all_of_them = (fitting.all_at_once_tokens(schedule(1000, None, 100), most=most) for most in (10, None))
    # 8 pages of 16 a request, and 8 spare ones, with a fifth on top
    assert few == int((10 * 8 + 8) * 16 * 1.2) and all_of_them == int((1000 * 8 + 8) * 16 * 1.2)


def test_layers_of_two_widths_are_forecast_as_wide_as_each_is() -> None:
    """Windows with 2 heads of 8, full layers with 1 head of 16; without a list of layers nobody can tell."""
    config = {
        "model_type": "gemma4", "num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "head_dim": 8,
        "num_key_value_heads": 2, "global_head_dim": 16, "num_global_key_value_heads": 1, "dtype": "bfloat16",
    }  # fmt: skip
    kinds = ["sliding_attention", "sliding_attention", "full_attention"]
    assert kv_bytes_per_token(config | {"layer_types": kinds}) == 2 * (2 * 2 * (8 + 8) + 1 * (16 + 16))
    assert kv_bytes_per_token(config) is None
