"""``moeprof regress`` as people type it: exit codes, what is refused and how, which gates are in force, files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moeprof.core.record.pairs import BASE, NEW
from tests.helpers.lane_records import write_lanes
from tests.helpers.planted_runs import launch, planted_run
from tests.helpers.records import make_facts, write_record
from tests.helpers.tiny_run import run_main

RENT = ("--usd-per-device-hour", "3.6")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six launches each: ``base``, ``same`` (other noise), ``slow`` (dense 40 % slower), ``one`` (one launch)."""
    folder = tmp_path_factory.mktemp("runs")
    planted_run(folder / "base" / "planted", seed=1)
    planted_run(folder / "same" / "planted", seed=2)
    planted_run(folder / "slow" / "planted", seed=3, slow=1.4)
    planted_run(folder / "one" / "planted", seed=4, launches=1)
    return folder


def regress(*arguments: object) -> tuple[int, str, str]:
    ran = run_main(["regress", *arguments])
    return ran.code, ran.stdout, ran.stderr


def test_the_same_code_is_no_regression(runs: Path) -> None:
    code, out, err = regress(
        runs / "same" / "planted", "--baseline", runs / "base" / "planted", "--fail-on", "exact", *RENT
    )

    assert (code, err) == (0, "")
    assert out.startswith("No regression:")


def test_a_model_forty_per_cent_slower_ends_in_three_and_names_the_gate(runs: Path) -> None:
    code, out, err = regress(
        runs / "slow" / "planted", "--baseline", runs / "base" / "planted", "--fail-on", "timed", *RENT
    )

    assert code == 3
    assert out.startswith("WORSE: dense: decode step 1.")
    assert re.fullmatch(r"moeprof: regression: [12] of \d gates (is|are) worse\n", err)


def test_one_launch_cannot_tell_and_says_how_many_would_do(runs: Path) -> None:
    code, out, err = regress(
        runs / "one" / "planted", "--baseline", runs / "base" / "planted", "--fail-on", "timed", *RENT
    )

    assert code == 4
    assert "CANNOT TELL" in out and "--launches 6" in out.replace("\n", " ")
    assert "--allow-undecided makes this exit 0" in err
    allowed, _, _ = regress(
        runs / "one" / "planted",
        "--baseline",
        runs / "base" / "planted",
        "--fail-on",
        "timed",
        "--allow-undecided",
        *RENT,
    )
    assert allowed == 0


def test_a_saved_baseline_judges_as_its_run_does(runs: Path, tmp_path: Path) -> None:
    assert run_main(["baseline", "save", runs / "base" / "planted", "main", "--folder", tmp_path, *RENT]).code == 0
    ways = [runs / "base" / "planted", "main", next(tmp_path.glob("*/*/main.json"))]

    said = [
        regress(runs / "slow" / "planted", "--baseline", way, "--baselines", tmp_path, "--format", "json", *RENT)
        for way in ways
    ]

    gates = [
        [(gate["metric"], gate["verdict"], gate["ratio"]) for gate in json.loads(out)["gates"]] for _, out, _ in said
    ]
    assert gates[0] == gates[1] == gates[2]
    assert [code for code, _, _ in said] == [3, 3, 3]
    next(tmp_path.glob("*/*/main.json")).with_name("other.json").write_text('{"format_version": 99}')
    code, _, err = regress(runs / "slow" / "planted", "--baseline", ways[0], "--baselines", tmp_path, *RENT)
    assert code == 3 and "note: no trend: " in err, "another file of the folder hides no verdict"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to judge: give a RUN with --baseline NAME|FILE|RUN, or --ab BASE NEW"),
        (("RUN",), "nothing to judge it against; give --baseline"),
        (("RUN", "--baseline", "RUN", "--launches", "6"), "are for --ab, which measures"),
        (("RUN", "--ab", "a.yaml", "b.yaml"), "leave RUN and --baseline out"),
        (("RUN", "--baseline", "nowhere", "--baselines", "none", *RENT), "no baseline 'nowhere' of workload"),
        (("RUN", "--baseline", "RUN", "--fail-on", "itl_p99:3%"), "there is no metric 'itl_p99'"),
        (("RUN", "--baseline", "RUN", "--fail-on", "itl_p99_s"), "--fail-on"),
        (("RUN", "--baseline", "RUN", "--allow", "weather"), "'weather' is no fact of a run"),
        (("RUN", "--baseline", "RUN", "--write", "pdf"), "--write 'pdf': unknown format 'pdf'; allowed: md, html"),
        (("RUN", "--baseline", "RUN", "--gates", "missing.yaml"), "missing.yaml"),
    ],
)
def test_a_mistake_is_one_line_and_two(runs: Path, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = regress(*(str(runs / "base" / "planted") if part == "RUN" else part for part in arguments))

    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("moeprof: ") and err.count("\n") == 1


def changed_record(source: Path, target: Path, **environment: object) -> Path:
    shutil.copytree(source, target)
    file = target / "experiment.json"
    content = json.loads(file.read_text())
    content["environment"] |= environment
    file.write_text(json.dumps(content))
    return target


def test_another_device_is_refused_for_times_and_not_for_counts(runs: Path, tmp_path: Path) -> None:
    other = changed_record(runs / "same" / "planted", tmp_path / "other", device_name="Another CPU", threads=7)

    code, out, err = regress(other, "--baseline", runs / "base" / "planted", "--fail-on", "timed", *RENT)
    exact, _, _ = regress(other, "--baseline", runs / "base" / "planted", "--fail-on", "exact", *RENT)
    allowed, _, _ = regress(
        other,
        "--baseline",
        runs / "base" / "planted",
        "--fail-on",
        "timed",
        "--allow",
        "device,threads",
        "--allow-undecided",
        *RENT,
    )

    assert (code, out, exact, allowed) == (2, "", 0, 0)
    lines = err.splitlines()
    assert len(lines) == 2, "one line for each fact"
    assert "Another CPU" in lines[0] and "--allow device" in lines[0]
    assert "threads" in lines[1] and "--allow threads" in lines[1]


def other_model(folder: Path, seed: int = 3) -> Path:
    """As ``planted_run``, but the MoE has three layers: 40,000 parameters more. The folder's name is the workload's."""
    models = {
        "moe": (make_facts(num_layers=3), [launch(1000 * seed + i, moe=True) for i in range(6)]),
        "dense": (make_facts(num_experts=0, name="dense"), [launch(1000 * seed + 500 + i) for i in range(6)]),
    }
    return write_record(folder, models)


@pytest.mark.parametrize("gates", [(), ("--fail-on", "exact"), ("--fail-on", "routing")])
def test_a_run_of_another_workload_and_model_is_no_regression(
    runs: Path, tmp_path: Path, gates: tuple[str, ...]
) -> None:
    """The baseline is of workload ``planted``; a larger model under the name ``chat`` is another thing."""
    file = saved(runs, tmp_path)

    code, out, err = regress(other_model(tmp_path / "chat"), "--baseline", file, *gates, *RENT)

    assert (code, out) == (2, "")
    first, second = err.splitlines()
    assert first.startswith("moeprof: another workload: planted against chat: forbids the ")
    assert first.endswith("--allow workload")
    assert "1,080,000 parameters" in second and "1,120,000 parameters" in second and second.endswith("--allow model")


def test_what_another_workload_allows_is_judged_and_said(runs: Path, tmp_path: Path) -> None:
    chat = other_model(tmp_path / "chat")
    arguments = (chat, "--baseline", runs / "base" / "planted", "--fail-on", "exact", *RENT)

    code, out, _ = regress(*arguments, "--allow", "workload")

    assert code == 3
    assert "parameters, total 1.037x" in out  # 1,120,000 / 1,080,000
    assert "Compared although the runs differ in workload: planted against chat." in " ".join(out.split())


def test_a_workload_with_another_name_and_the_same_model_and_traffic_is_the_same(runs: Path, tmp_path: Path) -> None:
    renamed = planted_run(tmp_path / "renamed", seed=1).record.path
    assert regress(renamed, "--baseline", runs / "base" / "planted", "--fail-on", "exact", *RENT)[0] == 0


def test_what_is_incomparable_has_no_value_no_sentence_and_no_colour_in_any_file(runs: Path, tmp_path: Path) -> None:
    """40,000 parameters more of the same workload are worse for certain; of routing and times nothing is known."""
    out = tmp_path / "out"
    code, text, _ = regress(
        other_model(tmp_path / "planted"), "--baseline", runs / "base" / "planted",
        "--write", "md,html,json,csv,comment,junit,github,bmf,codequality,metrics", "--output-dir", out, *RENT,
    )  # fmt: skip
    assert code == 3

    found = json.loads((out / "regress.json").read_text())
    bare = [row for row in (*found["gates"], *found["changes"]) if row["verdict"] == "incomparable"]
    assert len([row for row in bare if row["metric"] == "dead_experts" and row["model"] == "moe"]) > 1
    for row in bare:
        assert (row["reference"], row["other"]) == (None, None)
        assert row["ratio"] == {"value": None, "ci_low": None, "ci_high": None}
        assert not row.get("other_launches")
    assert found["routing"] == []
    for name in ("regress.md", "comment.md"):
        assert "|moe: dead experts||||incomparable|not compared|no rise|" in (out / name).read_text()
    for name in ("regress.md", "comment.md", "regress.html", "regress.junit.xml"):
        said = (out / name).read_text()
        assert "Layer" not in said and "Routing before and after" not in said and "load entropy" not in said
    html = (out / "regress.html").read_text()
    assert not re.findall(r'class="[^"]*(?:better|worse)[^"]*"[^>]*>(?:(?!</td>).)*incomparable', html)
    assert "incomparable" not in (out / "annotations.txt").read_text()
    assert "incomparable" not in (out / "gl-code-quality-report.json").read_text()
    junit = (out / "regress.junit.xml").read_text()
    assert junit.count("<skipped>incomparable: not compared") == 5 and "<error" not in junit
    assert "router_load" not in (out / "regress.bmf.json").read_text() + (out / "metrics.txt").read_text()
    lines = [line for line in text.splitlines() if "incomparable" in line and line.startswith("moe: ")]
    assert len(lines) >= 5


# -- figures and records of another version ----------------------------------------------------------------------------


def saved(runs: Path, folder: Path) -> Path:
    """A baseline of ``base``, in a folder of its own."""
    assert run_main(["baseline", "save", runs / "base" / "planted", "main", "--folder", folder / "b", *RENT]).code == 0
    return next((folder / "b").glob("*/*/main.json"))


def test_a_baseline_with_a_figure_that_this_version_does_not_know_is_a_line(runs: Path, tmp_path: Path) -> None:
    """``total_params`` under another name, as another version may call it."""
    file = saved(runs, tmp_path)
    file.write_text(file.read_text().replace('"name": "total_params"', '"name": "x_total_params"'))
    arguments = (runs / "same" / "planted", "--baseline", file, *RENT)

    code, out, err = regress(*arguments)

    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith(
        "moeprof: the baseline main has a figure that this version of moeprof"
    )
    assert "x_total_params" in err and "--allow metrics" in err
    code, out, err = regress(*arguments, "--allow", "metrics")
    assert code == 4  # total_params is a gate, and the baseline has none
    assert "parameters, total" in out and "the reference: it has no such figure" in " ".join(out.split())
    assert "Judged without: the baseline main has a figure" in " ".join(out.split())
    assert regress(*arguments, "--allow", "metrics", "--fail-on", "weights_bytes:0")[0] == 0
    for command in (["show", file], ["list", "--folder", tmp_path / "b"]):
        assert run_main(["baseline", *command]).code == 0


@pytest.mark.parametrize(
    ("metric", "gates", "expected"),
    [
        ("total_params", (), 4),
        ("step_mean_s", ("--fail-on", "timed"), 4),
        ("router_load_max_over_mean", ("--fail-on", "router_load_max_over_mean{phase=decode}:+0.2"), 4),
        ("router_load_gini", (), 0),  # no gate looks at it
    ],
)
def test_an_older_baseline_that_lacks_a_gated_figure_cannot_tell(
    runs: Path, tmp_path: Path, metric: str, gates: tuple[str, ...], expected: int
) -> None:
    file = saved(runs, tmp_path)
    content = json.loads(file.read_text())
    for model in content["models"]:
        model["metrics"] = [line for line in model["metrics"] if line["name"] != metric]
    content["models"][0]["routing"] = None if metric == "router_load_max_over_mean" else content["models"][0]["routing"]
    file.write_text(json.dumps(content))
    default = ("--fail-on", "exact", "--fail-on", "routing")  # times of two planted runs may be undecided by themselves

    code, out, _ = regress(runs / "same" / "planted", "--baseline", file, *(gates or default), *RENT)

    assert code == expected
    assert ("the reference: it has no such figure" in " ".join(out.split())) is (expected == 4)


def test_a_baseline_with_keys_that_this_version_does_not_know_is_read(runs: Path, tmp_path: Path) -> None:
    file = saved(runs, tmp_path)
    content = json.loads(file.read_text())
    content |= {"colour": {"of": "later"}}
    content["facts"]["weather"] = "rain"
    content["models"][0] |= {"towers": [1, 2]}
    content["models"][0]["metrics"][0] |= {"skew": 0.5}
    file.write_text(json.dumps(content))

    assert regress(runs / "same" / "planted", "--baseline", file, "--fail-on", "exact", *RENT)[0] == 0


def test_a_record_with_keys_columns_and_files_of_a_later_version_is_read(runs: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    shutil.copytree(runs / "same" / "planted", later)
    for file in (*later.glob("experiment.json"), *later.rglob("model.json"), *later.rglob("launch.json"),
                 *later.rglob("pass.json")):  # fmt: skip
        file.write_text(json.dumps(json.loads(file.read_text()) | {"towers": {"of": [1, 2]}}))
    for file in later.rglob("steps.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.append_column("colour", pa.array(["red"] * table.num_rows)), file)
        pq.write_table(table, file.with_name("later.parquet"))

    assert regress(later, "--baseline", runs / "base" / "planted", "--fail-on", "exact", *RENT)[0] == 0


def test_a_record_of_a_newer_format_is_refused(runs: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(runs / "same" / "planted", newer)
    content = json.loads((newer / "experiment.json").read_text())
    (newer / "experiment.json").write_text(json.dumps(content | {"format_version": 99}))

    code, _, err = regress(newer, "--baseline", runs / "base" / "planted")

    assert code == 2 and "format 99, this moeprof reads up to" in err and err.count("\n") == 1


def test_gates_of_the_command_line_come_before_the_file_and_that_before_the_workload(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def gates(*arguments: str) -> set[str]:
        _, out, _ = regress(
            runs / "same" / "planted", "--baseline", runs / "base" / "planted", "--format", "json", *arguments, *RENT
        )
        return {gate["metric"] for gate in json.loads(out)["gates"]}

    assert len(gates()) > 3, "the defaults"
    Path("regress.yaml").write_text("fail_on: ['total_params:+0%']\n")
    assert gates() == {"total_params"}
    Path("other.yaml").write_text("fail_on: ['weights_bytes:+0%']\n")
    assert gates("--gates", "other.yaml") == {"weights_bytes"}
    assert gates("--fail-on", "active_params:+0%") == {"active_params"}


def test_a_gates_file_with_a_mistake_names_file_and_line(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "gates.yaml"
    file.write_text("fail_on:\n  - total_params:0%\n  - itl_p99_s:often\n")

    code, _, err = regress(runs / "same" / "planted", "--baseline", runs / "base" / "planted", "--gates", file)

    assert code == 2 and "gates.yaml:3" in err and "often" in err


def test_every_file_is_written_into_a_new_folder(runs: Path, tmp_path: Path) -> None:
    names = "md,html,json,csv,comment,junit,github,benchmark-action,bmf,codequality,metrics"
    arguments = (
        runs / "slow" / "planted",
        "--baseline",
        runs / "base" / "planted",
        "--write",
        names,
        "--output-dir",
        tmp_path / "out",
        *RENT,
    )

    code, _, err = regress(*arguments)

    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert code == 3
    assert {"regress.md", "regress.html", "comment.md", "regress.junit.xml", "regress.json", "metrics.txt"} <= written
    assert err.count("Wrote ") == len(written)
    assert regress(*arguments)[0] == 2, "nothing is overwritten"


def test_github_gets_annotations_and_a_summary(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))

    _, out, _ = regress(runs / "slow" / "planted", "--baseline", runs / "base" / "planted", *RENT)
    _, quiet, _ = regress(runs / "slow" / "planted", "--baseline", runs / "base" / "planted", "--no-github", *RENT)
    _, data, err = regress(
        runs / "slow" / "planted", "--baseline", runs / "base" / "planted", "--format", "json", *RENT
    )

    assert "::error title=" in out and "::error" not in quiet
    assert summary.read_text().startswith("before\n") and "<!-- moeprof-regress:" in summary.read_text()
    assert json.loads(data)["verdict"] == "worse" and "::error" in err, "JSON stands alone on stdout"


def pairs_folder(folder: Path, *, ratio: float, launches: int = 6) -> Path:
    """What ``regress --ab`` leaves: two lone runs, and pairs in which new takes ``ratio`` times as long."""
    planted_run(folder / BASE, seed=1, launches=1)
    planted_run(folder / NEW, seed=1, launches=1)
    for model in ("moe", "dense"):
        for number in range(launches):
            seconds = {BASE: 0.010, NEW: 0.010 * ratio * (1 + 0.001 * number)}
            write_lanes(
                folder / "pairs" / model,
                seconds,
                launch=number,
                phase=["prefill"] * 8 + ["decode"] * 32,
                concurrency=4,
            )
    names = {"moe": "moe", "dense": "dense"}
    content = {"format_version": 1, "mode": "pairs", "models": list(names), "base_models": names, "status": "done"}
    (folder / "ab.json").write_text(json.dumps(content))
    return folder


def test_a_folder_of_pairs_is_judged_again_without_measuring(tmp_path: Path) -> None:
    folder = pairs_folder(tmp_path / "ab", ratio=1.04)

    code, out, _ = regress(folder, *RENT)
    lenient, _, _ = regress(folder, "--fail-on", "step_mean_s{phase=decode}:10%", *RENT)

    assert code == 3 and "decode step 1.04" in out
    assert lenient == 0


def test_pairs_of_the_same_code_show_no_difference(tmp_path: Path) -> None:
    code, out, _ = regress(pairs_folder(tmp_path / "ab", ratio=1.0), *RENT)

    assert code == 0 and out.startswith("No regression:")


def test_five_pairs_are_too_few_and_the_message_says_so(tmp_path: Path) -> None:
    code, out, _ = regress(pairs_folder(tmp_path / "ab", ratio=1.04, launches=5), *RENT)

    assert code == 4 and "at least 6" in out.replace("\n", " ")


def test_pairs_of_a_measurement_that_failed_are_no_verdict_and_cut_ones_say_so(tmp_path: Path) -> None:
    folder = pairs_folder(tmp_path / "ab", ratio=1.0)
    content = json.loads((folder / "ab.json").read_text())
    found = {}
    for status in ("failed", "interrupted"):
        (folder / "ab.json").write_text(json.dumps(content | {"status": status}))
        found[status] = regress(folder, "--format", "json", *RENT)

    assert found["failed"][0] == 2 and "its measurement failed, which is no verdict" in found["failed"][2]
    assert json.loads(found["interrupted"][1])["doubts"][0]["code"] == "run_not_done"


def test_a_reader_that_goes_away_does_not_hide_the_verdict(runs: Path) -> None:
    arguments = [str(runs / "slow" / "planted"), "--baseline", str(runs / "base" / "planted"), "--all", *RENT]
    command = [sys.executable, "-m", "moeprof", "regress", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.close()

    assert process.returncode == 3


def test_where_nothing_is_judged_the_comment_and_the_summary_say_why(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    other = changed_record(runs / "same" / "planted", tmp_path / "other", threads=7)
    arguments = (other, "--baseline", runs / "base" / "planted", "--write", "comment", "--output-dir", tmp_path / "out")

    code, out, err = regress(*arguments, *RENT)

    comment = (tmp_path / "out" / "comment.md").read_text()
    assert (code, out) == (2, "")
    assert comment.startswith("### NO VERDICT\n\n- threads: ") and "ended with 2" in comment
    assert summary.read_text() == comment + "\n"
    assert "gate what can be compared: --fail-on exact" in err
