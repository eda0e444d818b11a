"""Compiles ``data/cpu_kernels`` once per machine and loads it.

The result is kept in the user's cache folder under a name made of the source, torch, the compiler and the processor,
so another of any of these is another library. Whatever goes wrong is a reason, not an error: torch's kernels serve.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch

from moeprof.capture.devices.environment import compiler

TIMEOUT_S = 300
_SOURCE = Path(str(files("moeprof"))) / "data" / "cpu_kernels"
# Sums in any order, as matrix products have them; not -ffast-math, which would change denormal numbers for all.
FLAGS = ("-O3", "-march=native", "-fopenmp", "-std=c++20", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math",
         "-fno-signed-zeros", "-fassociative-math")  # fmt: skip
CAPABILITIES = {"AVX512": "AVX512", "AVX2": "AVX2"}  # what torch says it uses, and its name in torch's headers


@functools.cache
def why_no_kernels() -> str | None:
    """Compile if needed and load; the reason why the kernels cannot be had, or None. Asked once per process."""
    found = compiler()
    if found is None:
        return "no C++ compiler (g++, or the one that CXX names)"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"made for Linux on x86_64, this is {platform.system()} on {platform.machine()}"
    try:
        library = _library(found)
        cast("Any", torch.ops).load_library(str(library))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return f"cannot be compiled: {' '.join(str(said).split())[:200]}"
    _register_shapes()
    return None


@functools.cache
def known_dtypes() -> frozenset[torch.dtype]:
    """What the kernels compute in here."""
    has_bf16: bool = torch.cpu._is_avx512_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_bf16 else {torch.float32})


def _library(cxx: str) -> Path:
    """The compiled library, made if it is not there."""
    source = sorted(_SOURCE.iterdir())
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    named = "\n".join(
        [*(one.read_text() for one in source), torch.__version__, version.stdout, _processor(), " ".join(FLAGS)]
    )
    folder = _cache_folder()
    library = folder / f"cpu_kernels-{hashlib.sha256(named.encode()).hexdigest()[:16]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(cxx, [str(one) for one in source if one.suffix == ".cpp"], library)
    return library


def _compile(cxx: str, sources: list[str], library: Path) -> None:
    """Under another name first: several processes may do this at once, and none must load half a file."""
    own = library.with_suffix(f".{os.getpid()}.so")
    include = Path(torch.__file__).parent / "include"
    capability = CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), "DEFAULT")
    command = [cxx, *sources, *FLAGS, "-DAT_PARALLEL_OPENMP=1", f"-DCPU_CAPABILITY={capability}",
               f"-DCPU_CAPABILITY_{capability}", f"-I{include}", f"-I{include / 'torch/csrc/api/include'}",
               "-o", str(own), f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]  # fmt: skip
    try:
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
        own.replace(library)
    finally:
        own.unlink(missing_ok=True)


def _processor() -> str:
    """What -march=native depends on."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return line
    return platform.processor()


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moeprof"


def _register_shapes() -> None:
    """What torch.compile must know: the shapes that come out."""

    def like_x(x: torch.Tensor, *_: object) -> torch.Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    def of_outputs(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x.new_empty(*x.shape[:-1], weight.shape[0])

    for name in ("experts", "norm"):
        torch.library.register_fake(f"moeprof_cpu::{name}", like_x)
    torch.library.register_fake("moeprof_cpu::linear", of_outputs)
