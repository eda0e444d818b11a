"""A folder of baselines: the file is chosen by name, workload and device; `moeprof baseline` shows what there is."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.core.baseline.store import device_slug, find, history, list_baselines, named, store
from moeprof.core.errors import InputError
from tests.helpers.baselines import make_baseline
from tests.helpers.planted_runs import planted_run
from tests.helpers.tiny_run import run_main

HERE = "a processor, 2 logical (avx2)"
OLDER = "2026-11-20T00:00:00+00:00"


def put(folder: Path, name: str = "main", **changes: Any) -> Path:
    return store(make_baseline(name, **changes), folder)


def test_a_device_is_a_readable_folder_and_two_devices_are_two_folders() -> None:
    assert device_slug("1 x NVIDIA H200") == "1-x-nvidia-h200"
    flags = [device_slug(f"Intel(R) Xeon(R) Processor, 2 logical ({flags})") for flags in ("avx2", "avx2 amx_int8")]
    assert all(slug.startswith("intel-xeon-processor-2-logical-") for slug in flags) and flags[0] != flags[1]
    assert len(device_slug("y" * 200)) < 60


def test_the_file_of_this_device_is_chosen(tmp_path: Path) -> None:
    mine = put(tmp_path)
    put(tmp_path, device="1 x NVIDIA H200", device_kind="cuda", created_at="2027-01-01T00:00:00+00:00")
    found = find(tmp_path, "main", "smoke", HERE, "cpu")
    assert (found.path, found.same_device, found.same_kind) == (mine, True, True)
    assert mine.relative_to(tmp_path).parts[0] == "smoke" and mine.name == "main.json"


def test_without_this_device_the_nearest_is_given_and_said(tmp_path: Path) -> None:
    put(tmp_path, device="1 x NVIDIA H200", device_kind="cuda")
    put(tmp_path, device="an old processor", created_at=OLDER)
    put(tmp_path, device="a new processor")
    found = find(tmp_path, "main", "smoke", HERE, "cpu")
    assert (found.baseline.device, found.same_device, found.same_kind) == ("a new processor", False, True)
    found = find(tmp_path, "main", "smoke", "8 x NVIDIA B200", "cuda")
    assert (found.baseline.device, found.same_device, found.same_kind) == ("1 x NVIDIA H200", False, True)


def test_nothing_found_says_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is none yet; `moeprof baseline save RUN NAME` makes one"):
        find(tmp_path, "main", "smoke", HERE, "cpu")
    put(tmp_path, "v1.2", device="x")
    with pytest.raises(InputError, match=r"no baseline 'main' of workload 'smoke' .*there are: smoke/x/v1.2.json"):
        find(tmp_path, "main", "smoke", HERE, "cpu")
    with pytest.raises(InputError, match="letters, digits"):
        find(tmp_path, "../main", "smoke", HERE, "cpu")


def test_a_name_alone_must_be_of_one_baseline(tmp_path: Path) -> None:
    put(tmp_path, device="x")
    put(tmp_path, device="1 x NVIDIA H200")
    with pytest.raises(InputError, match=r"'main' is the name of 2 baselines .*say --workload or --device"):
        named(tmp_path, "main")
    assert named(tmp_path, "main", device="h200").baseline.device == "1 x NVIDIA H200"
    with pytest.raises(InputError, match="no such baseline 'main'"):
        named(tmp_path, "main", workload="other")


def test_history_is_of_one_workload_and_device_oldest_first(tmp_path: Path) -> None:
    put(tmp_path, "b")
    put(tmp_path, "a", created_at=OLDER)
    put(tmp_path, "c", device="x")
    put(tmp_path, "d", workload="other")
    assert [baseline.name for baseline in history(tmp_path, "smoke", HERE)] == ["a", "b"]
    assert history(tmp_path, "smoke", "none") == ()
    assert [stored.baseline.name for stored in list_baselines(tmp_path)] == ["d", "a", "b", "c"]


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of two launches, saved as ``main``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    planted_run(tmp_path / "smoke", launches=2)
    assert run_main(["baseline", "save", "smoke", "main", "--note", "first", "--usd-per-device-hour", 3.6]).code == 0
    return tmp_path


def test_save_writes_two_files_and_says_what_cannot_be_judged(saved: Path) -> None:
    ran = run_main(["baseline", "save", "smoke", "again", "--usd-per-device-hour", 3.6])
    lines = ran.stderr.splitlines()
    assert (ran.code, ran.stdout) == (0, "")
    assert [line.split()[0] for line in lines] == ["Wrote", "Wrote", "moeprof:", "moeprof:"]
    assert "fewer than 5 launches (moe 2, dense 2)" in lines[2]
    assert "no picks of forced tokens (moe)" in lines[3]
    ran = run_main(["baseline", "save", "smoke", "main", "--usd-per-device-hour", 3.6])
    assert ran.code == 2 and "--replace" in ran.stderr


def test_a_run_that_did_not_end_is_saved_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    planted_run(tmp_path / "smoke", launches=1, status="failed")
    command = ["baseline", "save", "smoke", "main", "--usd-per-device-hour", 3.6]
    ran = run_main(command)
    assert ran.code == 2 and "the run is failed, not done; add --allow-unfinished" in ran.stderr
    assert run_main([*command, "--allow-unfinished"]).code == 0
    assert list_baselines()[0].baseline.status == "failed"


def test_a_folder_of_launch_pairs_is_no_run_but_holds_two(tmp_path: Path) -> None:
    (tmp_path / "ab.json").write_text("{}", encoding="utf-8")
    ran = run_main(["baseline", "save", tmp_path, "main"])
    assert ran.code == 2 and f"save {tmp_path / 'new'} or {tmp_path / 'base'} of it" in ran.stderr


@pytest.mark.parametrize("form", ["table", "json", "csv", "md"])
def test_list_and_show_in_every_format(saved: Path, form: str) -> None:
    listed, shown = (run_main(["baseline", *words, "--format", form]) for words in (["list"], ["show", "main"]))
    assert (listed.code, listed.stderr, shown.code) == (0, "", 0)
    assert "first" in listed.stdout and "step_mean_s{phase=decode}" in shown.stdout
    if form == "json":
        (row,) = json.loads(listed.stdout)
        assert (row["name"], row["workload"], row["launches"], row["picks"]) == ("main", "smoke", 2, False)
        rows = {(row["of"], row["what"]): row for row in json.loads(shown.stdout)}
        assert rows["moe", "total_params"]["value"] == 1_080_000
        assert rows["baseline", "price"]["value"] == pytest.approx(3.6)
    if form == "csv":
        assert {row["of"] for row in csv.DictReader(io.StringIO(shown.stdout))} == {"baseline", "moe", "dense"}


def test_show_takes_a_file_and_an_empty_folder_lists_nothing(saved: Path) -> None:
    (file,) = Path("baselines").rglob("main.json")
    assert run_main(["baseline", "show", file]).stdout == run_main(["baseline", "show", "main"]).stdout
    (saved / "empty").mkdir()
    ran = run_main(["baseline", "list", "--folder", "empty", "--format", "json"])
    assert (ran.code, json.loads(ran.stdout)) == (0, []) and "no baseline yet" in ran.stderr
    assert run_main(["baseline", "list", "--folder", "nowhere"]).code == 2


def test_rm_removes_both_files_or_nothing(saved: Path) -> None:
    ran = run_main(["baseline", "rm", "main", "nothing"])
    assert ran.code == 2 and "there are: smoke/" in ran.stderr
    assert len(list(Path("baselines").rglob("main.*"))) == 2
    ran = run_main(["baseline", "rm", "main"])
    assert (ran.code, ran.stdout, len(ran.stderr.splitlines())) == (0, "", 2)
    assert list(Path("baselines").rglob("*.*")) == []
