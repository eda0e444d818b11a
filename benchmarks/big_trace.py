"""Reading a trace of a million rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.verdict import Row, Target

NUM_ROWS = 1_000_000
READ = (
    "import sys, time; from pathlib import Path; start = time.perf_counter();"
    "from moeprof.sources import read_trace; n = len(read_trace(Path(sys.argv[1])));"
    "print(n, time.perf_counter() - start)"
)


def trace_row(folder: Path, repeats: int) -> Row:
    """Seconds to read it, imports of the reader included, each time in a fresh process."""
    path = write_big_trace(folder / "trace.csv")
    seconds = []
    for _ in range(repeats):
        out = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, check=True, text=True)
        num, taken = out.stdout.split()
        assert int(num) == NUM_ROWS
        seconds.append(float(taken))
    return Row(
        what="reading a trace of 1 M rows",
        target=Target(at_most=5, unit="s"),
        samples=tuple(seconds),
        details=f"Azure 2023 form, {path.stat().st_size / 2**20:.0f} MiB",
    )


def write_big_trace(path: Path) -> Path:
    """Azure's 2023 form with its seven fractional digits."""
    rng = np.random.default_rng(0)
    ticks = np.cumsum(rng.exponential(2e6, NUM_ROWS)).astype(np.int64)  # of 100 ns
    stamps = (np.datetime64("2023-11-16T00:00:00", "ns") + ticks * np.timedelta64(100, "ns")).astype(str)
    inputs, outputs = rng.integers(1, 4_000, NUM_ROWS), rng.integers(1, 600, NUM_ROWS)
    rows = (f"{stamp[:-2].replace('T', ' ')},{i},{o}\n" for stamp, i, o in zip(stamps, inputs, outputs, strict=True))
    with path.open("w", encoding="ascii") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        file.writelines(rows)
    return path
