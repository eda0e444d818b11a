"""Can this workload's models be shared by ranks on this machine? Told before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from moeprof.capture.device_choice import Choice, choose_device
from moeprof.capture.fit import device_memory
from moeprof.capture.gpu import Gpu, find_gpu
from moeprof.capture.model_memory import DeviceMemory
from moeprof.core.errors import WorkloadError
from moeprof.core.workload import Workload


def check_parallel(workload: Workload) -> None:
    """Refuse what ranks cannot do.

    Raises:
        WorkloadError: a twin, lock-step, a ladder or a sweep of step sizes beside ``engine.parallel``, or a device that
            is not the first.
    """
    if workload.engine.parallel is None:
        return
    twin = next((spec.name for spec in workload.models if spec.twin_of is not None), None)
    if twin is not None:
        raise WorkloadError(
            f"engine.parallel: model {twin} is a twin, and no plan says how its layers are shared; leave the twin or "
            "parallel out"
        )
    for key, settings in (("lockstep", workload.lockstep), ("ladder", workload.ladder)):
        if settings is not None:
            raise WorkloadError(
                f"engine.parallel: {key} steps two models in turn in one process, ranks hold one each; leave {key} or "
                "parallel out"
            )
    if workload.device.startswith("cuda:") and workload.device != "cuda:0":
        raise WorkloadError(
            f"device: found {workload.device}; ranks take the devices from cuda:0 on. Say cuda, and choose by "
            "CUDA_VISIBLE_DEVICES"
        )


def gpus_of_ranks(workload: Workload, device: str, *, find: Callable[..., Gpu] = find_gpu) -> list[Gpu]:
    """The GPUs of rank 1 and up; empty without ranks and on a CPU.

    Raises:
        WorkloadError: there are fewer GPUs than ranks.
    """
    parallel = workload.engine.parallel
    if parallel is None or not device.startswith("cuda"):
        return []
    found = [find(None, position=rank) for rank in range(1, parallel.ranks)]
    there = next((i for i, gpu in enumerate(found, start=1) if gpu.reason in ("no_such_gpu", "hidden")), None)
    if there is not None:
        raise WorkloadError(
            f"engine.parallel.ranks: found {parallel.ranks}; {there} {'GPU is' if there == 1 else 'GPUs are'} visible, "
            "and each rank needs one"
        )
    return found


def choose_devices(workload: Workload) -> tuple[Choice, tuple[Gpu, ...]]:
    """The device of rank 0, chosen as without ranks but from the first GPU on, and the GPUs of the other ranks.

    Raises:
        InputError: the device is not there, or there are fewer GPUs than ranks.
    """
    choice = choose_device(workload.device)
    if workload.engine.parallel is not None and choice.device.startswith("cuda:") and choice.device != "cuda:0":
        choice = choose_device("cuda:0")
    return choice, tuple(gpus_of_ranks(workload, choice.device))


def memory_of_all(memory: DeviceMemory, others: Sequence[Gpu]) -> DeviceMemory:
    """Memory of all devices as one: as often the tightest of them as there are, because each holds an equal part."""
    if not others:
        return memory
    each = [memory, *(device_memory("cuda", gpu) for gpu in others)]
    return replace(
        memory,
        total_bytes=len(each) * min(part.total_bytes for part in each),
        free_bytes=len(each) * min(part.free_bytes for part in each),
    )
