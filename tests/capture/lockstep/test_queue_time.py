"""Time in which other programs had the processor is taken off both sides, unless one side brought it about."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from moeprof.analysis.compare.lanes import lane_times
from moeprof.analysis.regress.pairs import phase_pairs, queue_of, turns_of
from moeprof.capture.devices.run_queue import nobody_knows, run_queue_clock
from moeprof.core.record.lanes import LanePass
from tests.helpers.lane_records import write_lanes


def busy(folder: Path, slow: float, *, helpers: float = 0.0, launches: int = 6) -> list[LanePass]:
    """Steps of 10 ms, new ones ``slow`` times that; others hold the processor for 5 to 30 ms a step, at random.

    ``helpers``: seconds a step that new waits longer, because of what it started itself.
    """
    random = np.random.default_rng(0)
    passes = []
    for launch in range(launches):
        queued = {side: random.uniform(0.005, 0.03, 120) * random.lognormal(0, 0.2) for side in ("base", "new")}
        queued["new"] = queued["new"] + helpers
        own = {"base": 0.010, "new": 0.010 * slow}
        wall = {side: own[side] + queued[side] for side in own}
        cpu = {side: np.full(120, own[side]) for side in own}
        passes.append(write_lanes(folder, wall, launch=launch, cpu_s=cpu, queued_s=queued))
    return passes


def test_three_per_cent_show_through_a_machine_that_is_busy_most_of_the_time(tmp_path: Path) -> None:
    passes = busy(tmp_path, 1.03)

    found = phase_pairs(turns_of(passes), "decode")
    assert list(found.logs) == [pytest.approx(math.log(1.03))] * 6
    assert found.queue.is_off and found.queue.share_ratio is not None
    assert 1.0 < found.queue.share_ratio[0] < 3.0, "it waited longer than it computed"
    assert "that other programs had is taken off" in found.note
    assert found.taken == (0, 0), "what was taken off is no interruption any more"


def test_waiting_that_one_side_brought_about_counts(tmp_path: Path) -> None:
    """Helper threads of the new side take the processor from it: 50 ms a step."""
    passes = busy(tmp_path, 1.0, helpers=0.05)

    found = phase_pairs(turns_of(passes), "decode")

    assert found.queue.is_one_sided and not found.queue.is_off
    assert "more uneven than by chance, so it counts" in found.note
    assert min(found.logs) > math.log(1.5)


def test_an_account_that_does_not_add_up_is_not_used(tmp_path: Path) -> None:
    """10 ms of wall time cannot hold 8 ms of computing and 8 ms of waiting."""
    sides = {"base": 0.01, "new": 0.01}
    written = write_lanes(tmp_path, sides, cpu_s=dict.fromkeys(sides, 0.008), queued_s=dict.fromkeys(sides, 0.008))

    assert np.isnan(lane_times(written, keep_taken=True).queued_SL).all()


def test_without_the_account_wall_time_decides(tmp_path: Path) -> None:
    passes = [write_lanes(tmp_path, {"base": 0.01, "new": 0.02}, launch=launch) for launch in range(2)]

    found = phase_pairs(turns_of(passes), "decode")

    assert found.queue.share_ratio is None and found.queue.note == ""
    assert found.logs == (pytest.approx(math.log(2)),) * 2


def test_a_quiet_machine_says_nothing_of_queues() -> None:
    wall = [np.full((10, 2), 0.01)] * 6
    wait = [np.full((10, 2), 1e-6)] * 6

    assert queue_of(wall, wait).is_off
    assert queue_of(wall, wait).note == ""


def test_a_table_of_an_older_version_reads_with_unknown_waits(tmp_path: Path) -> None:
    written = write_lanes(tmp_path, {"base": 0.01, "new": 0.01})
    file = written.path / "lanes.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["queued_s"]), file)

    assert np.isnan(lane_times(LanePass(written.path)).queued_SL).all()


@pytest.mark.skipif(not os.path.exists("/proc/thread-self/schedstat"), reason="no account of run queues here")
def test_the_account_grows_and_is_told_for_one_thread_on_a_cpu_only() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = run_queue_clock(torch.device("cpu"))
        first = clock()
        sum(range(100_000))
        second = clock()
    finally:
        torch.set_num_threads(threads)

    assert first is not None and second is not None and 0 <= first <= second
    assert run_queue_clock(torch.device("cuda")) is nobody_knows
    assert nobody_knows() is None
