"""How long silence is fine, where a hung process stands, and what a device's errors mean. No process takes seconds."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moeprof.capture.devices.errors import device_reason, device_sentence
from moeprof.capture.protocol import Order, Report
from moeprof.capture.worker.watch import (
    BETWEEN_S,
    COMPILING_S,
    LOADING_S,
    STOP_GRACE_S,
    Watchdog,
    answer_stack_requests,
    ask_for_stacks,
    stacks_of_crash,
    where,
)
from moeprof.core.errors import EngineError, OutOfMemoryError


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def progress(**data: Any) -> Report:
    given = {"pass": "round-0", "steps": 1, "done": 0, "refused": 0, "total": 9, "longest_step_s": 0.0} | data
    return Report(event="progress", data=given)


class Watched:
    """A watchdog of 60 s and its clock."""

    def __init__(self, order: Order, base_s: float = 60.0, **settings: Any) -> None:
        self.clock = Clock()
        self.dog = Watchdog(base_s, clock=self.clock, **settings)
        self.dog.begin(order)

    def reason_after(self, silence_s: float) -> str | None:
        self.clock.now_s += silence_s
        overdue = self.dog.overdue()
        self.clock.now_s -= silence_s
        return None if overdue is None else overdue.reason

    def limit_s(self) -> float:
        """The longest whole number of seconds that is fine."""
        return next(float(s) for s in range(100_000) if self.reason_after(s + 1) is not None)


PASS = Order(command="pass", name="round-0")


def test_a_step_may_take_the_base_and_fifty_times_the_longest_so_far() -> None:
    watched = Watched(PASS)
    watched.dog.on_report(progress())
    assert watched.limit_s() == 60
    watched.dog.on_report(progress(longest_step_s=2.0))
    assert watched.limit_s() == 60 + 100
    assert watched.reason_after(161) == "hung_step"


def test_a_compiling_model_may_take_longer() -> None:
    watched = Watched(PASS, compiles=True)
    watched.dog.on_report(progress())
    assert watched.limit_s() == 60 + COMPILING_S


def test_any_report_is_a_sign_of_life() -> None:
    watched = Watched(PASS)
    watched.dog.on_report(progress())
    for _ in range(10):  # an open loop without arrivals for ten minutes
        watched.clock.now_s += 59
        assert watched.dog.overdue() is None
        watched.dog.on_report(Report(event="alive", data={}))


def test_work_that_is_no_step_has_its_own_limits() -> None:
    assert Watched(Order(command="prepare")).limit_s() == LOADING_S
    watched = Watched(PASS)
    assert watched.limit_s() == BETWEEN_S  # the engine may be built again before the first step
    watched.dog.on_report(progress())
    watched.dog.on_report(progress(done=8, refused=1))  # all nine requests are over: tables are written now
    assert watched.limit_s() == BETWEEN_S
    assert watched.reason_after(BETWEEN_S + 1) == "hung_setup"


@pytest.mark.parametrize("bound", [{"deadline_s": 1070.0}, {"max_seconds": 70.0}])
def test_a_pass_that_was_cut_by_time_may_write_its_tables(bound: dict[str, float]) -> None:
    watched = Watched(Order(command="pass", name="round-0", **bound))  # type: ignore[arg-type]
    watched.dog.on_report(progress())
    assert watched.reason_after(61) == "hung_step"
    assert watched.reason_after(70) is None


def test_zero_waits_for_ever_but_not_after_a_stop() -> None:
    watched = Watched(PASS, base_s=0.0)
    watched.dog.on_report(progress(longest_step_s=2.0))
    assert watched.reason_after(1e6) is None
    watched.dog.stop()
    assert watched.limit_s() == STOP_GRACE_S + 10
    assert watched.reason_after(100) == "hung_stop"


def test_the_message_says_how_long_and_which_setting() -> None:
    watched = Watched(PASS)
    watched.dog.on_report(progress(longest_step_s=0.5))
    watched.clock.now_s += 90
    overdue = watched.dog.overdue()
    assert overdue is not None
    assert overdue.text == (
        "a step hung: nothing was heard for 90.0 s, where the longest step so far took 0.5 s; raise watchdog_s (60) "
        "if steps may take so long"
    )


# -- stacks ------------------------------------------------------------------------------------------------------------


def test_a_process_tells_where_it_stands_without_the_folders_of_this_machine(tmp_path: Path) -> None:
    with answer_stack_requests(tmp_path / "stacks.txt"):
        stacks = ask_for_stacks(os.getpid(), tmp_path / "stacks.txt")
        faulthandler.unregister(signal.SIGUSR1)
        faulthandler.enable()  # as it is under pytest
    assert stacks is not None
    assert 'File "moeprof/capture/worker/watch.py"' in stacks
    assert "in ask_for_stacks" in stacks
    assert str(Path(__file__).parent.parent.parent) not in stacks


def test_a_process_that_crashes_tells_where(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from moeprof.capture.worker.watch import answer_stack_requests\n"
        "def worker_main():\n    os.abort()\n"
        "answer_stack_requests(pathlib.Path(sys.argv[1])); worker_main()"
    )
    file = tmp_path / "stacks.txt"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, check=False)
    assert done.returncode == -signal.SIGABRT
    stacks = stacks_of_crash(file)
    assert stacks is not None and stacks.startswith("Fatal Python error: Aborted")
    assert where(stacks) == "<string>:3 worker_main"
    assert stacks_of_crash(tmp_path / "none.txt") is None


def test_a_process_that_does_not_answer_gives_no_stacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeprof.capture.worker.watch.PATIENCE_S", 0.1)
    assert ask_for_stacks(2**22 + 1, tmp_path / "none.txt") is None


def test_the_place_is_the_innermost_frame_and_our_line_that_called_it() -> None:
    stacks = (
        'Thread 0x01 (most recent call first):\n  File "threading.py", line 1 in wait\n\n'
        'Current thread 0x02 (most recent call first):\n  File "torch/cuda/streams.py", line 231 in synchronize\n'
        '  File "moeprof/capture/engines/paged/engine.py", line 9 in step\n'
        '  File "moeprof/capture/worker/main.py", line 88 in worker_main\n'
    )
    assert where(stacks) == (
        "torch/cuda/streams.py:231 synchronize, called by moeprof/capture/engines/paged/engine.py:9 step"
    )
    assert where("no frames") is None


# -- errors of devices -------------------------------------------------------------------------------------------------

SAID = {
    "CUDA error: device-side assert triggered\nCompile with TORCH_USE_CUDA_DSA": "device_assert",
    "CUDA error: an illegal memory access was encountered": "device_error",
    "CUDA error: unspecified launch failure": "device_error",
    "CUDA error: the launch timed out and was terminated": "device_error",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx": "device_error",
    "Triton Error [CUDA]: an illegal memory access was encountered": "device_error",
    "CUDA error: GPU is lost": "device_lost",
    "CUDA error: uncorrectable ECC error encountered": "device_lost",
    "CUDA error: unknown error": "device_lost",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable": "device_lost",
    "No CUDA-capable device is detected": "device_lost",
    "CUDA error: out of memory": "out_of_memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)": "out_of_memory",
    "mat1 and mat2 shapes cannot be multiplied": None,
}


@pytest.mark.parametrize(("text", "reason"), SAID.items())
def test_errors_of_a_device_have_reason_codes(text: str, reason: str | None) -> None:
    assert device_reason(RuntimeError(text)) == reason


def test_types_tell_where_texts_do_not() -> None:
    assert device_reason(torch.OutOfMemoryError("no words")) == "out_of_memory"
    assert device_reason(OutOfMemoryError("ours")) == "out_of_memory"
    assert device_reason(torch.AcceleratorError("no words")) == "device_error"
    assert device_reason(ValueError("CUDA error: GPU is lost")) is None  # somebody speaks of it


def test_our_error_around_a_devices_has_its_reason() -> None:
    wrapped = EngineError("the step failed")
    wrapped.__cause__ = RuntimeError("CUDA error: GPU is lost")
    assert device_reason(wrapped) == "device_lost"
    assert device_reason(EngineError("the engine lost them")) is None


def test_the_sentence_is_one_line_that_says_what_to_do() -> None:
    error = RuntimeError("CUDA error: device-side assert triggered\nmore")
    assert device_sentence("device_assert", "cuda:0", error) == (
        "a kernel found its own input wrong on cuda:0, most often an index out of range (CUDA error: device-side "
        "assert triggered); CUDA_LAUNCH_BLOCKING=1 makes the stack point at it"
    )
