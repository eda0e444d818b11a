"""Fixtures for the whole suite: one thread, a pair of tiny models, one real run shared by all who read it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.left_on import left_on_any
from tests.helpers.made_once import made_once
from tests.helpers.tiny_run import WORKLOAD, Ran, run_main, write_models
from tests.helpers.warm_workers import started_by, warm_workers

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores are shared with the workers that tests start
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the network

# The same examples in every run, so that a red run can be repeated; `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("repeat", derandomize=True)
settings.register_profile("search", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))


# What runs models, starts processes, draws whole pages or simulates for seconds; `make test-fast` leaves it out.
PROCESS_ROOMS = ("capture", "cli", "recipes", "benchmarks")
PROCESS_FILES = {
    "test_golden_outputs.py", "test_compare_models.py", "test_compare_document.py", "test_compare_runs.py",
    "test_house.py", "test_judge_stored.py", "test_judge_pairs.py", "test_attribution.py", "test_claims.py",
    "test_baseline_store.py", "test_recording_proxy.py",
}  # fmt: skip


# The longest files, longest first: two processes that take whole files in this order end at about the same time.
LONGEST = (
    "test_regress_cli.py", "test_run_stopped.py", "test_forecast.py", "test_gpu_evidence.py", "test_golden_outputs.py",
    "test_run_end_to_end.py", "test_twins.py", "test_two_processes.py",
    "test_paged_engine.py", "test_extras.py", "test_attribution.py", "test_broken_models.py", "test_perturb.py",
    "test_sweep_capture.py", "test_claims.py", "test_routing_graphs.py", "test_routing_replay.py", "test_lockstep.py",
    "test_parallel_ranks.py", "test_cli.py", "test_compare_cli.py", "test_bad_input.py", "test_override_graphs.py",
    "test_routing_check.py", "test_prefix_sharing.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; and a mark on what is no quick answer."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))
    for item in items:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if room in PROCESS_ROOMS or item.path.name in PROCESS_FILES or "tiny" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.process)


@pytest.fixture(autouse=True)
def nothing_stays_on_models(request: pytest.FixtureRequest) -> Iterator[None]:
    """A model that a fixture gave to a test has no wrapper and no hook on any module when the test is over."""
    yield
    if "torch" in sys.modules:
        left = left_on_any(getattr(request.node, "funcargs", {}))
        assert not left, f"the test left something on: {left}"


@pytest.fixture(scope="session", autouse=True)
def workers_are_warm() -> Iterator[None]:
    """Workers of runs that tests make in this process need no imports."""
    with warm_workers():
        yield


@pytest.fixture
def spawned_workers() -> Iterator[None]:
    """Workers of this test's runs start as those of a user do: for tests of what a fresh process takes."""
    with started_by(multiprocessing):
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``moe/``, ``dense/`` and ``workload.yaml``. Read only: tests that change it copy it."""

    def write(folder: Path) -> Ran:
        write_models(folder)
        (folder / "workload.yaml").write_text(WORKLOAD, encoding="utf-8")
        return Ran(0, "", "")

    return made_once(tmp_path_factory, "tiny", write)[0]


@pytest.fixture(scope="session")
def tiny_run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """One real open-loop run of both models, two rounds: its record, and what the command line said. Read only."""
    return made_once(
        tmp_path_factory,
        "tiny-run",
        lambda folder: run_main(["run", tiny / "workload.yaml", "--output-dir", folder]),
    )
