"""A record of a million output tokens, 48 layers, 128 experts, and how long and how much memory its report takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.verdict import Row, Target
from moeprof.core.record.routing import MAX_WINDOWS, Routing
from tests.helpers.records import make_facts, make_pass, make_requests, make_steps, make_telemetry, write_record

NUM_REQUESTS = 4_096
OUTPUT_TOKENS = 256
INPUT_TOKENS = 512
BATCH = 64
LAYERS, EXPERTS, TOP_K = 48, 128, 8
STEP_S = 0.02
KEPT_BYTES = 64 * 2**20  # the default cap of per-step counts
CLASSES = ("code", "prose")


def report_rows(folder: Path, repeats: int) -> list[Row]:
    """Seconds and peak resident bytes of ``moeprof report`` on that record."""
    run = write_big_record(folder / "big")
    seconds, gib = [], []
    for _ in range(repeats):
        taken, peak_bytes = _watched_report(run)
        seconds.append(taken)
        gib.append(peak_bytes / 2**30)
    what, time_target = "report on a large run", Target(at_most=10, unit="s")
    size = f"{NUM_REQUESTS * OUTPUT_TOKENS / 1e6:.2f} M output tokens, {LAYERS} layers, {EXPERTS} experts"
    return [
        Row(what=f"{what}, time", target=time_target, samples=tuple(seconds), details=size),
        Row(what=f"{what}, memory", target=Target(at_most=1, unit="GiB"), samples=tuple(gib)),
    ]


def write_big_record(folder: Path) -> Path:
    """A closed-loop run: each step one token of each of 64 requests, prompts computed on the way."""
    rng = np.random.default_rng(0)
    num_steps = NUM_REQUESTS * OUTPUT_TOKENS // BATCH
    noise = np.exp(rng.normal(0, 0.05, num_steps))
    wave = np.arange(NUM_REQUESTS) // BATCH
    starts = np.where(np.arange(num_steps) % OUTPUT_TOKENS == 0, BATCH * INPUT_TOKENS, 0)
    steps = make_steps(
        num_steps,
        step_s=STEP_S * noise,
        phase=np.where(starts > 0, "mixed", "decode").tolist(),
        prefill_tokens=starts,
        decode_tokens=BATCH,
        new_tokens=np.full(num_steps, BATCH),
    )
    ends = steps["end_s"].to_numpy()
    times = [ends[w * OUTPUT_TOKENS : (w + 1) * OUTPUT_TOKENS] for w in wave]
    requests = make_requests(
        NUM_REQUESTS,
        arrival_s=np.array([t[0] - STEP_S for t in times]),
        output_tokens=OUTPUT_TOKENS,
        input_tokens=INPUT_TOKENS,
        request_class=[CLASSES[i % 2] for i in range(NUM_REQUESTS)],
        token_times_s=times,
    )
    tables = make_pass(
        traffic="closed",
        requests=requests,
        steps=steps,
        telemetry=make_telemetry(int(ends[-1] * 5), host_rss_bytes=2**30),
        routing=make_big_routing(steps["prefill_tokens"].to_numpy(dtype=np.int64), rng),
    )
    facts = make_facts(num_layers=LAYERS, num_experts=EXPERTS, top_k=TOP_K)
    return write_record(folder, {"moe": (facts, [[tables]])}, workload={"outputs": "forced"})


def make_big_routing(prefill_tokens_S: Any, rng: np.random.Generator) -> Routing:
    """Skewed counts, drawn for as many steps as the cap keeps and repeated for the others."""
    num_steps = len(prefill_tokens_S)
    kept = min(num_steps, KEPT_BYTES // (2 * LAYERS * EXPERTS * 2))
    popularity_LE = rng.dirichlet(np.full(EXPERTS, 2.0), size=LAYERS)
    step_counts_SPLE = np.zeros((kept, 2, LAYERS, EXPERTS), dtype=np.uint16)
    for layer in range(LAYERS):
        for phase, tokens_S in enumerate((prefill_tokens_S[:kept] // 2, np.full(kept, BATCH))):
            drawn = rng.multinomial(tokens_S * TOP_K, popularity_LE[layer])
            step_counts_SPLE[:, phase, layer] = np.minimum(drawn, np.iinfo(np.uint16).max)
    both_SLE = step_counts_SPLE.sum(axis=1, dtype=np.int64)
    repeated = np.resize(np.arange(kept), num_steps)
    edges = np.unique(np.linspace(0, num_steps, MAX_WINDOWS + 1).astype(int))[:-1]
    counts_WPLE = np.stack([step_counts_SPLE[repeated[part]].sum(axis=0, dtype=np.int64)
                            for part in np.split(np.arange(num_steps), edges[1:])])  # fmt: skip
    halves_WPCLE = np.stack([counts_WPLE // 2, counts_WPLE - counts_WPLE // 2], axis=2)
    return Routing(
        counts_WPCLE=halves_WPCLE,
        real_tokens_WPC=halves_WPCLE[:, :, :, 0].sum(axis=-1) // TOP_K,
        window_start_s=edges * STEP_S,
        window_first_step=edges.astype(np.int64),
        distinct_SL=(both_SLE > 0).sum(axis=2)[repeated].astype(np.int16),
        max_load_SL=both_SLE.max(axis=2)[repeated].astype(np.int32),
        step_counts_SPLE=step_counts_SPLE,
        layer_names=tuple(f"model.layers.{i}.mlp" for i in range(LAYERS)),
        class_names=CLASSES,
        top_k_L=np.full(LAYERS, TOP_K, dtype=np.int64),
        dropped_PL=np.zeros((2, LAYERS), dtype=np.int64),
        identity_PL=np.zeros((2, LAYERS), dtype=np.int64),
    )


def _watched_report(run: Path) -> tuple[float, int]:
    """Wall seconds and peak resident bytes of the command, as the kernel accounts them when it ends."""
    out = run.parent / f"report-{time.monotonic_ns()}"
    command = [sys.executable, "-m", "moeprof", "report", str(run), "--usd-per-device-hour", "2"]
    command += ["--write", "md,html,json,csv", "--output-dir", str(out)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said.decode()
    return time.perf_counter() - start, usage.ru_maxrss * 1024
