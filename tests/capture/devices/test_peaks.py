"""Measured peaks: best of several ways, buffers beyond the cache, null with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moeprof.capture.devices import peaks
from moeprof.capture.devices.peaks import Trial, cache_bytes, measure_peaks

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers and matrices small enough for a test."""
    monkeypatch.setattr(peaks, "SMALLEST_BUFFER_BYTES", 2**20)
    monkeypatch.setattr(peaks, "CACHES_IN_BUFFER", 0)
    monkeypatch.setattr(peaks, "MATMUL_SIZES", {"cpu": (64, 128)})


@pytest.mark.usefixtures("small")
def test_the_best_trial_is_the_peak_and_all_trials_are_kept() -> None:
    measured = measure_peaks(CPU, 1, budget_s=0.05)
    ways = {trial.kind: trial.per_s for trial in measured.trials if "matmul" not in trial.kind}
    assert set(ways) == {"copy", "read", "matrix_vector"}
    assert measured.bandwidth_bytes_per_s == max(ways.values())
    assert ways[str(measured.bandwidth_method)] == max(ways.values())
    assert measured.flops_per_s["float32"] == max(t.per_s for t in measured.trials if t.kind == "matmul_float32")
    assert set(measured.flops_per_s) <= {"float32", "bfloat16"}
    assert measured.bandwidth_reason is None
    json.dumps(measured.to_json(), allow_nan=False)


@pytest.mark.usefixtures("small")
def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    assert measure_peaks(CPU, before + 1, budget_s=0.01).threads == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.usefixtures("small")
def test_a_copy_counts_each_byte_read_and_written() -> None:
    measured = measure_peaks(CPU, 1, budget_s=0.01)
    amounts = {trial.kind: trial.amount for trial in measured.trials}
    assert amounts["copy"] == amounts["read"] == measured.buffer_bytes
    assert amounts["matmul_float32"] in (2 * 64**3, 2 * 128**3)


@pytest.mark.usefixtures("small")
def test_without_room_for_a_buffer_beyond_the_cache_bandwidth_is_null_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peaks, "SMALLEST_BUFFER_BYTES", 2**60)
    measured = measure_peaks(CPU, 1, budget_s=0.01)
    assert measured.bandwidth_bytes_per_s is None
    assert measured.bandwidth_reason is not None
    assert "too little free memory" in measured.bandwidth_reason


def test_the_last_cache_is_read_from_the_kernel(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2048K", "32M")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(size + "\n")
    assert cache_bytes(CPU, tmp_path) == 32 * 2**20
    assert cache_bytes(CPU, tmp_path / "absent") is None


def test_a_rate_is_amount_over_time() -> None:
    assert Trial(kind="copy", amount=100.0, seconds=0.5).per_s == 200.0
