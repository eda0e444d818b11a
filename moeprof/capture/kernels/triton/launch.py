"""Launches Triton programs, also where there is no C compiler.

Triton builds a small C module before its first launch and one per program, and needs a compiler, Python's headers and
the linker's cache for that. Machines made for serving often have none of them. The programs need none: Triton brings
its own assembler. So where the C module cannot be built, this file compiles a program to machine code and launches it
through the CUDA driver (cuModuleLoadData, cuLaunchKernel). That costs the host some microseconds more per launch and is
the same on the device and in captured steps.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import subprocess
from dataclasses import dataclass
from typing import Any, Protocol

import torch

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64"}
LARGE_SHARED_BYTES = 48 * 1024  # more than this must be asked for
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
OPTIONS = ("num_warps", "num_stages")


def launch(program: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], **constants: Any) -> None:
    """Launch on the current stream of the tensors' device.

    Args:
        program: a ``triton.jit`` function.
        grid: programs per axis.
        arguments: tensors and integers, in the order of the program's parameters.
        constants: its ``constexpr`` parameters, ``num_warps`` and ``num_stages``.
    """
    device = next(one.device for one in arguments if isinstance(one, torch.Tensor))
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(program, grid, arguments, **constants)
    elif type(program).__name__ == "InterpretedFunction" or why_own_launch() is None:
        program[grid](*arguments, **constants)
    else:
        _own_launcher().launch(program, grid, arguments, constants)


@functools.cache
def why_own_launch() -> str | None:
    """The reason why Triton's own launcher cannot be had here, or None."""
    runtime = importlib.import_module("triton.runtime")
    try:
        # Building this module needs all that building a program's launcher needs.
        _ = runtime.driver.active.utils
    except (RuntimeError, AssertionError, OSError, ImportError, subprocess.SubprocessError) as error:
        return f"Triton's launcher cannot be built ({' '.join(str(error).split())[:160]})"
    return None


class Driver(Protocol):
    """What launching needs of the CUDA driver."""

    def load(self, machine_code: bytes, name: str, shared_bytes: int) -> Any:
        """A function of a module, ready for so much shared memory."""

    def launch(
        self, function: Any, grid: tuple[int, ...], num_threads: int, shared_bytes: int, values: list[Any]
    ) -> None:
        """Launch with these values (ctypes) on the current stream."""


class CudaDriver:
    """libcuda, in the context that torch made current."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def load(self, machine_code: bytes, name: str, shared_bytes: int) -> ctypes.c_void_p:
        """See :class:`Driver`."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), machine_code)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        if shared_bytes > LARGE_SHARED_BYTES:
            self._call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared_bytes)
        return function

    def launch(
        self, function: Any, grid: tuple[int, ...], num_threads: int, shared_bytes: int, values: list[Any]
    ) -> None:
        """See :class:`Driver`."""
        addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        x, y, z = (*grid, 1, 1)[:3]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        self._call("cuLaunchKernel", function, x, y, z, num_threads, 1, 1, shared_bytes, stream, addresses, None)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'error').decode()} ({status})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A program compiled for one kind of arguments."""

    function: Any
    num_threads: int
    shared_bytes: int
    passed: tuple[int, ...]


class OwnLauncher:
    """Compiles programs for the kinds of arguments that they meet, as Triton does, and launches them by a driver."""

    def __init__(self, driver: Driver, capability: int) -> None:
        """``capability``: of the device, for example 90."""
        self._driver, self._capability = driver, capability
        self._loaded: dict[Any, Loaded] = {}

    def launch(
        self, program: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        """See :func:`launch`."""
        general = getattr(program, "do_not_specialize", None) or ()
        named = zip(program.arg_names, arguments, strict=False)
        kinds = tuple(("i32", False) if name in general else _kind(argument) for name, argument in named)
        device = next((one.device for one in arguments if isinstance(one, torch.Tensor)), None)
        key = (program.__name__, device, kinds, tuple(constants.items()))
        loaded = self._loaded.get(key)
        if loaded is None:
            loaded = self._loaded[key] = self._load(program, kinds, constants)
        values: list[Any] = []
        for place in loaded.passed:
            argument = arguments[place]
            if isinstance(argument, torch.Tensor):
                values.append(ctypes.c_void_p(argument.data_ptr()))
            else:
                values.append(ctypes.c_int64(argument) if kinds[place][0] == "i64" else ctypes.c_int32(argument))
        values += [ctypes.c_void_p(None), ctypes.c_void_p(None)]  # scratch memory that our programs do not use
        self._driver.launch(loaded.function, grid, loaded.num_threads, loaded.shared_bytes, values)

    def _load(self, program: Any, kinds: tuple[tuple[str, bool], ...], constants: dict[str, Any]) -> Loaded:
        triton: Any = importlib.import_module("triton")
        compiler: Any = importlib.import_module("triton.compiler")
        target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", self._capability, 32)
        fixed = {name: value for name, value in constants.items() if name not in OPTIONS}
        options = {name: value for name, value in constants.items() if name in OPTIONS}
        signature, attributes, passed = dict.fromkeys(fixed, "constexpr"), {}, []
        for place, (name, (kind, is_multiple)) in enumerate(zip(program.arg_names, kinds, strict=False)):
            signature[name] = kind
            if kind == "constexpr":
                fixed[name] = 1
                continue
            passed.append(place)
            if is_multiple:
                attributes[(place,)] = [["tt.divisibility", 16]]
        signature = {name: signature[name] for name in program.arg_names}
        source = compiler.ASTSource(fn=program, signature=signature, constexprs=fixed, attrs=attributes)
        made = triton.compile(source, target=target, options=options)
        metadata = made.metadata
        assert not metadata.global_scratch_size and not metadata.profile_scratch_size
        return Loaded(
            function=self._driver.load(made.asm["cubin"], metadata.name, metadata.shared),
            num_threads=32 * metadata.num_warps,
            shared_bytes=metadata.shared,
            passed=tuple(passed),
        )


def _kind(argument: Any) -> tuple[str, bool]:
    """The type that a program is compiled for, and whether the value or address is a multiple of 16."""
    if isinstance(argument, torch.Tensor):
        return f"*{TYPES[argument.dtype]}", argument.data_ptr() % 16 == 0
    if argument == 1:
        return "constexpr", False
    return "i32" if -(2**31) <= argument < 2**31 else "i64", argument % 16 == 0


@functools.cache
def _own_launcher() -> OwnLauncher:
    major, minor = torch.cuda.get_device_capability()
    return OwnLauncher(CudaDriver(), 10 * major + minor)
