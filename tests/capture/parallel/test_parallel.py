"""Ranks before any process starts: what a workload may ask for, where ranks meet, and what adds up over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moeprof.analysis.metrics.resources.work import limits_of
from moeprof.capture.coverage import tiny_config, tiny_model
from moeprof.capture.devices.gpu import Gpu, GpuReading
from moeprof.capture.devices.meters import GpusMeter
from moeprof.capture.engines.base import SequenceInStep, Step
from moeprof.capture.memory.shape import DeviceMemory
from moeprof.capture.parallel import load
from moeprof.capture.parallel.engine import digest, settings_of_rank
from moeprof.capture.parallel.facts import combined
from moeprof.capture.parallel.load import check_shares
from moeprof.capture.parallel.mirror import on_device, on_host
from moeprof.capture.parallel.rendezvous import Rendezvous, device_of, leads_torchrun, threads_of
from moeprof.capture.run.ranks import check_parallel, gpus_of_ranks
from moeprof.core.errors import UnsupportedModelError, WorkloadError
from moeprof.core.pricing import resolve_pricing
from moeprof.core.workload.engine import Parallel, TransformersSettings
from moeprof.core.workload.workload import Prices, load_workload
from tests.helpers.records import launch_header, make_facts

TWO = Parallel(plan="expert", ranks=2)
WORKLOAD = """\
name: shared
traffic: {{arrivals: {{pattern: offline}}, lengths: {{input: {{distribution: fixed, value: 8}},
  output: {{distribution: fixed, value: 6}}}}, num_requests: 2}}
models: [{{name: moe, path: org/name}}{models}]
device: {device}
engine: {{parallel: {{plan: {plan}, ranks: {ranks}}}{more}}}
"""


def workload(tmp_path: Path, **values: Any) -> Any:
    """A workload that asks for ranks; keys as in WORKLOAD."""
    given = {"plan": "tensor", "ranks": 2, "more": "", "models": "", "device": "cpu"} | values
    file = tmp_path / "w.yaml"
    file.write_text(WORKLOAD.format(**given), encoding="utf-8")
    return load_workload(file)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ranks": 1}, r"w\.yaml:6: engine\.parallel: ranks: found 1; 2 to 64 is allowed"),
        ({"plan": "pipeline"}, r"w\.yaml:6: engine\.parallel\.plan: found 'pipeline'; allowed: tensor, expert"),
        ({"more": ", decode_graphs: on"}, r"w\.yaml:6: engine: decode_graphs: found 'on' beside parallel"),
        ({"more": ", compile: layers"}, r"w\.yaml:6: engine: compile: found 'layers' beside parallel"),
    ],
)
def test_a_workload_that_asks_ranks_for_what_they_cannot_do_names_the_line(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkloadError, match=said):
        workload(tmp_path, **values)


def test_without_the_key_one_process_holds_the_model(tmp_path: Path) -> None:
    assert TransformersSettings().parallel is None
    assert workload(tmp_path, plan="expert").engine.parallel == TWO


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"models": ", {name: small, twin_of: moe, match: active}"}, "model small is a twin"),
        ({"more": "}\nlockstep: {concurrency: [1]"}, "lockstep steps two models in turn in one process"),
        ({"device": "cuda:1"}, "device: found cuda:1; ranks take the devices from cuda:0 on"),
    ],
)
def test_what_no_plan_covers_is_refused_before_anything_loads(
    values: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(WorkloadError, match=said):
        check_parallel(workload(tmp_path, **values))


def test_each_rank_needs_a_gpu_of_its_own(tmp_path: Path) -> None:
    def find(uuid: str | None, *, position: int) -> Gpu:
        return Gpu(uuid=f"GPU-{position}") if position < 2 else Gpu(reason="no_such_gpu")

    two = gpus_of_ranks(workload(tmp_path), "cuda:0", find=find)
    assert [gpu.uuid for gpu in two] == ["GPU-1"]
    assert gpus_of_ranks(workload(tmp_path), "cpu", find=find) == []
    with pytest.raises(WorkloadError, match="ranks: found 3; 2 GPUs are visible, and each rank needs one"):
        gpus_of_ranks(workload(tmp_path, ranks=3), "cuda:0", find=find)


def test_a_rank_finds_the_variables_of_torchrun_and_nothing_stays_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    before = dict(os.environ)
    with Rendezvous(ranks=2, port=5000).as_rank(1, "cpu"):
        found = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")]
        assert found == ["1", "1", "2", "127.0.0.1", "5000"]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "" and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ
    assert dict(os.environ) == before


def test_under_torchrun_the_first_process_runs_and_another_number_of_processes_is_refused() -> None:
    started = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}
    assert leads_torchrun(None, {}) and leads_torchrun(TWO, {})
    assert leads_torchrun(TWO, started | {"RANK": "0"}) and not leads_torchrun(TWO, started | {"RANK": "1"})
    with pytest.raises(WorkloadError, match=r"torchrun started 2 processes, the workload asks for 1; write `engine:"):
        leads_torchrun(None, started | {"RANK": "0"})


def test_ranks_take_a_device_each_and_share_the_threads_of_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [device_of("cuda:0", rank) for rank in range(3)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert device_of("cpu", 1) == "cpu"
    assert (threads_of(None, "cpu", 2), threads_of(3, "cpu", 2), threads_of(None, "cuda:0", 2)) == (4, 3, None)
    model = outline("qwen3_moe")
    own = settings_of_rank(TransformersSettings(parallel=TWO), model)
    assert (own.parallel, own.decode_graphs, own.run_ahead) == (None, "off", "off")
    assert own.experts == model.config._experts_implementation  # no trials, and no kernel that knows no ranks


def test_the_checksum_of_a_pass_tells_who_was_in_a_step_and_what_each_chose() -> None:
    def step(chosen: int) -> Step:
        one = SequenceInStep(
            request=0, query_tokens=1, past_tokens=4, is_prefill=False, token=5, chosen=chosen, finished=False
        )
        return Step(start_s=0.0, end_s=1.0, device_s=None, sequences=(one,))

    assert digest(0, step(5)) == digest(0, step(5)) != digest(0, step(6))
    assert digest(digest(0, step(5)), step(6)) != digest(digest(0, step(6)), step(5))
    assert digest(3, None) == 3


def test_arguments_of_a_call_arrive_at_another_rank_as_they_were() -> None:
    args = (torch.tensor([[1, 2], [3, 4]]), [torch.tensor([0.5], dtype=torch.bfloat16)], {"use_cache": False})
    there = on_device(on_host(args), torch.device("cpu"))
    assert torch.equal(there[0], args[0]) and there[1][0].dtype == torch.bfloat16 and float(there[1][0]) == 0.5
    assert there[2] == {"use_cache": False}


def test_memory_adds_up_over_ranks_but_a_cpu_s_ranks_have_one_machine() -> None:
    each = [
        {"kind": "host", "host_rss_peak_bytes": 5, "device_total_bytes": 100, "kv_cache_bytes": 2, "load_s": 1},
        {"kind": "host", "host_rss_peak_bytes": 7, "device_total_bytes": 100, "kv_cache_bytes": None},
    ]
    assert combined(each, sum) == {"host_rss_peak_bytes": 12}
    assert combined(each, max) == {"host_rss_peak_bytes": 7}
    on_gpus: list[dict[str, Any]] = [{"kind": "device", "device_total_bytes": 100}] * 2
    assert combined(on_gpus, sum) == {"device_total_bytes": 200}


class StubGpu:
    """Reads the same every time."""

    def __init__(self, **values: Any) -> None:
        self._reading = GpuReading(**values)

    def open_events(self) -> None: ...

    def read(self) -> GpuReading:
        return self._reading


def test_power_of_ranks_is_summed_and_the_slowest_clock_and_the_hottest_chip_count() -> None:
    one: Any = StubGpu(power_w=300.0, temperature_c=60, sm_clock_mhz=1900.0, throttle_reasons=1, utilisation_ratio=1.0)
    two: Any = StubGpu(power_w=200.0, temperature_c=70, sm_clock_mhz=1500.0, throttle_reasons=4, utilisation_ratio=0.5)
    row = GpusMeter([one, two]).read()
    assert (row["power_w"], row["temperature_c"], row["sm_clock_mhz"], row["throttle_reasons"]) == (500, 70, 1500, 5)
    assert row["device_utilisation_ratio"] == 0.75
    assert row["energy_counter_j"] is None  # neither tells it
    half: Any = StubGpu(power_w=None)
    assert GpusMeter([one, half]).read()["power_w"] is None


def test_memory_of_ranks_is_as_often_the_tightest_device_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from moeprof.capture.run import ranks

    other = DeviceMemory(total_bytes=100, free_bytes=60, is_host=False)
    monkeypatch.setattr(ranks, "device_memory", lambda device, gpu: other)
    first = DeviceMemory(total_bytes=100, free_bytes=90, is_host=False)
    whole = ranks.memory_of_all(first, [Gpu(uuid="GPU-1")])
    assert (whole.total_bytes, whole.free_bytes) == (200, 120)
    assert ranks.memory_of_all(first, []) == first


def test_two_gpus_cost_twice_and_have_twice_the_bandwidth() -> None:
    prices = Prices(usd_per_device_hour=3.6)
    one, two = (resolve_pricing(prices, "any", num_devices=n).usd_per_second for n in (1, 2))
    assert [one, two] == pytest.approx([0.001, 0.002])
    facts = make_facts()
    peaks = {"bandwidth_bytes_per_s": 1e9, "flops_per_s": {"float32": 1e12}}
    on_gpus = {"peaks": peaks, "engine": {"ranks": 2, "device": "cuda:0", "dtype": "float32"}}
    assert limits_of(launch_header(on_gpus), facts).bandwidth_bytes_per_s == 2e9
    assert limits_of(launch_header(on_gpus), facts).flops_per_s == 2e12
    on_cpu = {"peaks": peaks, "engine": {"ranks": 2, "device": "cpu", "dtype": "float32"}}
    assert limits_of(launch_header(on_cpu), facts).bandwidth_bytes_per_s == 1e9


def outline(model_type: str, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = tiny_config(model_type)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_heads_and_experts_that_cannot_be_shared_evenly_are_refused_with_the_numbers_that_can() -> None:
    three = Parallel(plan="tensor", ranks=3)
    with pytest.raises(UnsupportedModelError, match=r"model m: 2 key-value heads cannot be shared by 3 ranks.* be 2$"):
        check_shares("m", outline("qwen3_moe"), three)
    six = outline("qwen3_moe", num_experts=6, num_attention_heads=8, num_key_value_heads=4)
    with pytest.raises(UnsupportedModelError, match=r"6 experts cannot be shared by 4 ranks.* be 2, 3, 6$"):
        check_shares("m", six, Parallel(plan="expert", ranks=4))
    check_shares("m", outline("qwen3_moe"), TWO)
    check_shares("m", outline("olmoe"), TWO)  # its keys are gathered, so heads do not matter


def test_an_architecture_without_a_plan_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModelError, match="no tensor parallel plan for GptOssForCausalLM"):
        check_shares("m", outline("gpt_oss"), Parallel(plan="tensor", ranks=2))
    with pytest.raises(UnsupportedModelError, match="no expert parallel plan for LongcatFlashForCausalLM; use"):
        check_shares("m", outline("longcat_flash"), TWO)
    check_shares("m", outline("gpt_oss"), TWO)


def test_experts_kept_whole_on_older_transformers_add_up_to_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Any = tiny_model("qwen3_moe").get_submodule("model.layers.0.mlp.experts")
    hidden_Td = torch.linspace(-1, 1, 5 * 32).view(5, 32)
    picks_TK = torch.tensor([[0, 5], [3, 4], [7, 1], [2, 6], [4, 0]])
    weights_TK = torch.tensor([[0.25, 0.75]] * 5)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, group: None)
    with torch.inference_mode():
        expected_Td = whole(hidden_Td, picks_TK, weights_TK)
        parts = [part_of(whole, rank)(hidden_Td, picks_TK, weights_TK) for rank in (0, 1)]
    assert torch.allclose(parts[0] + parts[1], expected_Td, atol=1e-9)
    assert all(float(part_Td.abs().max()) > 1e-5 for part_Td in parts)  # both did something


def part_of(whole: Any, rank: int) -> Callable[..., torch.Tensor]:
    """The forward of a module that holds four of the eight experts."""
    import copy

    part = copy.deepcopy(whole)
    part.num_experts = 4
    part._is_expert_parallel = True  # what transformers' own rule sets
    for name in ("gate_up_proj", "down_proj"):
        setattr(part, name, torch.nn.Parameter(getattr(whole, name)[4 * rank : 4 * rank + 4].clone()))
    mesh: Any = type("Mesh", (), {"get_local_rank": lambda self: rank, "get_group": lambda self: None})()
    load.WholeExperts().install_forward(part, mesh)
    forward: Callable[..., torch.Tensor] = part.forward
    return forward


def test_the_expert_rules_of_older_transformers_keep_the_router_s_picks_as_they_are() -> None:
    tensor = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.experts.down_proj": "rowwise",
    }
    expert = {
        "layers.*.mlp.gate": "ep_router",
        "layers.*.mlp.experts": "moe_tp_experts",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
    }
    assert load.expert_plan(tensor, expert) == {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.mlp.experts": load.NAME,
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
    }
