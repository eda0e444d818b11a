"""Seconds per part of a step, read from planted traces as the profiler exports them. Times are microseconds."""

from __future__ import annotations

from typing import Any

import pytest

from moeprof.capture.measure.breakdown_trace import profiled_steps
from moeprof.core.record.breakdown import ProfiledStep

HOST, OTHER = 7, 8  # threads


def event(category: str, name: str, start: float, end: float, *, tid: int = HOST, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": end - start, "tid": tid, "args": args}


def op(name: str, start: float, end: float, **more: Any) -> dict[str, Any]:
    return event("cpu_op", f"aten::{name}", start, end, **more)


def part(name: str, start: float, end: float) -> dict[str, Any]:
    return event("user_annotation", f"moeprof:{name}", start, end)


def launch(at: float, number: int, *, category: str = "cuda_runtime") -> dict[str, Any]:
    return event(category, "cudaLaunchKernel", at, at + 0.5, correlation=number)


def kernel(name: str, start: float, length: float, number: int, *, category: str = "kernel") -> dict[str, Any]:
    return event(category, name, start, start + length, tid=99, correlation=number)


# A step of 100 us: the batch is prepared, experts run, a sum, the head, and a token is chosen.
STEP = [
    part("step", 0, 100),
    op("index_select", 2, 4),
    part("dispatch", 8, 61),
    part("experts", 10, 60),
    op("sort", 12, 20),
    op("_grouped_mm", 20, 50),
    op("copy_", 22, 24),
    op("mul", 50, 55),
    op("add", 62, 66),
    part("lm_head", 70, 80),
    op("linear", 71, 79),
    op("argmax", 85, 90),
]


def only(steps: list[ProfiledStep] | str) -> ProfiledStep:
    assert not isinstance(steps, str), steps
    (step,) = steps
    return step


def us(step: ProfiledStep) -> dict[str, float]:
    return {name: round(seconds * 1e6, 6) for name, seconds in step.stage_s.items()}


def test_operations_belong_to_the_innermost_part_and_of_experts_only_products_are_experts() -> None:
    step = only(profiled_steps(STEP, "operations"))
    assert us(step) == {"batch": 2, "dispatch": 13, "experts": 30, "elementwise": 4, "lm_head": 8, "sampling": 5}
    assert step.wall_s == pytest.approx(100e-6)
    assert step.launches == 7  # outermost operations: the copy inside of the product is part of it


def test_events_in_any_order_of_other_threads_and_outside_of_steps_change_nothing() -> None:
    more = [op("mm", 30, 40, tid=OTHER), op("mm", 110, 120), {"ph": "M", "name": "process_name"}]
    more.append(event("user_annotation", "ProfilerStep#1", 0, 100))
    assert profiled_steps([*more, *STEP[::-1]], "operations") == profiled_steps(STEP, "operations")


def test_each_step_has_its_own_parts() -> None:
    later = [event_ | {"ts": event_["ts"] + 1000} for event_ in STEP]
    steps = profiled_steps(STEP + later, "operations")
    assert not isinstance(steps, str)
    assert [us(step) for step in steps] == [us(only(profiled_steps(STEP, "operations")))] * 2


def test_a_trace_without_steps_says_so() -> None:
    assert profiled_steps([op("mm", 0, 1)], "operations") == "the profiler saw no step"


def on_a_device(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """The same step on a device that runs 500 us behind the host."""
    launches = [launch(3, 1), launch(13, 2), launch(25, 3), launch(51, 4), launch(63, 5), launch(72, 6), launch(86, 7)]
    kernels = [
        kernel("index", 500, 20, 1),
        kernel("radix_sort", 520, 30, 2),
        kernel("cutlass_grouped", 550, 300, 3),
        kernel("scale", 850, 10, 4),
        kernel("add", 860, 15, 5),
        kernel("gemv", 875, 50, 6),
        kernel("argmax", 925, 5, 7),
    ]
    return [*STEP, *launches, *kernels, *more]


def test_kernels_belong_to_the_part_that_launched_them() -> None:
    step = only(profiled_steps(on_a_device(), "kernels"))
    assert us(step) == {
        "batch": 20,
        "dispatch": 40,
        "experts": 300,
        "elementwise": 15,
        "lm_head": 50,
        "sampling": 5,
    }
    assert (step.launches, step.unplaced_s) == (7, 0)


def test_a_kernel_launched_without_an_operation_is_placed_by_its_launch_and_told_by_its_name() -> None:
    """As Triton launches: through the driver, with no operation of torch around it."""
    more = [launch(56, 8, category="cuda_driver"), kernel("fused_experts_kernel", 940, 100, 8)]
    more += [launch(57, 9, category="cuda_driver"), kernel("count_tokens", 1040, 7, 9)]
    step = only(profiled_steps(on_a_device(*more), "kernels"))
    assert us(step)["experts"] == 300 + 100
    assert us(step)["dispatch"] == 40 + 7


def test_launches_under_another_number_of_the_thread_are_placed_by_time() -> None:
    plain = on_a_device()
    other = [e | {"tid": 123456} if e["cat"] == "cuda_runtime" else e for e in plain]
    assert profiled_steps(other, "kernels") == profiled_steps(plain, "kernels")


def test_copies_and_fills_count_like_kernels() -> None:
    more = [launch(87, 8), kernel("Memcpy DtoH", 930, 3, 8, category="gpu_memcpy")]
    assert us(only(profiled_steps(on_a_device(*more), "kernels")))["sampling"] == 5 + 3


def test_a_kernel_whose_launch_is_unknown_is_owned_by_no_part() -> None:
    nameless = event("cuda_runtime", "cudaStreamSynchronize", 91, 95), event("kernel", "nameless", 970, 980)
    step = only(profiled_steps(on_a_device(kernel("mystery", 950, 11, 1234), *nameless), "kernels"))
    assert step.unplaced_s == pytest.approx(21e-6)
    assert step.itemised_s == pytest.approx(430e-6)


def test_a_machine_without_access_to_kernels_gets_the_reason() -> None:
    answer = profiled_steps(STEP, "kernels")
    assert isinstance(answer, str)
    assert "saw no kernels" in answer


@pytest.mark.parametrize(
    "name", ["addmm", "mm", "bmm", "baddbmm", "_grouped_mm", "_scaled_mm", "matmul", "linear", "_int_mm"]
)
def test_products_are_told_by_name(name: str) -> None:
    trace = [part("step", 0, 10), part("experts", 1, 9), op(name, 2, 8)]
    assert us(only(profiled_steps(trace, "operations"))) == {"experts": 6}


@pytest.mark.parametrize("name", ["mul", "index_add_", "sort", "sum", "histc", "silu", "index_select", "comm"])
def test_other_operations_of_experts_are_dispatch(name: str) -> None:
    trace = [part("step", 0, 10), part("experts", 1, 9), op(name, 2, 8)]
    assert us(only(profiled_steps(trace, "operations"))) == {"dispatch": 6}
