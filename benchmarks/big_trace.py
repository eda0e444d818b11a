"""Reading a trace of a million rows; inspecting ten million (``python -m benchmarks.big_trace [ROWS]``)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.verdict import Row, Target

NUM_ROWS = 1_000_000
READ = (
    "import sys, time; from pathlib import Path; start = time.perf_counter();"
    "from moeprof.sources import read_trace; n = len(read_trace(Path(sys.argv[1])));"
    "print(n, time.perf_counter() - start)"
)

INSPECT = (
    "import resource, sys; from moeprof.cli.main import main; main(['trace', 'inspect', sys.argv[1]]);"
    "used = resource.getrusage(resource.RUSAGE_SELF);"
    "print(used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr)"
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


def inspect_rows(folder: Path, num_rows: int = 10_000_000) -> list[Row]:
    """Seconds and memory of ``moeprof trace inspect``, start-up included, of one file in each kind of columns."""
    rows = []
    for path in write_columns(folder, num_rows):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", INSPECT, str(path)], capture_output=True, check=True, text=True)
        seconds = time.perf_counter() - start
        peak, cpu = done.stderr.split()[-2:]
        rows.append(
            Row(
                what=f"inspecting {num_rows:,} rows of {path.suffix[1:]}",
                target=Target(at_most=30, unit="s"),
                samples=(seconds,),
                details=f"{float(cpu):.1f} s of processor, {int(peak) / 1024:.0f} MiB of memory",
            )
        )
    return rows


def write_columns(folder: Path, num_rows: int) -> list[Path]:
    """The same requests as CSV, JSON lines and parquet."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(0.2, num_rows)).round(6)
    inputs, outputs = rng.integers(1, 4_000, num_rows), rng.integers(1, 600, num_rows)
    table = pa.table({"arrived_at": times, "num_prefill_tokens": inputs, "num_decode_tokens": outputs})
    pq.write_table(table, folder / "trace.parquet")
    pa_csv.write_csv(table, folder / "trace.csv")
    rows = zip(times, inputs, outputs, strict=True)
    with (folder / "trace.jsonl").open("w", encoding="ascii") as file:
        file.writelines(f'{{"arrival_s": {t:.6f}, "input_tokens": {i}, "output_tokens": {o}}}\n' for t, i, o in rows)
    return [folder / f"trace.{kind}" for kind in ("csv", "jsonl", "parquet")]


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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for row in inspect_rows(Path(temporary), *map(int, sys.argv[1:])):
            print(f"{row.what}: {max(row.samples):.1f} s ({row.details})")
