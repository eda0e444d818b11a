"""Settings that cannot work, told before a folder is made or a worker starts. No torch."""

from __future__ import annotations

from pathlib import Path

from moeprof.capture.cpu_kernels.compiler import compiler
from moeprof.capture.popularity_files import read_counts
from moeprof.core.errors import WorkloadError
from moeprof.core.workload import EngineSettings, Workload


def check_early(workload: Workload, device: str) -> None:
    """Refuse engine settings that the device or the kind of batching cannot have, and routing files that are not there.

    Args:
        workload: as read.
        device: ``cpu`` or ``cuda:N``.

    Raises:
        WorkloadError: one of them; the key, what was found, and what to do.
    """
    _check_engine(workload.engine, device)
    for spec in workload.models:
        policy = spec.routing
        if policy.path is None or policy.policy not in ("profile", "replay"):
            continue
        if not Path(policy.path).exists():
            raise WorkloadError(f"model {spec.name}: routing.path: {policy.path} is not there; give a file or a record")
        if policy.policy == "profile":
            try:
                read_counts(Path(policy.path), policy.select)
            except WorkloadError as error:
                raise WorkloadError(f"model {spec.name}: {error}") from error


def _check_engine(engine: EngineSettings, device: str) -> None:
    if engine.decode_graphs == "on" and not device.startswith("cuda"):
        raise WorkloadError(f"engine.decode_graphs: on needs a CUDA device, this is {device}; set auto or off")
    if engine.decode_attention not in ("auto", "torch") and not device.startswith("cuda"):
        raise WorkloadError(
            f"engine.decode_attention: {engine.decode_attention} needs a CUDA device, this is {device}; "
            "set auto or torch"
        )
    if engine.cpu_kernels != "off" and device == "cpu" and compiler() is None:
        raise WorkloadError(
            f"engine.cpu_kernels: {engine.cpu_kernels} needs a C++ compiler (g++, or the one that CXX names); "
            "install one, or set it to off"
        )
    if engine.prefix_cache and engine.batching == "paged":
        raise WorkloadError(
            "engine.prefix_cache: paged batches share no prefixes; set batching to continuous, or prefix_cache to false"
        )
    if engine.parallel is not None and (engine.batching == "continuous" or engine.prefix_cache):
        key = "prefix_cache: true" if engine.prefix_cache else "batching: continuous"
        raise WorkloadError(
            f"engine.parallel: {key} takes transformers' own continuous batching, whose cache is not cut for ranks; "
            "leave it out"
        )
