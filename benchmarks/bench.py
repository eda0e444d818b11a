"""``python -m benchmarks.bench``: the speed targets that need no GPU, side by side in one run, with the machine named.

Every comparison runs in turns (A B, B A, ...) on the same machine in the same minutes and is judged as a ratio; seconds
are judged only where the promise is in seconds. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.verdict import Row, table

DEMO = Path(__file__).parents[1] / "workloads" / "models" / "demo-moe"
PARTS = ("startup", "trace", "report", "overhead", "short", "long")
THREADS = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for and print one table."""
    options = _parse(arguments)
    # Before torch is imported: it reads them once.
    os.environ |= {
        "OMP_NUM_THREADS": str(THREADS),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    with tempfile.TemporaryDirectory() as name:
        rows = _without_torch(options, Path(name))
    if {"overhead", "short", "long"} & set(options.only):
        rows += _with_model(options)
    print(_machine(options.model))
    print(table(rows))
    return 0 if all(row.ok for row in rows) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("model", nargs="?", type=Path, default=DEMO, help="model folder (default: the demo MoE)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a first look, not a judgement")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    return parser.parse_args(arguments)


def _without_torch(options: argparse.Namespace, folder: Path) -> list[Row]:
    from benchmarks.big_record import report_rows
    from benchmarks.big_trace import trace_row
    from benchmarks.startup import startup_rows

    rows: list[Row] = []
    if "startup" in options.only:
        _say("start-up")
        rows += startup_rows(3 if options.quick else 9)
    if "trace" in options.only:
        _say("a trace of a million rows")
        rows.append(trace_row(folder, 1 if options.quick else 3))
    if "report" in options.only:
        _say("the report of a large run")
        rows += report_rows(folder, 1 if options.quick else 3)
    return rows


def _with_model(options: argparse.Namespace) -> list[Row]:
    import torch

    from benchmarks.overhead import overhead_row
    from benchmarks.throughput import LONG, SHORT, throughput_rows

    torch.set_num_threads(THREADS)
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    model = _load(options.model)
    rows: list[Row] = []
    if "overhead" in options.only:
        _say("overhead of the instruments")
        rows.append(overhead_row(model, options.model, seconds=10.0 if options.quick else 40.0))
    for load, name in ((SHORT, "short"), (LONG, "long")):
        if name in options.only:
            _say(f"throughput, {load.name}")
            rows += throughput_rows(model, options.model, load, 3 if options.quick else load.repeats, _say)
    return rows


def _load(folder: Path) -> Any:
    """The model as a run loads it, dtype chosen by what this CPU computes in."""
    import torch

    from moeprof.capture.loading import load_model, read_blueprint
    from moeprof.capture.model_source import find_model
    from moeprof.core.workload import EngineSettings, ModelSpec

    spec, settings, device = ModelSpec(name="bench", path=str(folder)), EngineSettings(), torch.device("cpu")
    source = find_model(spec)
    return load_model(spec, source, read_blueprint(spec, source, settings, device), settings, device).model


def _machine(model: Path) -> str:
    from moeprof.capture.environment import environment

    facts = environment(None, "cpu", THREADS)
    packages = ", ".join(f"{name} {facts['packages'][name]}" for name in ("torch", "transformers", "numpy", "pyarrow"))
    return (
        f"{facts['cpu']}, {facts['cpu_cores']} cores, {' '.join(facts['cpu_flags'])}, "
        f"{facts['memory_bytes'] / 2**30:.0f} GiB, load average {facts['load_average_1min']:.1f}\n"
        f"{facts['system']}, Python {facts['python']}, {packages}; {THREADS} thread, model {model.name}\n"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
