"""``python -m benchmarks.bench``: the speed targets that need no GPU, side by side in one run, with the machine named.

Every comparison runs in turns (A B, B A, ...) on the same machine in the same minutes and is judged as a ratio; seconds
are judged only where the promise is in seconds. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.verdict import Row, table

ROOT = Path(__file__).parents[1]
PARTS = ("startup", "trace", "report", "overhead", "short", "long", "shape")
RIVALS = ("short", "long", "shape")


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for and print one table."""
    options = _parse(arguments)
    # Before torch is imported: it reads them once.
    os.environ |= {
        "OMP_NUM_THREADS": str(options.threads[0]),
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    measured: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        rows = _without_torch(options, Path(name))
        if "overhead" in options.only:
            rows += _overhead(options)
        for threads in options.threads:
            rows += _rivals(options, Path(name), threads, measured)
    machine = _machine(options)
    print(machine)
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(machine, rows, measured), indent=1) + "\n")
    return 0 if all(row.ok for row in rows) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats: a first look, not a judgement")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="threads of every rival; one table each")
    parser.add_argument(
        "--vllm-python", type=Path, default=ROOT / ".venv-vllm/bin/python",
        help="interpreter of an environment with vLLM's CPU build (make bench-vllm); rows say so where there is none",
    )  # fmt: skip
    parser.add_argument(
        "--settings", nargs="+", type=json.loads, default=[{}, {"cpu_kernels": "all"}],
        help="engine settings as JSON that ours tries and chooses from, as the others try theirs",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="also write all that was measured to this file")
    return parser.parse_args(arguments)


def as_json(machine: str, rows: list[Row], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """Machine, rows with interval and verdict, and every rate of every round."""
    return {
        "machine": machine.strip().splitlines(),
        "rows": [
            {
                "what": row.what,
                "target": row.target.text,
                "value": row.value,
                "low": row.low,
                "high": row.high,
                "unit": row.target.unit,
                "verdict": row.verdict,
                "details": row.details,
            }
            for row in rows
        ],
        "contests": measured,
    }


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


def _overhead(options: argparse.Namespace) -> list[Row]:
    import torch

    from benchmarks.models import DEMO, load
    from benchmarks.overhead import overhead_rows

    torch.set_num_threads(options.threads[0])
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)
    _say("overhead of the instruments")
    return overhead_rows(load(DEMO), DEMO, seconds=10.0 if options.quick else 40.0)


def _rivals(options: argparse.Namespace, folder: Path, threads: int, measured: list[dict[str, Any]]) -> list[Row]:
    parts = [part for part in RIVALS if part in options.only]
    if not parts:
        return []
    from benchmarks.loads import LONG, SHAPE, SHORT
    from benchmarks.models import DEMO, save_shape
    from benchmarks.rivals import Contest, compete

    rows: list[Row] = []
    for part in parts:
        load, shape = {"short": SHORT, "long": LONG, "shape": SHAPE}[part], folder / "shape"
        if part == "shape" and not shape.exists():
            save_shape(shape)
        model, title = (shape, "211 M float32") if part == "shape" else (DEMO, "demo MoE")
        contest = Contest(
            name=f"{title}, {load.name}, {threads} thread{'s' * (threads > 1)}",
            model=model,
            load=load,
            threads=threads,
            vllm_python=options.vllm_python,
            settings=options.settings,
            repeats=3 if options.quick else load.repeats,
        )
        _say(f"throughput, {contest.name}")
        found, everything = compete(contest, folder / f"{part}-{threads}", _say)
        rows += found
        measured.append(everything)
    return rows


def _machine(options: argparse.Namespace) -> str:
    from moeprof.capture.devices.environment import environment

    facts = environment(None, "cpu", options.threads[0])
    packages = ", ".join(f"{name} {facts.packages[name]}" for name in ("torch", "transformers", "numpy", "pyarrow"))
    return (
        f"{facts.cpu}, {facts.cpu_cores} cores, {' '.join(facts.cpu_flags)}, "
        f"{(facts.memory_bytes or 0) / 2**30:.0f} GiB, load average {facts.load_average_1min:.1f}\n"
        f"{facts.system}, Python {facts.python}, {packages}\n"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
