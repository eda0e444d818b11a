"""Before against after: what may be paired, which side loads first, and a pair that really runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.analysis.compare.lanes import lane_times
from moeprof.capture.engines.base import Step, SteppedEngine
from moeprof.capture.engines.faults import slowed
from moeprof.capture.protocol import Slowdown, WorkerPlan
from moeprof.capture.run.ab import AbRun, Pairing, pair_plan, pair_up, run_solo, solo_workload
from moeprof.capture.run.prepare import Prepared, prepare
from moeprof.core.errors import InputError, RecordError, WorkloadError
from moeprof.core.record.pairs import open_pairs
from moeprof.core.signals import SignalWatch
from moeprof.core.workload.engine import Parallel
from moeprof.core.workload.studies import Lockstep
from moeprof.core.workload.workload import Workload, load_workload

SHAPE = """
name: ab
traffic:
  arrivals: {pattern: concurrency, concurrency: 2}
  lengths: {input: {distribution: fixed, value: 6}, output: {distribution: fixed, value: 4}}
  prompts: {source: packaged}
  num_requests: 4
models:
  - {name: moe, path: MODEL}
threads: 1
prices: {usd_per_device_hour: 1.0}
"""


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    file = tmp_path_factory.mktemp("ab") / "ab.yaml"
    demo = Path(__file__).resolve().parents[3] / "workloads" / "models" / "demo-moe"
    file.write_text(SHAPE.replace("MODEL", str(demo)), encoding="utf-8")
    return load_workload(file)


@pytest.fixture(scope="module")
def prepared(workload: Workload) -> Prepared:
    return prepare(workload)


class Silent:
    def on_event(self, model: str, event: str, data: dict[str, Any]) -> None:
        pass


def changed(prepared: Prepared, **changes: Any) -> Prepared:
    return prepare(replace(prepared.workload, **changes))


def test_models_of_one_name_are_paired_and_a_single_one_needs_no_name(prepared: Prepared) -> None:
    (spec,) = prepared.workload.models
    renamed = changed(prepared, models=(replace(spec, name="moe-new"),))

    assert pair_up(prepared, prepared).models == {"moe": "moe"}
    assert pair_up(prepared, renamed).models == {"moe-new": "moe"}


def test_workloads_without_a_model_in_common_are_refused(prepared: Prepared) -> None:
    (spec,) = prepared.workload.models
    two = changed(prepared, models=(replace(spec, name="a"), replace(spec, name="b")))

    with pytest.raises(WorkloadError, match=r"no model in common \(base: moe; new: a, b\)"):
        pair_up(prepared, two)


def test_sides_that_would_not_do_the_same_steps_are_refused_by_name(prepared: Prepared) -> None:
    engine = replace(prepared.workload.engine, max_batch_tokens=64)
    other = changed(prepared, engine=engine, threads=2, seed=7)

    with pytest.raises(WorkloadError) as refused:
        pair_up(prepared, other)

    for said in (
        "threads is 1 in base and 2 in new",
        "engine.max_batch_tokens is 512 in base and 64",
        "schedules of moe",
    ):
        assert said in str(refused.value)


def test_a_side_whose_models_are_shared_by_ranks_is_refused(prepared: Prepared) -> None:
    shared = replace(prepared.workload.engine, parallel=Parallel(plan="tensor", ranks=2))

    with pytest.raises(WorkloadError, match="two models step in turn in one process, ranks hold one each"):
        pair_up(prepared, changed(prepared, engine=shared))


def test_the_side_that_is_loaded_first_alternates(prepared: Prepared, tmp_path: Path) -> None:
    pairing = pair_up(prepared, prepared)
    first = [pair_plan(pairing, "moe", n, tmp_path, tmp_path).lanes[0].name for n in range(4)]

    assert first == ["base", "new", "base", "new"]


def test_a_pair_lasts_five_seconds_unless_the_workload_or_the_user_says_otherwise(prepared: Prepared) -> None:
    own = changed(prepared, lockstep=Lockstep(max_seconds=9.0, num_requests=3, concurrency=(1, 2)))

    assert pair_up(prepared, prepared).max_seconds == 5.0
    assert pair_up(prepared, own).max_seconds == 9.0
    assert pair_up(prepared, own, max_seconds=2.0).max_seconds == 2.0
    assert pair_up(prepared, own).concurrency == (1, 2)
    assert pair_up(prepared, own).num_requests == 3


def test_the_lone_run_measures_nothing_that_only_times(workload: Workload) -> None:
    alone = solo_workload(replace(workload, launches=6, rounds=3))

    assert (alone.launches, alone.rounds) == (1, 1)
    assert not alone.instruments.peaks and not alone.instruments.overhead
    assert alone.instruments.routing and alone.instruments.quality


class Counting(SteppedEngine):
    """An engine whose steps take no time of their own."""

    facts: Any = None

    def submit(self, request: Any) -> None: ...

    def step(self) -> Any:
        return Step(start_s=0.0, end_s=0.0, device_s=None, sequences=())

    def reset(self) -> None: ...

    def close(self) -> None: ...


def test_a_slowdown_burns_after_each_so_manieth_step_and_the_step_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("moeprof.capture.engines.faults.time.perf_counter", clock)
    engine = slowed(Counting(), Slowdown(ratio=10.0, every=2))

    def looks() -> float:
        before = now[0]
        engine.step()
        return now[0] - before

    # A step takes one tick between two looks; every second one burns ten more, and a last look stamps its end.
    assert [looks() for _ in range(4)] == [2, 13, 2, 13]
    assert engine.step().end_s == 0.0 and engine.step().end_s == now[0]
    assert slowed(Counting(), None).step().end_s == 0.0


def test_an_engine_that_captures_its_steps_does_so_when_it_is_slowed() -> None:
    class Capturing(Counting):
        def prepare(self, num_sequences: int, longest_tokens: int) -> int:
            self.facts = "captured"
            return num_sequences

    engine = slowed(Capturing(), Slowdown(ratio=1.0, every=2))
    assert (engine.prepare(3, 100), engine.facts) == (3, "captured")
    assert slowed(Counting(), Slowdown(ratio=1.0, every=2)).prepare(3, 100) == 0


def fake_measure(seen: list[WorkerPlan]) -> Callable[..., Mapping[str, str]]:
    def measure(plan: WorkerPlan, hear: Any, should_stop: Any) -> Mapping[str, str]:
        seen.append(plan)
        assert plan.schedule_file.exists() and plan.warmup_file.exists()
        return {"c2": "done"}

    return measure


def test_pairs_are_measured_as_long_as_more_are_wanted(prepared: Prepared, tmp_path: Path) -> None:
    seen: list[WorkerPlan] = []
    with SignalWatch() as signals:
        run = AbRun(pair_up(prepared, prepared), tmp_path, Silent(), signals, measure=fake_measure(seen))
        assert run.pairs(lambda done: done < 3) == 3
        run.finish("done")

    found = open_pairs(tmp_path)
    assert [plan.folder.name for plan in seen] == ["launch-0", "launch-1", "launch-2"]
    assert (found.info.mode, found.info.launches, found.info.status) == ("pairs", 3, "done")
    assert not seen[0].schedule_file.exists()  # it held the prompts


def test_a_folder_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ab.json").write_text('{"format_version": 99, "mode": "pairs"}', encoding="utf-8")

    with pytest.raises(RecordError, match="format 99, this moeprof reads up to 1"):
        open_pairs(tmp_path)


def test_a_real_pair_does_equal_steps_and_a_slowdown_shows(prepared: Prepared, tmp_path: Path) -> None:
    pairing: Pairing = pair_up(prepared, prepared, max_seconds=2.0, slowdown=Slowdown(ratio=1.0))
    with SignalWatch() as signals:
        run = AbRun(pairing, tmp_path, Silent(), signals)
        run.pairs(lambda done: done < 1)
        run.finish("done")

    (measured,) = open_pairs(tmp_path).pairs["moe"]
    times = lane_times(measured)
    base, new = (times.time_SL[:, times.lanes.index(side)] for side in ("base", "new"))
    assert len(base) >= 3
    assert 1.6 < float(np.median(new / base)) < 2.4  # every step takes twice as long
    reference = measured.info.reference_kernel_s
    assert len(reference["base"]) == 2 and reference["base"] == reference["new"]


def test_the_lone_run_of_another_python_says_what_it_said(tmp_path: Path) -> None:
    """A stand-in for another environment, which refuses the workload as moeprof does: last line, exit code 2."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'moeprof: w.yaml:3: models: no such folder' >&2\nexit 2\n", encoding="utf-8")
    python.chmod(0o755)

    with (
        SignalWatch() as signals,
        pytest.raises(InputError, match=r"of base failed: w\.yaml:3: models: no such folder"),
    ):
        run_solo(python, tmp_path / "w.yaml", tmp_path / "base", signals)
