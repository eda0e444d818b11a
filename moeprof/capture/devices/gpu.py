"""The only door to NVML: power, energy, clocks, temperature, throttling, memory and neighbours of one GPU.

A GPU is found by its UUID, because NVML counts by PCI address and CUDA by speed and by CUDA_VISIBLE_DEVICES. Whatever
cannot be read is None with a reason; nothing here raises for a missing driver, GPU or permission.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
MOST_XIDS = 16  # of one look

# pynvml's exception class -> reason code. What is not here is `nvml_error`.
REASONS = {
    "NVMLError_DriverNotLoaded": "no_driver",
    "NVMLError_LibraryNotFound": "no_driver",
    "NVMLError_LibRmVersionMismatch": "driver_mismatch",
    "NVMLError_NoPermission": "no_permission",
    "NVMLError_NotSupported": "not_supported",
    "NVMLError_FunctionNotFound": "driver_too_old",
    "NVMLError_NotFound": "no_such_gpu",
    "NVMLError_InvalidArgument": "no_such_gpu",
    "NVMLError_GpuIsLost": "gpu_lost",
    "NVMLError_Uninitialized": "not_initialised",
    "NVMLError_Timeout": "timeout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One look at a GPU. None = could not be read, see ``reasons``.

    Attributes:
        power_w: as ``Gpu.power_source`` says: at this moment, or averaged by the driver (1 s on recent GPUs).
        energy_counter_j: running total since the driver was loaded.
        temperature_c: of the chip.
        sm_clock_mhz: clock of the processors.
        memory_clock_mhz: clock of the memory.
        utilisation_ratio: share of time with a kernel running.
        memory_used_bytes: by all processes.
        memory_total_bytes: of the device.
        throttle_reasons: NVML bit mask.
        num_other_processes: compute processes that are neither this one nor its children.
        reasons: reason code per field that is None.
    """

    power_w: float | None = None
    energy_counter_j: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    utilisation_ratio: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    throttle_reasons: int | None = None
    num_other_processes: int | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """An open GPU, or the reason why there is none.

    Attributes:
        uuid: as NVML spells it, or None.
        name: product name, or None.
        driver: driver version, or None.
        power_source: ``instant``, or ``usage`` where the driver has no such field; what the latter averages over
            depends on the GPU.
        reason: reason code when there is no GPU to read, else None.
    """

    uuid: str | None = None
    name: str | None = None
    driver: str | None = None
    power_source: str | None = None
    reason: str | None = None
    _nvml: Any = None
    _handle: Any = None

    def read(self) -> GpuReading:
        """Look once. About a millisecond; never raises."""
        if self.reason is not None:
            return GpuReading(reasons=dict.fromkeys(_READERS, self.reason))
        values: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for name, reader in (_READERS | POWER[self.power_source or "usage"]).items():
            value, reason = _try(self._nvml, lambda reader=reader: reader(self._nvml, self._handle))  # type: ignore[misc]
            values[name] = value
            if value is None:
                reasons[name] = reason or "other_namespace"
        return GpuReading(**values, reasons=reasons)

    def facts(self) -> dict[str, Any]:
        """What the record keeps of it: identity, driver, limits, modes, memory errors; None = not told."""
        known = {"uuid": self.uuid, "name": self.name, "driver": self.driver, "reason": self.reason}
        known["power_source"] = self.power_source
        if self.reason is not None:
            return known | dict.fromkeys(FACTS)
        return known | {
            name: _try(self._nvml, lambda ask=ask: ask(self._nvml, self._handle))[0]  # type: ignore[misc]
            for name, ask in FACTS.items()
        }

    def open_events(self) -> Any:
        """Where the driver reports critical errors (Xid) of this GPU from now on, or None where it does not."""
        if self.reason is not None:
            return None
        nvml = self._nvml

        def register() -> Any:
            events = nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(self._handle, nvml.nvmlEventTypeXidCriticalError, events)
            return events

        return _try(nvml, register)[0]

    def new_xids(self, events: Any) -> list[int]:
        """Numbers of the errors that were reported since the last look; see NVIDIA's table of Xids."""
        found: list[int] = []
        while events is not None and len(found) < MOST_XIDS:
            event, _ = _try(self._nvml, lambda: self._nvml.nvmlEventSetWait_v2(events, 0))
            if event is None:
                break
            found.append(int(event.eventData))
        return found

    def close(self) -> None:
        """Give NVML back."""
        if self._nvml is not None:
            _try(self._nvml, self._nvml.nvmlShutdown)


def find_gpu(uuid: str | None, nvml: Any = None, *, position: int = 0) -> Gpu:
    """Open a GPU.

    Args:
        uuid: with or without the ``GPU-`` prefix (torch leaves it out), or None to go by position.
        nvml: the pynvml module, or a fake of it.
        position: among the devices that CUDA_VISIBLE_DEVICES shows.
    """
    if nvml is None:
        import pynvml

        nvml = pynvml
    _, reason = _try(nvml, nvml.nvmlInit)
    if reason is not None:
        return Gpu(reason=reason)
    handle, reason = _try(nvml, lambda: _handle(nvml, uuid, position))
    if handle is None or isinstance(handle, str):
        _try(nvml, nvml.nvmlShutdown)
        return Gpu(reason=handle or reason)
    handle = _try(nvml, lambda: _first_slice(nvml, handle))[0] or handle
    instant, _ = _try(nvml, lambda: _instant_power_w(nvml, handle))
    return Gpu(
        power_source="usage" if instant is None else "instant",
        uuid=_try(nvml, lambda: _text(nvml.nvmlDeviceGetUUID(handle)))[0],
        name=_try(nvml, lambda: _text(nvml.nvmlDeviceGetName(handle)))[0],
        driver=_try(nvml, lambda: _text(nvml.nvmlSystemGetDriverVersion()))[0],
        _nvml=nvml,
        _handle=handle,
    )


def _handle(nvml: Any, uuid: str | None, position: int) -> Any:
    """NVML's handle, or a reason code where a position cannot be translated."""
    if uuid is not None:
        return nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(nvml.nvmlDeviceGetCount())] if shown is None else shown.replace(" ", "").split(",")
    if position >= len(names) or names[position] in ("", "-1", "NoDevFiles"):
        return "hidden"
    name = names[position]
    if name.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(name)
    if name.startswith("GPU-"):
        return _by_beginning(nvml, name)
    if not name.isdecimal():
        return "no_such_gpu"
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if _counts_like_cuda(nvml) else "ambiguous_index"


def _by_beginning(nvml: Any, beginning: str) -> Any:
    """CUDA takes as much of a UUID as no other GPU shares; NVML wants all of it."""
    whole, reason = _try(nvml, lambda: nvml.nvmlDeviceGetHandleByUUID(beginning))
    if reason != "no_such_gpu":
        return whole if reason is None else reason
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    found = [handle for handle in handles if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(beginning)]
    return found[0] if len(found) == 1 else "ambiguous_uuid" if found else "no_such_gpu"


def _counts_like_cuda(nvml: Any) -> bool:
    """CUDA puts the fastest device first unless told otherwise, NVML goes by PCI address: alike when all are equal."""
    if os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return True
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    return len({_text(nvml.nvmlDeviceGetName(handle)) for handle in handles}) == 1


def _try(nvml: Any, call: Callable[[], T]) -> tuple[T | None, str | None]:
    """The value of a call, or None and a reason code."""
    try:
        return call(), None
    except nvml.NVMLError as error:
        return None, REASONS.get(type(error).__name__, "nvml_error")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _instant_power_w(nvml: Any, handle: Any) -> float | None:
    """Power at this moment; None where this GPU or its driver has no such field."""
    field = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
    return field.value.uiVal / 1e3 if field.nvmlReturn == 0 else None


def _first_slice(nvml: Any, handle: Any) -> Any:
    """Of a GPU that is cut into parts CUDA shows the first one; None for a whole GPU."""
    is_cut = not nvml.nvmlDeviceIsMigDeviceHandle(handle) and nvml.nvmlDeviceGetMigMode(handle)[0] == 1
    return nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0) if is_cut else None


def _mig(nvml: Any, handle: Any) -> str:
    """``slice``: a part of a GPU; ``on``: a GPU that is cut into parts; ``off``."""
    if nvml.nvmlDeviceIsMigDeviceHandle(handle):
        return "slice"
    return "on" if nvml.nvmlDeviceGetMigMode(handle)[0] else "off"


def _other_processes(nvml: Any, handle: Any) -> int | None:
    """Compute processes of others; None in a container that is shown process ids of the host.

    Only the few listed processes are looked at: walking the whole process table five times a second would disturb.
    """
    listed = {process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    ours = [_is_ours(pid) for pid in listed]
    return None if None in ours else ours.count(False)


def _is_ours(pid: int) -> bool | None:
    """True for this process, its descendants and its ancestors; None when no such process can be seen."""
    import psutil

    me = psutil.Process()
    if pid == me.pid:
        return True
    try:
        family = {parent.pid for parent in psutil.Process(pid).parents()}
    except psutil.NoSuchProcess:
        return None
    return me.pid in family or pid in {parent.pid for parent in me.parents()}


def _ecc_errors(nvml: Any, handle: Any, kind: int) -> int:
    return int(nvml.nvmlDeviceGetTotalEccErrors(handle, kind, nvml.NVML_VOLATILE_ECC))


POWER: dict[str, dict[str, Callable[[Any, Any], Any]]] = {
    "instant": {"power_w": _instant_power_w},
    "usage": {"power_w": lambda nvml, handle: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3},
}
_READERS: dict[str, Callable[[Any, Any], Any]] = {
    "power_w": POWER["usage"]["power_w"],
    "energy_counter_j": lambda nvml, handle: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,
    "temperature_c": lambda nvml, handle: float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
    "sm_clock_mhz": lambda nvml, handle: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
    "memory_clock_mhz": lambda nvml, handle: float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
    "utilisation_ratio": lambda nvml, handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
    "memory_used_bytes": lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).used),
    "memory_total_bytes": lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
    # The call was renamed in driver 535; the old name is still there, so it is the one that always works.
    "throttle_reasons": lambda nvml, handle: int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
    "num_other_processes": _other_processes,
}

FACTS: dict[str, Callable[[Any, Any], Any]] = {
    "power_limit_w": lambda nvml, handle: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
    "power_limit_default_w": lambda nvml, handle: nvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) / 1e3,
    "max_sm_clock_mhz": lambda nvml, handle: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
    "memory_bytes": lambda nvml, handle: int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
    "persistence": lambda nvml, handle: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
    "mig": _mig,
    "num_mps_processes": lambda nvml, handle: len(nvml.nvmlDeviceGetMPSComputeRunningProcesses(handle)),
    "ecc_corrected_errors": lambda nvml, handle: _ecc_errors(nvml, handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
    "ecc_uncorrected_errors": lambda nvml, handle: _ecc_errors(nvml, handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
}
