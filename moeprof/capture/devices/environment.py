"""What machine this is: facts that must match before two runs are compared. No torch, no host name, no user name."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil

from moeprof.capture.devices.gpu import Gpu
from moeprof.core import VERSION
from moeprof.core.record.experiment import EnvironmentHeader, GpuIdentity

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow", "triton", "accelerate")


def environment(
    gpu: Gpu | None,
    device: str,
    threads: int | None,
    *,
    num_devices: int = 1,
    packages: Mapping[str, str | None] | None = None,
) -> EnvironmentHeader:
    """The environment part of experiment.json.

    Args:
        gpu: the device, or None.
        device: ``cpu`` or ``cuda:N``.
        threads: of a worker.
        num_devices: used and billed.
        packages: versions that are others in the workers' environment.
    """
    gpu = None if device == "cpu" else gpu
    return EnvironmentHeader(
        moeprof=VERSION,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=cpu_name(),
        cpu_cores=psutil.cpu_count(logical=True),
        cpu_flags=tuple(cpu_flags()),
        memory_bytes=psutil.virtual_memory().total,
        device=device,
        device_name=cpu_name() if gpu is None else gpu.name,
        num_devices=num_devices,
        gpu=None if gpu is None else GpuIdentity(uuid=gpu.uuid, driver=gpu.driver),
        threads=threads,
        load_average_1min=os.getloadavg()[0],
        packages={name: _version(name) for name in PACKAGES} | dict(packages or {}),
    )


def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first processor; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def cpu_name() -> str:
    """The processor's own name, or the architecture where it gives none."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Instruction sets that change what a CPU run measures (emulated bf16 hides the physics)."""
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8", "bf16", "sve")
    info = _cpuinfo()
    found = (info.get("flags") or info.get("Features") or "").split()
    return [flag for flag in wanted if flag in found]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def compiler() -> str | None:
    """Path of ``g++``, or of what CXX names; None where there is none."""
    return shutil.which(os.environ.get("CXX", "g++"))
