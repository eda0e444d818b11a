"""What every process that holds models does first, and what it says of an error at its border. No torch.

It ends with its parent: held device memory must not outlive a run that was killed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

from moeprof.capture.devices.errors import device_reason, device_sentence
from moeprof.core.errors import MoeprofError, storage_sentence

STORAGE_FULL = "storage"  # reason of a process that could write no more: no fault of its model
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def set_up_process(threads: int | None = None) -> None:
    """Before a library is imported: its threads, and no notices, which are not the user's; ours are in the record."""
    if threads is not None:
        os.environ.update(dict.fromkeys(THREADS, str(threads)))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")


LAST_WRITES_S = 5.0  # less than a heartbeat may be old: nothing is written into a record that may go on elsewhere


def end_with_parent(grace_s: float = LAST_WRITES_S) -> None:
    """From now on this process ends soon after the one that started it with ``multiprocessing``.

    It gets a TERM, so that a pass that is under way closes its tables, and is killed where that takes too long.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    if parent is not None:
        threading.Thread(target=watch, name="parent", daemon=True).start()


# Linux tells the child of a parent's death (PR_SET_PDEATHSIG is 1), and goes on doing so after exec.
_TIED = """
import ctypes, os, sys
number, parent, *command = sys.argv[1:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(number))
    if os.getppid() != int(parent):
        sys.exit(1)
os.execv(command[0], command)
"""


def tied(command: Sequence[str], number: int) -> list[str]:
    """The same command, as a process that gets the signal ``number`` when this one dies, whatever program it is."""
    return [sys.executable, "-I", "-S", "-c", _TIED, str(int(number)), str(os.getpid()), *command]


def failure_of(error: Exception, label: str, device: str) -> dict[str, Any]:
    """For the parent: ``error`` in one line, ``exit_code``, ``reason``, and the ``traceback`` of what is not ours."""
    sentence = storage_sentence(error)
    if sentence is not None:
        return {"error": f"{label}: {sentence}", "exit_code": 1, "traceback": None, "reason": STORAGE_FULL}
    reason = device_reason(error)
    if isinstance(error, MoeprofError):
        return {"error": str(error), "exit_code": error.exit_code, "traceback": None, "reason": reason}
    if reason is None:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    else:
        text = f"{label}: {device_sentence(reason, device, error)}"
    return {"error": text, "exit_code": 1, "traceback": traceback.format_exc(), "reason": reason}
