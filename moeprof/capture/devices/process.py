"""What every process that holds models does first, and what it says of an error at its border. No torch."""

from __future__ import annotations

import os
import traceback
import warnings
from typing import Any

from moeprof.capture.devices.errors import device_reason, device_sentence
from moeprof.core.errors import MoeprofError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def set_up_process(threads: int | None = None) -> None:
    """Before a library is imported: its threads, and no notices, which are not the user's; ours are in the record."""
    if threads is not None:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")


def failure_of(error: Exception, label: str, device: str) -> dict[str, Any]:
    """For the parent: ``error`` in one line, ``exit_code``, ``reason``, and the ``traceback`` of what is not ours."""
    reason = device_reason(error)
    if isinstance(error, MoeprofError):
        return {"error": str(error), "exit_code": error.exit_code, "traceback": None, "reason": reason}
    if reason is None:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    else:
        text = f"{label}: {device_sentence(reason, device, error)}"
    return {"error": text, "exit_code": 1, "traceback": traceback.format_exc(), "reason": reason}
