"""How long commands take to start, beside ``import torch``; and that they do not import it."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.verdict import Row, Target, ratios

HALF = Target(at_most=0.5)
NO_TORCH = "import sys; from moeprof.cli.main import main; main({arguments!r}); sys.exit('torch' in sys.modules)"


def startup_rows(repeats: int) -> list[Row]:
    """``moeprof --help`` and ``moeprof report --help`` over ``import torch``, processes started in turns."""
    commands = {
        "torch": ["-c", "import torch"],
        "moeprof --help": ["-m", "moeprof", "--help"],
        "moeprof report --help": ["-m", "moeprof", "report", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for arguments in commands.values():
        _seconds(arguments)  # fills the file cache
    for number in range(repeats):
        for name in list(commands)[:: -1 if number % 2 else 1]:
            seconds[name].append(_seconds(commands[name]))
    rows = []
    for name in list(commands)[1:]:
        arguments = name.split()[1:]
        clean = subprocess.run(
            [sys.executable, "-c", NO_TORCH.format(arguments=arguments)], capture_output=True, check=False
        )
        rows.append(
            Row(
                what=f"{name} / import torch",
                target=HALF if clean.returncode == 0 else Target(at_most=0.0),
                samples=ratios(seconds[name], seconds["torch"]),
                details="imports no torch" if clean.returncode == 0 else "IMPORTS TORCH, so no time is good enough",
            )
        )
    return rows


def _seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - start
