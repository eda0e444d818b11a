"""The demo models through vLLM's CPU build, eager and compiled, beside the embedded engine on the same requests.

Needs an environment with vLLM: MOEPROF_VLLM_PYTHON names its interpreter (``make test-vllm`` makes one).
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.core.record.routing import Routing
from tests.helpers.tiny_run import run_main

PYTHON = os.environ.get("MOEPROF_VLLM_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="MOEPROF_VLLM_PYTHON names no interpreter with vLLM")
MODELS = Path(__file__).parents[2] / "workloads" / "models"
NUM_REQUESTS, OUTPUT_TOKENS, TOP_K = 24, 24, 2
ALIKE_SHARE = 0.98  # bfloat16 rounds otherwise in other kernels, which moves picks that were nearly a tie
WORKLOAD = f"""\
name: beside
traffic:
  arrivals: {{pattern: concurrency, concurrency: 8}}
  lengths:
    input: {{distribution: uniform, low: 20, high: 120}}
    output: {{distribution: fixed, value: {OUTPUT_TOKENS}}}
  prompts: {{source: packaged}}
  num_requests: {NUM_REQUESTS}
models:
  - {{name: moe, path: {MODELS}/demo-moe}}
  - {{name: dense, path: {MODELS}/demo-dense}}
engine: ENGINE
rounds: 1
threads: 1
device: cpu
warmup: {{num_requests: 4, max_seconds: 3}}
instruments: {{peaks: false, gap: false, quality: false}}
prices: {{usd_per_device_hour: 1.5}}
"""
ENGINES = {
    "own": "{kind: transformers, dtype: bfloat16, max_batch_tokens: 256}",
    "eager": f"{{kind: vllm, python: {PYTHON}, dtype: bfloat16, enforce_eager: true, max_num_batched_tokens: 256}}",
    "compiled": f"{{kind: vllm, python: {PYTHON}, dtype: bfloat16, max_num_batched_tokens: 256}}",
    "tensor": f"{{kind: vllm, python: {PYTHON}, enforce_eager: true, tensor_parallel: 2, max_num_batched_tokens: 256}}",
    "prefixes": f"{{kind: vllm, python: {PYTHON}, enforce_eager: true, prefix_cache: true}}",
    "tight": f"{{kind: vllm, python: {PYTHON}, enforce_eager: true, kv_tokens: 512, max_num_batched_tokens: 256}}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@cache
def record(folder: Path, name: str) -> Path:
    """A run with one of the engines, made once."""
    file = folder / f"{name}.yaml"
    file.write_text(WORKLOAD.replace("ENGINE", ENGINES[name]), encoding="utf-8")
    ran = run_main(["run", file, "--output-dir", folder / name, "--save-detailed"])
    assert ran.code == 0, ran.stderr
    return folder / name


def launch_of(run: Path, model: str) -> Any:
    return json.loads((run / model / "launch-0" / "launch.json").read_text())


def round_of(run: Path, model: str) -> Path:
    return run / model / "launch-0" / "round-0"


def picks_of(run: Path) -> dict[tuple[int, int], Any]:
    """(request, position) -> picks [layers, k], in ascending order."""
    found = {}
    for part in sorted((round_of(run, "moe") / "picks").glob("part-*.npz")):
        with np.load(part) as arrays:
            picks_TLK = np.sort(arrays["picks_TLK"], axis=2)
            for request, position, picks in zip(arrays["request_T"], arrays["position_T"], picks_TLK, strict=True):
                found[int(request), int(position)] = picks
    return found


@pytest.mark.parametrize("mode", ["eager", "compiled", "tensor"])
def test_picks_are_ours_in_nearly_all_token_layers(folder: Path, mode: str) -> None:
    ours, theirs = picks_of(record(folder, "own")), picks_of(record(folder, mode))
    assert ours.keys() == theirs.keys()
    same = np.stack([(ours[key] == theirs[key]).all(axis=1) for key in ours])
    assert same.mean() >= ALIKE_SHARE, same.mean(axis=0)
    assert same.mean(axis=0).min() >= ALIKE_SHARE - 0.01, same.mean(axis=0)


@pytest.mark.parametrize("mode", ["eager", "compiled", "tensor", "tight"])
def test_counts_are_exact(folder: Path, mode: str) -> None:
    run = record(folder, mode)
    routing, own = Routing.load(round_of(run, "moe") / "routing.npz"), Routing.load(
        round_of(record(folder, "own"), "moe") / "routing.npz"
    )  # fmt: skip
    tokens = int(routing.real_tokens_WPC.sum())
    assert (routing.counts_WPCLE.sum(axis=(0, 1, 2, 4)) == TOP_K * tokens).all()
    assert routing.layer_names == own.layer_names
    if mode != "tight":  # tokens that were computed again are counted again
        assert routing.real_tokens_WPC.sum(axis=(0, 2)).tolist() == own.real_tokens_WPC.sum(axis=(0, 2)).tolist()
    for model in ("moe", "dense"):
        told = json.loads((round_of(run, model) / "pass.json").read_text())
        assert told["status"] == "done" and told["finished"] == NUM_REQUESTS
        assert all(check["passed"] for check in told["invariants"].values()), told["invariants"]


@pytest.mark.parametrize("mode", ["eager", "compiled", "tensor", "prefixes", "tight"])
def test_ids_are_forced_and_the_models_own_are_kept(folder: Path, mode: str) -> None:
    """That the ids came out is checked at the end of each request by the engine; here that they agree as ours do."""
    for model in ("moe", "dense"):
        ours, theirs = (
            pd.read_parquet(round_of(record(folder, name), model) / "requests.parquet")
            .set_index("request")
            .sort_index()
            for name in ("own", mode)
        )
        assert theirs["output_tokens"].tolist() == [OUTPUT_TOKENS] * NUM_REQUESTS
        assert theirs["input_tokens"].tolist() == ours["input_tokens"].tolist()
        off = (theirs["agreed_tokens"] - ours["agreed_tokens"]).abs().sum()
        assert off <= 0.03 * NUM_REQUESTS * OUTPUT_TOKENS
        assert 0.1 < theirs["agreed_tokens"].sum() / (NUM_REQUESTS * OUTPUT_TOKENS) < 0.9


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_the_record_says_what_ran(folder: Path, mode: str) -> None:
    moe, dense = (launch_of(record(folder, mode), name) for name in ("moe", "dense"))
    assert moe["engine"]["kind"] == "vllm" and moe["engine"]["dtype"] == "bfloat16"
    assert moe["engine"]["compiled"] == (None if mode == "eager" else "model")
    assert moe["taken"]["compilation_mode"] == ("NONE" if mode == "eager" else "DYNAMO_TRACE_ONCE")
    assert moe["self_check"]["passed"] is True and len(moe["self_check"]["checks"]) == 4
    assert [check["passed"] for check in moe["self_check"]["checks"]] == [True] * 4
    assert dense["self_check"]["passed"] is None
    assert set(moe["lacks"]) == set(dense["lacks"]) == {"module"}
    assert moe["overhead_pairs"] > 0 and dense["overhead_pairs"] > 0
    assert moe["taken"]["weights_bytes"] > 10 * 2**20 and moe["engine"]["kv_bytes"] > 0


def test_steps_hold_what_was_asked_for_and_no_more(folder: Path) -> None:
    run = record(folder, "compiled")
    steps = pd.read_parquet(round_of(run, "moe") / "steps.parquet")
    assert (steps["prefill_tokens"] + steps["decode_tokens"]).max() <= 256
    assert steps["decode_tokens"].sum() == NUM_REQUESTS * (OUTPUT_TOKENS - 1)
    assert steps["kv_tokens_used"].max() <= launch_of(run, "moe")["engine"]["kv_tokens"]


def test_a_cache_that_is_too_small_makes_requests_wait_or_lose_it(folder: Path) -> None:
    requests = pd.read_parquet(round_of(record(folder, "tight"), "moe") / "requests.parquet")
    waited = (requests["first_scheduled_s"] - requests["sent_s"]).max()
    assert waited > 0 and (requests["recomputed_tokens"] > 0).equals(requests["num_preemptions"] > 0)


def test_shared_prefixes_are_told_as_cached(folder: Path) -> None:
    """The capacity of one pass repeats no prompt, so what is cached is told as nothing, and never as less."""
    requests = pd.read_parquet(round_of(record(folder, "prefixes"), "moe") / "requests.parquet")
    assert (requests["cached_tokens"] >= 0).all() and (requests["cached_tokens"] < requests["input_tokens"]).all()
    assert launch_of(record(folder, "prefixes"), "moe")["taken"]["prefix_cache"] is True
