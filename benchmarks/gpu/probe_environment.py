"""What machine this is, what it can do at most, and what a launch, a wait and a copy to the host cost."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu.probe_tools import Probe
from moeprof.capture.devices.environment import environment
from moeprof.capture.devices.gpu import find_gpu
from moeprof.capture.devices.peaks import measure_peaks
from moeprof.capture.devices.streams import capture

PEAKS_S = 8.0
LAUNCHES = 400


def main(arguments: list[str] | None = None) -> int:
    """Write the facts, the peaks and the small costs."""
    probe = Probe(__doc__, arguments)
    gpu = None if probe.device.type == "cpu" else find_gpu(None)
    probe.case("machine", lambda: {"environment": _without_paths(environment(gpu, str(probe.device), None))})
    if probe.device.type == "cuda":
        probe.case("card", lambda: _card(probe.device))
    dtypes = (torch.float32,) if probe.is_tiny else (torch.bfloat16, torch.float32)
    budget_s = 0.3 if probe.is_tiny else PEAKS_S
    probe.case("peaks", lambda: measure_peaks(probe.device, torch.get_num_threads(), dtypes=dtypes,
                                              budget_s=budget_s).to_json())  # fmt: skip
    probe.case("launches", lambda: _launches(probe))
    probe.case("copy of 64 kB to pinned memory, and waiting for it", lambda: _copy(probe))
    probe.case("a capture after one that failed", lambda: _failed_capture(probe))  # last: it may spoil what follows
    return 0


def _without_paths(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if not (isinstance(value, str) and value.startswith("/"))}


def _card(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "nvml": _plain(asdict(find_gpu(None).read())),
    }


def _plain(reading: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in reading.items() if isinstance(value, int | float | str | bool | None)}


def _launches(probe: Probe) -> dict[str, Any]:
    """Seconds per launch of an operation on eight numbers: one by one, and in a graph."""
    value = torch.zeros(8, device=probe.device)
    num = 20 if probe.is_tiny else LAUNCHES

    def work() -> None:
        for _ in range(num):
            value.add_(1.0)

    found = {"eager_s_per_launch": probe.time_s(work) / num}
    graph = probe.graph_case(work)
    if graph["graph_s"] is not None:
        graph["graph_s_per_launch"] = graph["graph_s"] / num
    return found | graph


def _failed_capture(probe: Probe) -> dict[str, Any]:
    """What a failed capture says, and whether memory and captures work after it: falling back depends on that."""
    if probe.device.type == "cpu":
        return {"reason": "a CPU has no graphs"}
    value = torch.zeros(8, device=probe.device)
    said = "it did not fail"
    try:
        capture(lambda: value.sum().item(), probe.device)
    except Exception as error:  # it must fail: the host asks for a value
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    torch.cuda.empty_cache()
    torch.randn(8, device=probe.device)
    return {"said": said} | probe.graph_case(lambda: value.add_(1.0))


def _copy(probe: Probe) -> dict[str, Any]:
    source = torch.zeros(16_384, device=probe.device)
    if probe.device.type == "cpu":
        return {"reason": "a CPU copies nothing to the host"}
    target = torch.empty(16_384, pin_memory=True)

    def work() -> None:
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    return {"copy_and_wait_s": probe.time_s(work)}


if __name__ == "__main__":
    sys.exit(main())
