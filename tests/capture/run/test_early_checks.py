"""Settings that cannot work are told before a folder is made or a model loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.models.find import find_model, named_configs
from moeprof.capture.run.prepare import _check_engine, check_early
from moeprof.core.errors import ModelError, WorkloadError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Traffic
from moeprof.core.workload.workload import Workload


def workload(engine: TransformersSettings | None = None, **routing: Any) -> Workload:
    model = ModelSpec(name="moe", config="mixtral-8x7b", weights="random", routing=RoutingPolicy(**routing))
    traffic = Traffic(
        arrivals=Arrivals(pattern="offline"),
        lengths=LengthPair(input=Lengths(value=8), output=Lengths(value=8)),
        num_requests=1,
    )
    return Workload(name="w", traffic=traffic, models=(model,), engine=engine or TransformersSettings())


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            TransformersSettings(decode_graphs="on"),
            "decode_graphs: on needs a CUDA device, this is cpu; set auto or off",
        ),
        (TransformersSettings(batching="static", prefix_cache=True), "prefix_cache: static batches share no prefixes"),
    ],
)
def test_engine_settings_that_cannot_be_had_are_refused_by_name(engine: TransformersSettings, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        check_early(workload(engine), "cpu")


def test_captured_steps_are_allowed_on_a_gpu() -> None:
    check_early(workload(TransformersSettings(decode_graphs="on")), "cuda:0")


@pytest.mark.parametrize("policy", ["profile", "replay"])
def test_a_routing_file_that_is_not_there_is_told_in_one_line(policy: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"model moe: routing.path: .*counts.csv is not there") as told:
        check_early(workload(policy=policy, path=str(tmp_path / "counts.csv")), "cpu")
    assert "\n" not in str(told.value)


def test_a_choice_that_the_file_does_not_hold_names_the_model_and_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    file.write_text("model,layer,expert,count\na,0,0,3\na,0,1,1\nb,0,0,1\nb,0,1,1\n", encoding="utf-8")
    with pytest.raises(WorkloadError, match=r"model moe: routing.select.model: .*holds no 'c'; choose one of a, b"):
        check_early(workload(policy="profile", path=str(file), select={"model": "c"}), "cpu")
    check_early(workload(policy="profile", path=str(file), select={"model": "a"}), "cpu")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"hidden_size": 63}, "hidden_size: found 63; a multiple of num_attention_heads, 32"),
        ({"num_key_value_heads": 5}, "num_attention_heads: found 32; a multiple of num_key_value_heads, 5"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok: found 9; at most the number of experts, 8"),
        ({"hidden_size": "big"}, "hidden_size: found 'big'; a whole number of 1 or more"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused_with_their_keys(override: dict[str, Any], said: str) -> None:
    spec = ModelSpec(name="moe", config="mixtral-8x7b", weights="random", override=override)
    with pytest.raises(ModelError, match=f"model moe: override: {said}"):
        find_model(spec)


def test_every_named_config_passes_with_a_change_that_changes_nothing() -> None:
    for name, config in named_configs().items():
        same: dict[str, Any] = {key: config[key] for key in ("hidden_size", "num_hidden_layers") if key in config}
        find_model(ModelSpec(name="moe", config=name, weights="random", override=same))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (
            TransformersSettings(decode_attention="triton"),
            "engine.decode_attention: triton needs a CUDA device, this is cpu",
        ),
        (TransformersSettings(cpu_kernels="all"), "engine.cpu_kernels: all needs a C\\+\\+ compiler"),
    ],
)
def test_kernels_that_this_machine_cannot_have_are_refused_before_anything_loads(
    monkeypatch: pytest.MonkeyPatch, engine: TransformersSettings, said: str
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(WorkloadError, match=said):
        _check_engine(engine, "cpu")
