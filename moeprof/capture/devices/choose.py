"""Which device a run uses. No torch: GPUs are looked at through NVML, in the order in which torch will count them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from moeprof.capture.devices.gpu import Gpu, GpuReading, find_gpu
from moeprof.core.errors import InputError

ABSENT = ("no_driver", "driver_mismatch", "no_such_gpu", "hidden")
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A device.

    Attributes:
        device: ``cpu`` or ``cuda:N``, as torch will count in the workers.
        gpu: the GPU, open for reading, or None.
        why: a sentence where there was something to choose from, else None.
    """

    device: str
    gpu: Gpu | None = None
    why: str | None = None


def choose_device(asked: str, nvml: Any = None, *, has_cuda_build: bool | None = None) -> Choice:
    """The device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` and ``cuda`` take the GPU with the most free memory among those that no other process uses;
    CUDA_VISIBLE_DEVICES decides which there are.

    Args:
        asked: as in the workload.
        nvml: the pynvml module, or a fake of it.
        has_cuda_build: whether the installed torch can use a GPU; None looks at its version.

    Raises:
        InputError: a GPU was asked for that is not there, or that torch or NVML cannot use; or CUDA_VISIBLE_DEVICES
            has the beginning of several UUIDs.
    """
    if asked == "cpu":
        return Choice(device="cpu")
    gpus = visible_gpus(nvml)
    _refuse_ambiguous(gpus)
    built = has_cuda_build_of_torch() if has_cuda_build is None else has_cuda_build
    if asked.startswith("cuda") and not (gpus and built):
        why = "this torch is built for the CPU" if gpus else "no NVIDIA driver or GPU was found"
        raise InputError(f"device: found {asked}, but {why}; use cpu or auto (`moeprof doctor` says more)")
    number = asked.partition(":")[2]
    if number:
        return _by_number(int(number), gpus)
    readings = {i: gpu.read() for i, gpu in enumerate(gpus) if gpu.reason is None}
    if not built or not readings:
        if asked == "cuda":
            raise InputError(f"device: found cuda, but no GPU can be used; there {_listed(gpus)}")
        return Choice(device="cpu", why=_named_in_vain(nvml) if built and not gpus else None)
    best = min(readings, key=lambda i: (_is_taken(readings[i]), -_free_gib(readings[i]), i))
    return Choice(device=f"cuda:{best}", gpu=gpus[best], why=_why(best, readings, len(gpus)))


def visible_gpus(nvml: Any = None) -> list[Gpu]:
    """Every GPU that CUDA_VISIBLE_DEVICES shows, in torch's order; one that cannot be read has its reason.

    Where different GPUs stand side by side, CUDA would put the fastest first, which NVML does not know: then
    CUDA_DEVICE_ORDER is set for this process and its workers, so that both count as nvidia-smi does.
    """
    if find_gpu(None, nvml).reason == "ambiguous_index":
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    gpus: list[Gpu] = []
    while (gpu := find_gpu(None, nvml, position=len(gpus))).reason not in ABSENT:
        gpus.append(gpu)
    return gpus


def _refuse_ambiguous(gpus: Sequence[Gpu]) -> None:
    position = next((i for i, gpu in enumerate(gpus) if gpu.reason == "ambiguous_uuid"), None)
    if position is not None:
        name = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")[position]
        raise InputError(
            f"CUDA_VISIBLE_DEVICES: {name} is the beginning of the UUIDs of several GPUs; give more of it "
            "(`nvidia-smi -L` lists them)"
        )


def _named_in_vain(nvml: Any) -> str | None:
    """What to say where CUDA_VISIBLE_DEVICES names a GPU that is not there, so that CUDA shows none."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "").split(",")[0]
    if find_gpu(None, nvml).reason != "no_such_gpu" or not shown:
        return None
    return f"cpu: CUDA_VISIBLE_DEVICES begins with {shown}, which is no GPU of this machine"


def has_cuda_build_of_torch() -> bool:
    """Whether the installed torch was built for NVIDIA GPUs, by its version; False without torch."""
    try:
        return "+cpu" not in metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False


def _by_number(number: int, gpus: Sequence[Gpu]) -> Choice:
    if number >= len(gpus):
        raise InputError(f"device: found cuda:{number}, but there {_listed(gpus)}")
    gpu = gpus[number]
    if gpu.reason is not None:
        raise InputError(f"device: cuda:{number} cannot be used ({gpu.reason}); there {_listed(gpus)}")
    why = None if len(gpus) == 1 else f"cuda:{number} of {len(gpus)} GPUs: the one that was asked for"
    return Choice(device=f"cuda:{number}", gpu=gpu, why=why)


def _listed(gpus: Sequence[Gpu]) -> str:
    """``are cuda:0 (NVIDIA H200, 139 GiB free), cuda:1 (gpu_lost)``."""
    told = []
    for i, gpu in enumerate(gpus):
        about = gpu.reason or f"{gpu.name}, {_free_gib(gpu.read())} GiB free"
        told.append(f"cuda:{i} ({about})")
    return f"{'is' if len(told) == 1 else 'are'} {', '.join(told)}"


def _why(best: int, readings: dict[int, GpuReading], total: int) -> str | None:
    if total == 1:
        return None
    text = f"cuda:{best} of {total} GPUs: {_free_gib(readings[best])} GiB are free, the most"
    if all(_is_taken(reading) for reading in readings.values()):
        return f"{text}; other processes use every one of them"
    known = readings[best].num_other_processes is not None
    return f"{text} of those that no other process uses" if known else f"{text}; process ids are hidden here"


def _is_taken(reading: GpuReading) -> bool:
    return (reading.num_other_processes or 0) > 0


def _free_gib(reading: GpuReading) -> int:
    """Whole GiB, so that equal GPUs are equal whatever the driver keeps; 0 where NVML does not tell."""
    if reading.memory_total_bytes is None or reading.memory_used_bytes is None:
        return 0
    return round((reading.memory_total_bytes - reading.memory_used_bytes) / GIB)
