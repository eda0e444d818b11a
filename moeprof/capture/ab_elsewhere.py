"""The lone run of the base side under another Python: its own torch, transformers and moeprof, by the command line.

The record on disk is the contract between the two environments; a record of a newer format is refused when it is read.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from moeprof.capture.signals import SignalWatch
from moeprof.capture.step_child import child_environment, find_python
from moeprof.core.errors import EngineError, InputError

LOOK_EVERY_S = 0.2
STOP_GRACE_S = 30.0


def run_lone(python: Path, workload: Path, folder: Path, signals: SignalWatch, options: Sequence[str] = ()) -> None:
    """``moeprof run`` in the other environment: one launch, one round.

    Args:
        python: interpreter of the base side.
        workload: its file.
        folder: where the record goes.
        signals: Ctrl-C ends it after its step.
        options: more options of ``moeprof run``, such as the device that both sides use.

    Raises:
        EngineError: it failed; the message is the last line that it said.
        InputError: it found the workload bad.
    """
    python = find_python("base", python)
    command = [str(python), "-m", "moeprof", "run", str(workload), "--output-dir", str(folder)]
    command += ["--rounds", "1", "--launches", "1", "--no-content", "--quiet", "--write", "json"]
    command += options
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=child_environment(os.environ, python, None),
    )
    said, told = "", False
    try:
        while True:
            try:
                said += process.communicate(timeout=LOOK_EVERY_S)[1] or ""
                break
            except subprocess.TimeoutExpired:
                if signals.number and not told:
                    told = True
                    process.terminate()  # it keeps what it measured and ends after its step
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_GRACE_S)
    if process.returncode and not signals.number:
        last = (said.strip().splitlines() or ["it said nothing"])[-1].removeprefix("moeprof: ")
        kind = InputError if process.returncode == InputError.exit_code else EngineError
        raise kind(f"--base-python {python}: the lone run of base failed: {last}")
