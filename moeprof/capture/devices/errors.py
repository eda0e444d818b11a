"""What a failing device says, as a reason code and a sentence. By the error's text: no torch is needed to read it.

``out_of_memory``  the allocator, or the driver, had no memory left
``device_assert``  a kernel found its own input wrong (most often an index out of range)
``device_error``   a kernel broke (bad address, launch failure); the device itself is fine for another process
``device_lost``    the device does not answer any more; nothing further can run on it
"""

from __future__ import annotations

import re

from moeprof.core.errors import MoeprofError, OutOfMemoryError

# Texts of the CUDA runtime and driver, in the order of looking: the first that is found decides.
PATTERNS: tuple[tuple[str, str], ...] = (
    ("device_assert", r"device-side assert|cudaErrorAssert|CUDA_ERROR_ASSERT"),
    (
        "device_lost",
        r"gpu is lost|device (was )?lost|fallen off the bus|uncorrectable (nvlink|ecc) error|ecc uncorrectable"
        r"|no cuda-capable device is detected|devices? (is|are|\(s\) is/are) busy or unavailable|CUDA_ERROR_UNKNOWN"
        r"|cudaErrorECCUncorrectable|CUDA_ERROR_ECC_UNCORRECTABLE|NVMLError_GpuIsLost|cuda error: unknown error"
        r"|device\(s\) is/are busy|system not yet initialized|driver shutting down|requires? (a )?reset",
    ),
    (
        "out_of_memory",
        r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation",
    ),
    (
        "device_error",
        r"cuda (driver )?error|CUDA_ERROR_|cudaError|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_|hip error|nccl error"
        r"|Triton Error \[CUDA\]",
    ),
)
SENTENCES = {
    "device_assert": "a kernel found its own input wrong on {device}, most often an index out of range ({said}); "
    "CUDA_LAUNCH_BLOCKING=1 makes the stack point at it",
    "device_error": "a kernel broke on {device} ({said}); CUDA_LAUNCH_BLOCKING=1 makes the stack point at it",
    "device_lost": "the device {device} was lost ({said}); nothing more can run on it until it is reset "
    "(`nvidia-smi` and the kernel's log say more)",
    "out_of_memory": "out of memory on {device} ({said}); lower engine.kv_tokens or engine.max_batch_tokens",
}


def device_reason(error: BaseException) -> str | None:
    """The reason code of an error that came from a device, or None for any other error."""
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    if isinstance(error, MoeprofError):  # our words around somebody's error
        return None if error.__cause__ is None else device_reason(error.__cause__)
    if not isinstance(error, RuntimeError):
        return None
    for reason, pattern in PATTERNS:
        if re.search(pattern, str(error), re.IGNORECASE):
            return reason
    return {"OutOfMemoryError": "out_of_memory", "AcceleratorError": "device_error"}.get(type(error).__name__)


def device_sentence(reason: str, device: str, error: BaseException) -> str:
    """What happened and what to do, in one line."""
    said = str(error).splitlines()[0] if str(error) else type(error).__name__
    return SENTENCES[reason].format(device=device, said=said)
