"""How long should a turn of a launch pair in two processes be? The same model on both sides, turns of several lengths.

    OMP_NUM_THREADS=1 python -m benchmarks.turn_lengths FOLDER workloads/models/demo-moe --launches 6 --turns 1 4 8 16

Both processes stay for all lengths of a launch, so that these meet the same memory; their order is shuffled. With a
``p`` after a length both processes are pinned to one core, with a ``q`` each has a core of its own. Prints, for each
length, mean and standard deviation over launches of the log ratio new / base of summed step times. The figures of two
processes in docs/regress.md come from here.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil

from moeprof.analysis.compare.lanes import LaneTimes, lane_times
from moeprof.capture.protocol import LanePlan, LockstepPart, WorkerPlan
from moeprof.capture.run.two_processes import ProcessPair, started
from moeprof.core.record.lanes import LanePass
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prompts, Traffic
from moeprof.sources.schedule import build_schedule
from moeprof.sources.tokenizer import load_tokenizer


def plan_of(folder: Path, model: Path, seconds: float) -> WorkerPlan:
    """Chat-like requests, four in flight."""
    tokenizer = load_tokenizer(model / "tokenizer.json")
    traffic = Traffic(
        arrivals=Arrivals(pattern="concurrency", concurrency=4),
        lengths=LengthPair(
            input=Lengths(distribution="lognormal", median=48, p99=160, high=192),
            output=Lengths(distribution="lognormal", median=16, p99=48, high=64),
        ),
        prompts=Prompts(source="packaged"),
        num_requests=8,
    )
    built = build_schedule(traffic, tokenizer=tokenizer, seed=0, outputs="forced", num_warmups=4)
    built.measured.save(folder / "schedule.parquet")
    built.warmup.save(folder / "warmup.parquet")
    specs = [ModelSpec(name=name, path=str(model.resolve())) for name in ("base", "new")]
    return WorkerPlan(
        kind="pairs", lanes=tuple(LanePlan(name=spec.name, model=spec) for spec in specs),
        engine=TransformersSettings(), device="cpu", threads=1, folder=folder,
        schedule_file=folder / "schedule.parquet",
        warmup_file=folder / "warmup.parquet", tokenizer_hash=tokenizer.sha256,
        lockstep=LockstepPart(concurrency=(4,), num_requests=None, max_seconds=seconds),
    )  # fmt: skip


def measure(plan: WorkerPlan, launch: int, turns: list[str]) -> None:
    """One launch: every length in turn, each in a folder of its own."""
    order = random.Random(launch).sample(turns, len(turns))
    first = replace(plan, folder=plan.folder / turns[0] / f"launch-{launch}")
    first.folder.mkdir(parents=True, exist_ok=True)
    silent, never = (lambda report: None), (lambda: False)
    with started(first, {}, silent, never) as lanes:
        pair = ProcessPair(first, lanes, silent, never)
        pair.load()
        for turn in order:
            cores = {"p": [[launch % 2], [launch % 2]], "q": [[0], [1]]}.get(turn[-1], [[0, 1], [0, 1]])
            for lane, own in zip(lanes, cores, strict=True):
                psutil.Process(lane.pid).cpu_affinity(own)
            pair.turn_steps = int(turn.rstrip("pq"))
            pair.plan = replace(plan, folder=plan.folder / turn / f"launch-{launch}")
            pair.plan.folder.mkdir(parents=True, exist_ok=True)
            pair.measure(4, None)
    print(f"launch {launch}: load average {os.getloadavg()[0]:.1f}", flush=True)


def log_ratio(times: LaneTimes, phase: str | None, *, cpu: bool = False) -> float:
    """Of summed step times, new / base; ``prefill`` counts steps with prompt tokens."""
    own = times.of_phase(None) if phase is None else times.of_phase("decode") == (phase == "decode")
    seconds = (times.cpu_SL if cpu else times.time_SL)[own].sum(axis=0)
    return math.log(seconds[1] / seconds[0])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--launches", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", nargs="+", default=["1", "4", "8", "16"])
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    plan = plan_of(asked.folder, asked.model, asked.seconds)
    for launch in range(asked.launches):
        measure(plan, launch, asked.turns)
    print(f"{'turn':>6} {'times':>8} {'mean':>8} {'sd':>7}  log ratios of launches")
    for turn in asked.turns:
        launches = [lane_times(LanePass(path)) for path in sorted((asked.folder / turn).glob("launch-*/c4"))]
        for name, phase, cpu in (("all", None, False), ("prefill", "prefill", False), ("decode", "decode", False),
                                 ("all cpu", None, True)):  # fmt: skip
            ratios = np.array([log_ratio(times, phase, cpu=cpu) for times in launches])
            row = " ".join(f"{ratio:+.3f}" for ratio in ratios)
            print(f"{turn:>6} {name:>8} {ratios.mean():+8.4f} {ratios.std(ddof=1):7.4f}  {row}")


if __name__ == "__main__":
    main()
