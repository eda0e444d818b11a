"""``moeprof compare`` as people type it: one clear line for every mistake, and the page for everything else."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest

from moeprof.core.files import read_json, write_json
from tests.helpers.tiny_run import run_main

RECORD = Path(__file__).parents[1] / "records" / "format-1"


@pytest.fixture
def lone(tmp_path: Path) -> Path:
    """A run with one model."""
    return changed(tmp_path / "lone", lambda experiment: experiment.update(models=experiment["models"][:1]))


def changed(folder: Path, change) -> Path:  # type: ignore[no-untyped-def]
    """A copy of the record with another experiment.json."""
    shutil.copytree(RECORD, folder)
    experiment = read_json(folder / "experiment.json")
    change(experiment)
    write_json(folder / "experiment.json", experiment)
    return folder


def refused(*arguments: object) -> str:
    """The one line that a refusal prints."""
    ran = run_main(["compare", *arguments])
    assert (ran.code, ran.stdout) == (2, ""), ran.stderr
    assert ran.stderr.count("\n") == 1
    return ran.stderr


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_one_run_with_one_model_is_nothing_to_compare(lone: Path) -> None:
    line = refused(lone)
    assert "nothing to compare: lone has only the model moe; give another run" in line


def test_what_is_no_run_is_refused_by_its_path(tmp_path: Path) -> None:
    assert "no such run folder" in refused(RECORD, tmp_path / "gone")
    assert f"{tmp_path}: not a moeprof run" in refused(tmp_path)


def test_a_reference_that_is_not_there_names_the_nearest() -> None:
    line = refused(RECORD, "--reference", "dens")
    assert "'dens'" in line and "allowed: moe, dense" in line and "did you mean dense?" in line


def test_of_several_runs_a_run_may_be_the_reference(tmp_path: Path) -> None:
    line = refused(RECORD, shutil.copytree(RECORD, tmp_path / "second"), "--reference", "secnd")
    assert "no such run; allowed: format-1, second; did you mean second?" in line


def test_a_run_is_a_reference_by_its_path_too(tmp_path: Path) -> None:
    second = shutil.copytree(RECORD, tmp_path / "second")
    ran = run_main(["compare", RECORD, second, "--reference", second])
    assert (ran.code, ran.stderr) == (0, "")


def test_an_unknown_difference_lists_the_known_ones() -> None:
    line = refused(RECORD, "--allow", "dtype,colour")
    assert "'colour'" in line and "dtype" in line.partition("allowed:")[2] and "device" in line


def test_an_unknown_format_is_refused() -> None:
    assert "unknown format 'pdf'" in refused(RECORD, "--write", "md,pdf")


def test_a_damaged_record_is_refused_with_its_file(tmp_path: Path) -> None:
    folder = shutil.copytree(RECORD, tmp_path / "damaged")
    (folder / "experiment.json").write_text("{")
    assert str(folder / "experiment.json") in refused(RECORD, folder)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert "nothing is overwritten" in refused(RECORD, "--write", "md", "--output-dir", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_runs_that_differ_are_refused_by_name_and_compared_when_allowed(tmp_path: Path) -> None:
    other = changed(tmp_path / "other", lambda experiment: experiment["environment"].update(threads=7))
    line = refused(RECORD, other)
    assert "threads" in line and "7" in line and "--allow threads" in line
    ran = run_main(["compare", RECORD, other, "--allow", "threads"])
    assert ran.code == 0, ran.stderr
    assert "threads" in ran.stdout


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_models_of_a_run_stand_beside_each_other() -> None:
    ran = run_main(["compare", RECORD])
    assert (ran.code, ran.stderr) == (0, "")
    assert "moe" in ran.stdout and "dense" in ran.stdout and "reference" in ran.stdout
    assert re.search(r"\dx\b", ran.stdout)


def test_all_shows_more_metrics_on_the_terminal() -> None:
    few, many = (run_main(["compare", RECORD, *more]).stdout for more in ([], ["--all"]))
    assert len(many.splitlines()) > 2 * len(few.splitlines())


def test_the_reference_can_be_chosen() -> None:
    for name in ("moe", "dense"):
        ran = run_main(["compare", RECORD, "--reference", name])
        assert (ran.code, ran.stderr) == (0, "")


def test_a_record_against_itself_is_the_same_run() -> None:
    ran = run_main(["compare", RECORD, RECORD])
    assert (ran.code, ran.stderr) == (0, "")
    assert "same run" in ran.stdout


def test_every_form_is_printed_alone_on_stdout() -> None:
    forms = {form: run_main(["compare", RECORD, "--format", form]) for form in ("json", "csv", "md")}
    assert all((ran.code, ran.stderr) == (0, "") for ran in forms.values())
    assert isinstance(json.loads(forms["json"].stdout), dict)
    rows = list(csv.reader(io.StringIO(forms["csv"].stdout)))
    assert len(rows) > 2 and len({len(row) for row in rows}) == 1
    assert forms["md"].stdout.startswith("# ")


def test_files_go_to_a_new_folder_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("", "-2"):
        ran = run_main(["compare", RECORD, "--write", "md,html,json,csv"])
        assert ran.code == 0, ran.stderr
        folder = tmp_path / "reports" / f"format-1-compare{number}"
        assert sorted(path.name for path in folder.iterdir()) == [
            f"compare.{end}" for end in ("csv", "html", "json", "md")
        ]
        assert len(ran.stderr.splitlines()) == 4
    page = (folder / "compare.html").read_text()
    links = set(re.findall(r'href="#(card-[^"]+)"', page))
    assert links and links <= set(re.findall(r'id="(card-[^"]+)"', page))
    assert "http-equiv" in page and not re.search(r'(src|href)="(https?:)?//', page)


def test_other_prices_change_the_dollars() -> None:
    cheap, dear = (
        run_main(["compare", RECORD, "--usd-per-device-hour", price, "--format", "json"]).stdout for price in (1, 10)
    )
    assert cheap != dear
