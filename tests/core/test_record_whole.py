"""A record is whole or says so: a run that ended lists its files, and who opens it is told what is missing, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moeprof.core.errors import RecordError
from moeprof.core.record.layout import open_record
from moeprof.core.record.whole import list_files
from tests.helpers.planted_runs import launch
from tests.helpers.records import make_facts, write_record
from tests.helpers.tiny_run import run_main


def written(folder: Path, *, listed: bool, status: str = "done", **workload: object) -> Path:
    models = {
        "moe": (make_facts(), [launch(1, moe=True)]),
        "dense": (make_facts(num_experts=0, name="dense"), [launch(2)]),
    }
    run = write_record(folder, models, status=status, workload=workload)
    for header in run.glob("*/launch-0/round-*/pass.json"):
        header.write_text(json.dumps(json.loads(header.read_text()) | {"status": "done"}))
    if listed:
        file = run / "experiment.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"files": list_files(run)}))
    return run


def test_the_list_has_schedules_and_folders_and_nothing_that_is_derived(tmp_path: Path) -> None:
    run = written(tmp_path / "run", listed=False)
    for name in ("summary.json", "report.md", "report.html", "heartbeat", "schedule.parquet", "schedule-ab.parquet"):
        (run / name).write_text("12345")
    files = list_files(run)
    assert {name for name in files if "/" not in name} == {"schedule.parquet", "schedule-ab.parquet"}
    assert files["schedule.parquet"] == 5
    assert {"moe/model.json", "moe/launch-0/launch.json", "moe/launch-0/round-1/requests.parquet"} < files.keys()


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("lost", ["moe/launch-0/round-0/requests.parquet", "dense/launch-0/round-1/steps.parquet"])
def test_a_table_that_is_gone_is_exit_2_by_name(tmp_path: Path, lost: str, listed: bool) -> None:
    run = written(tmp_path / "run", listed=listed)
    assert len(open_record(run).models) == 2
    (run / lost).unlink()
    told = run_main(["report", run])
    assert told.code == 2 and f"{run / lost}: missing" in told.stderr and told.stderr.count("\n") == 1


@pytest.mark.parametrize("listed", [True, False])
def test_a_model_folder_that_is_gone_is_exit_2_by_name(tmp_path: Path, listed: bool) -> None:
    run = written(tmp_path / "run", listed=listed)
    (run / "dense").rename(tmp_path / "dense")
    told = run_main(["report", run])
    assert told.code == 2 and f"{run / 'dense'}" in told.stderr and "missing" in told.stderr


def test_only_a_list_knows_of_routing_and_sizes(tmp_path: Path) -> None:
    run = written(tmp_path / "run", listed=True)
    file = run / "moe/launch-0/round-0/routing.npz"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(RecordError, match=rf"routing\.npz: has {size - 7:,} bytes, the run wrote {size:,}"):
        open_record(run)
    file.unlink()
    with pytest.raises(RecordError, match=r"routing\.npz: missing"):
        open_record(run)


def test_what_was_interrupted_or_ran_out_of_time_may_lack_files(tmp_path: Path) -> None:
    stopped = written(tmp_path / "stopped", listed=False, status="interrupted")
    (stopped / "moe/launch-0/round-1/requests.parquet").unlink()
    short = written(tmp_path / "short", listed=False, max_minutes=1)
    (short / "dense").rename(tmp_path / "dense")
    assert open_record(stopped).status == "interrupted" and open_record(short).status == "done"
