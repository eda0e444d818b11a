"""Which interpreter a run on vLLM takes, and whether ``kind: auto`` takes vLLM at all. Runs in the parent: no torch."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace

from moeprof.capture.devices.choose import choose_device
from moeprof.capture.engines.settled import Settled, needs_own_module
from moeprof.capture.engines.vllm.environment import Installed, check_device, find
from moeprof.capture.engines.vllm.settings import VllmSettings, translated
from moeprof.capture.models.find import find_model
from moeprof.core.errors import InputError, ModelError
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.workload import Workload

ASK_S = 300.0  # vLLM takes a minute to import from a cold disk
_QUESTION = """
import json, sys
from vllm.model_executor.models import ModelRegistry
known = set(ModelRegistry.get_supported_archs())
print(json.dumps([name for name in sys.argv[1:] if name not in known]))
"""


def settle(workload: Workload) -> Settled:
    """``kind: vllm``: with its interpreter.

    Raises:
        InputError: there is none that can run this workload.
    """
    settings = workload.engine
    assert isinstance(settings, VllmSettings)
    installed = find(settings.python)
    choice = choose_device(workload.device, has_cuda_build=installed.build == "cuda")
    check_device(installed, choice.device)
    _check_models(workload)
    return _settled(settings, installed)


def offer(
    workload: Workload,
    *,
    find: Callable[[str | None], Installed] = find,
    unknown: Callable[[Installed, list[str]], list[str]] | None = None,
) -> Settled | str | None:
    """``kind: auto``: vLLM where it is installed, supports the models, and the machine has a GPU.

    Args:
        workload: with settings of the embedded engine, which ``auto`` is read as.
        find: looks for the interpreter.
        unknown: asks vLLM which of some architectures it does not have.

    Returns:
        Settings of vLLM and why; or in words why the embedded engine; None where nothing is installed to choose from.
    """
    settings = workload.engine
    assert isinstance(settings, TransformersSettings)
    try:
        installed = find(settings.python)
    except InputError:
        if settings.python is not None:
            raise
        return None
    words = translated(settings)
    if isinstance(words, str):
        return f"the embedded engine, because engine.{words} is a setting of it alone"
    asked = needs_own_module(workload)
    if asked is not None:
        return f"the embedded engine, because {asked} needs a model in moeprof's own process"
    if installed.build != "cuda" or choose_device(workload.device, has_cuda_build=True).gpu is None:
        where = "vLLM's build here is for the CPU" if installed.build == "cpu" else "the run is on the CPU"
        return f"the embedded engine, because {where}; vLLM is taken on a GPU, or where engine.kind says so"
    try:
        _check_models(workload)
        names = _architectures(workload)
    except ModelError as error:
        return f"the embedded engine, because {error}"
    lacking = (unknown or ask_unknown)(installed, names)
    if lacking:
        return f"the embedded engine, because vLLM {installed.vllm} does not have {', '.join(lacking)}"
    found = _settled(words, installed)
    return replace(found, why=f"vLLM {installed.vllm}, because it is installed, has the models, and there is a GPU")


def ask_unknown(installed: Installed, names: list[str]) -> list[str]:
    """Which architectures vLLM does not have; all of them where it cannot be imported."""
    try:
        ran = subprocess.run(
            [installed.python, "-I", "-c", _QUESTION, *names], capture_output=True, text=True, timeout=ASK_S, check=True
        )
        told: list[str] = json.loads(ran.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return names
    return told


def _settled(settings: VllmSettings, installed: Installed) -> Settled:
    return Settled(
        settings=replace(settings, python=str(installed.python)),
        has_cuda_build=installed.build == "cuda",
        packages=installed.packages,
    )


def _check_models(workload: Workload) -> None:
    """Refuse models that vLLM is not given as they are."""
    random = next((spec.name for spec in workload.models if spec.path is None or spec.weights == "random"), None)
    if random is not None:
        raise ModelError(
            f"model {random}: vLLM loads checkpoints; give path, or set engine.kind to transformers for random weights"
        )


def _architectures(workload: Workload) -> list[str]:
    configs = [find_model(spec, None).config for spec in workload.models]
    return sorted({str(name) for config in configs for name in config.get("architectures") or ("(none)",)})
