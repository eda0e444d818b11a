"""CI jobs: those that `moeprof init --ci` writes, and our own. They parse, and every command in them exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from moeprof.cli.init import LOCK, ci_files, requirement
from moeprof.cli.main import command_line
from moeprof.cli.output import Output
from moeprof.core.workload.gates import load_gate_settings, parse_gates
from moeprof.core.workload.workload import load_workload
from tests.helpers.tiny_run import run_main

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW, RELEASE = ".github/workflows/ci.yml", ".github/workflows/release.yml"
ACTION = ".github/actions/regress/action.yml"
JOBS = {"github": ".github/workflows/moeprof.yml", "gitlab": ".gitlab-ci.moeprof.yml"}
SOURCE = "moeprof[run] @ git+https://example.org/moeprof.git@0123abc"
Act = Callable[..., tuple[dict[str, str], list[str]]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts() -> dict[str, str]:
    """Every CI file by name."""
    found = {name: (ROOT / name).read_text() for name in (WORKFLOW, RELEASE, ACTION)}
    for system, path in JOBS.items():
        found[f"init --ci {system}"] = ci_files(system, Path("workloads"), SOURCE)[Path(path)]  # type: ignore[index]
    return found


GITHUB = [name for name in texts() if "gitlab" not in name]


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from nodes(value)


def commands(text: str) -> list[list[str]]:
    """The arguments of each call of moeprof in the shell lines of a CI file."""
    found = []
    for string in (node for node in nodes(yaml.safe_load(text)) if isinstance(node, str)):
        for line in re.sub(r"\\\n\s*", " ", string).splitlines():
            call = re.match(r"(?:\S*/)?moeprof ([a-z].*)", line.strip())
            if call is not None:
                plain = re.sub(r'"\$\{\w+\[@\]\}"', "", call.group(1).split("||")[0])
                found.append(shlex.split(re.sub(r"\$\w+", "WORD", plain)))
    return found


def parse(words: list[str]) -> dict[str, Any]:
    """As our own command line does, short of running it; an unknown command or option raises."""
    command: Any = typer.main.get_command(command_line())
    while hasattr(command, "commands"):
        assert words and words[0] in command.commands, f"no such command: moeprof {' '.join(words)}"
        command, words = command.commands[words[0]], words[1:]
    options, left, _ = command.make_parser(command.context_class(command)).parse_args(list(words))
    assert left == [], f"too many arguments: {left}"
    return dict(options)


# -- commands ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", texts())
def test_every_call_in_a_ci_job_is_one_that_the_command_line_takes(name: str) -> None:
    calls = commands(texts()[name])
    assert {words[0] for words in calls} >= ({"run", "regress"} if name not in (WORKFLOW, RELEASE) else set())
    for words in calls:
        options = parse(words)
        if "write" in options:
            Output.checked(form="table", write=options["write"], folder=None, all_metrics=False, github=None, run=None)


@pytest.mark.parametrize("words", [["run", "WORKLOAD", "--no-such-option"], ["regres", "RUN"], ["run", "A", "B"]])
def test_a_call_that_does_not_exist_would_be_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"no-such-option|regres|too many"):
        parse(words)


def test_the_steps_that_init_names_are_commands_that_exist(project: Path) -> None:
    steps = [line.split(". ", 1)[1] for line in run_main(["init", "--ci", "github"]).stdout.splitlines()]
    calls = [shlex.split(step)[1:] for step in steps if step.startswith("moeprof ")]
    assert [words[0] for words in calls] == ["run", "baseline"]
    for words in calls:
        parse(words)


def test_reports_that_gitlab_reads_are_files_that_are_written() -> None:
    from moeprof.render import FORMATS

    jobs = yaml.safe_load(texts()["init --ci gitlab"])
    for name in ("moeprof-exact", "moeprof-timed"):
        call = next(words for words in commands(json.dumps(jobs[name])) if words[0] == "regress")
        written = {file for form in parse(call)["write"].split(",") for file in FORMATS[form].files}
        reports = jobs[name]["artifacts"]["reports"]
        assert set(reports) == {"junit", "codequality", "metrics"}
        for path in reports.values():
            assert Path(path).parent == Path(parse(call)["output_dir"])
            assert Path(path).name in written


# -- GitHub ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GITHUB)
def test_actions_of_others_are_pinned_by_hash_and_say_which_release_that_is(name: str) -> None:
    uses = re.findall(r"uses: (.+)", texts()[name])
    assert uses
    pinned = r"\./\S+|actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert [action for action in uses if not re.fullmatch(pinned, action)] == []


def test_one_release_of_an_action_has_one_hash_everywhere() -> None:
    uses = {use for name in GITHUB for use in re.findall(r"uses: (actions/.+)", texts()[name])}
    assert len({use.split("@")[0] for use in uses}) == len(uses)


def test_the_job_installs_the_versions_that_were_installed_when_it_was_written(project: Path) -> None:
    assert run_main(["init", "--ci", "github"]).code == 0
    lines = (project / "moeprof-constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["torch"] == metadata.version("torch").partition("+")[0]
    assert {"numpy", "transformers", "markupsafe", "huggingface-hub"} <= set(pins)  # the last but one is jinja2's
    assert "moeprof" not in pins
    assert "pytest" not in pins
    for name in ("init --ci github", "init --ci gitlab"):
        assert "PIP_CONSTRAINT: moeprof-constraints.txt" in texts()[name]


def test_the_lock_of_this_repository_holds_what_constraints_choose() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / name).read_text().splitlines()
        found = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
        return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found.items()}

    chosen, locked = pins("constraints.txt"), pins("constraints.lock")
    assert chosen.items() <= locked.items()
    assert len(locked) > len(chosen) + 20


@pytest.mark.parametrize("name", GITHUB)
def test_no_shell_line_holds_an_expression(name: str) -> None:
    """A branch's name in `${{ }}` would be run as shell; values go through the environment."""
    lines = [node["run"] for node in nodes(yaml.safe_load(texts()[name])) if isinstance(node, dict) and "run" in node]
    assert lines
    assert [line for line in lines if "${{" in line] == []


def test_only_the_job_that_comments_may_write_and_it_runs_no_code_of_the_change() -> None:
    workflow = yaml.safe_load(texts()["init --ci github"])
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert {name: job["permissions"] for name, job in jobs.items() if "permissions" in job} == {
        "comment": {"pull-requests": "write"}
    }
    assert {step["uses"].split("@")[0] for step in jobs["comment"]["steps"]} == {
        "actions/download-artifact",
        "actions/github-script",
    }


def test_the_comment_is_read_where_it_was_kept_whether_one_job_ran_or_both() -> None:
    """An artifact that is named lies flat under ``path``; one of a pattern has a folder only where several match."""
    jobs = yaml.safe_load(texts()["init --ci github"])["jobs"]
    *downloads, script = jobs["comment"]["steps"]
    assert [step["with"] for step in downloads] == [
        {"name": "moeprof-exact", "path": "moeprof-exact"},
        {"name": "moeprof-timed", "path": "moeprof-timed"},
    ]
    assert all(step["continue-on-error"] is True for step in downloads)
    assert "`moeprof-${job}/${job}/comment.md`" in script["with"]["script"]
    for name in ("exact", "timed"):
        kept = next(step["with"] for step in jobs[name]["steps"] if "upload" in step.get("uses", ""))
        call = next(words for words in commands(json.dumps(jobs[name])) if words[0] == "regress")
        assert kept["name"] == f"moeprof-{name}"
        assert Path(parse(call)["output_dir"]).relative_to(kept["path"]) == Path(name)


def test_our_workflow_gives_our_action_what_it_takes() -> None:
    workflow, action = yaml.safe_load(texts()[WORKFLOW]), yaml.safe_load(texts()[ACTION])
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    given = [step["with"] for step in steps if step.get("uses") == "./.github/actions/regress"]
    needed = {name for name, told in action["inputs"].items() if told.get("required")}
    assert len(given) == 1
    assert needed <= set(given[0]) <= set(action["inputs"])
    assert set(action["outputs"]) == {"verdict", "exit-code", "report"}


FAKE = """#!/usr/bin/env bash
echo "$@" >> calls
if [ "$1" = run ]; then exit "$RUN_CODE"; fi
mkdir -p out/regress
if [ "$REGRESS_CODE" != 2 ]; then echo '{"verdict": "worse"}' > out/regress/regress.json; fi
exit "$REGRESS_CODE"
"""


@pytest.fixture
def act(project: Path) -> Act:
    """Runs the action's main step with a moeprof that only ends as told; returns its outputs and the calls."""
    step = next(step for step in yaml.safe_load(texts()[ACTION])["runs"]["steps"] if step.get("id") == "regress")
    (project / "moeprof").write_text(FAKE)
    (project / "moeprof").chmod(0o755)

    def run(run_code: int, regress_code: int, **inputs: str) -> tuple[dict[str, str], list[str]]:
        given = {"WORKLOAD": "w.yaml", "BASELINE": "main", "BASELINES": "stored", "FAIL_ON": "", "OUTPUT_DIR": "out"}
        given |= {"ALLOW_UNDECIDED": "false", "RUN_CODE": str(run_code), "REGRESS_CODE": str(regress_code)} | inputs
        paths = f"{project}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            env={"PATH": paths, "GITHUB_OUTPUT": str(project / "outputs"), **given},
        )
        assert done.returncode == 0, "this step never ends the job: the last one does"
        outputs = dict(line.split("=", 1) for line in (project / "outputs").read_text().splitlines())
        return outputs, (project / "calls").read_text().splitlines()

    return run


def test_the_action_tells_verdict_and_exit_code(act: Act) -> None:
    outputs, calls = act(0, 3, FAIL_ON="exact\npeak_memory_bytes:2%")
    assert outputs == {"report": "out/regress", "verdict": "worse", "exit-code": "3"}
    assert calls == [
        "run w.yaml --quiet --output-dir out/run",
        "regress out/run --baseline main --baselines stored --fail-on exact --fail-on peak_memory_bytes:2% "
        "--write comment,junit,json,html --output-dir out/regress",
    ]


def test_the_action_does_not_judge_a_run_that_failed(act: Act) -> None:
    outputs, calls = act(1, 0)
    assert outputs == {"report": "out/regress", "exit-code": "1"}
    assert [call.split()[0] for call in calls] == ["run"]


def test_the_action_makes_no_verdict_of_an_error(act: Act) -> None:
    outputs, calls = act(0, 2, ALLOW_UNDECIDED="true")
    assert outputs == {"report": "out/regress", "exit-code": "2"}
    assert "--allow-undecided" in calls[1]


# -- init --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", JOBS)
def test_init_writes_the_job_the_workload_and_the_gates(project: Path, system: str) -> None:
    ran = run_main(["init", "--ci", system])
    assert ran.code == 0
    written = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert written == {JOBS[system], "workloads/ci-smoke.yaml", "workloads/ci-smoke-moe.json", "regress.yaml", LOCK}
    assert len(ran.stderr.splitlines()) == len(written)
    numbers = [int(line.split(".")[0]) for line in ran.stdout.splitlines()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert "@" not in re.sub(r"\w@|@v\d|@ git", "", (project / JOBS[system]).read_text()), "a word was not filled in"


def test_another_folder_of_workloads_is_the_one_that_the_job_runs(project: Path) -> None:
    assert run_main(["init", "bench/moe", "--ci", "github"]).code == 0
    assert yaml.safe_load((project / JOBS["github"]).read_text())["env"]["WORKLOAD"] == "bench/moe/ci-smoke.yaml"
    assert (project / "bench/moe/ci-smoke.yaml").exists()


def test_nothing_is_overwritten_unless_asked(project: Path) -> None:
    (project / "regress.yaml").write_text("mine")
    ran = run_main(["init", "--ci", "github"])
    assert ran.code == 2
    assert "regress.yaml: is there already; nothing was written, use --force" in ran.stderr
    assert not (project / ".github").exists()
    assert run_main(["init", "--ci", "github", "--force"]).code == 0


@pytest.mark.parametrize("folder", ["/elsewhere", "../elsewhere"])
def test_a_folder_outside_of_the_project_is_refused(project: Path, folder: str) -> None:
    ran = run_main(["init", folder, "--ci", "github"])
    assert ran.code == 2
    assert "outside of the project" in ran.stderr


def test_a_folder_that_is_no_repository_is_told(project: Path) -> None:
    (project / ".git").rmdir()
    assert "No .git here" in run_main(["init", "--ci", "gitlab"]).stderr


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (None, "moeprof[run]==1.2"),
        ({"url": "file:///home/me/moeprof-1.2-py3-none-any.whl"}, "vendor/moeprof-1.2-py3-none-any.whl[run]"),
        ({"url": "https://example.org/m.whl"}, "moeprof[run] @ https://example.org/m.whl"),
        ({"url": "https://example.org/m.git", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}},
         "moeprof[run] @ git+https://example.org/m.git@0123abc"),
    ],
)  # fmt: skip
def test_a_job_installs_what_is_installed_here(
    monkeypatch: pytest.MonkeyPatch, source: dict[str, Any] | None, wanted: str
) -> None:
    class Installed:
        version = "1.2"

        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if source is None else json.dumps(source)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert requirement() == wanted


# -- the smoke workloads -----------------------------------------------------------------------------------------------


def test_the_smoke_workloads_gate_no_time_and_differ_only_in_their_models(project: Path) -> None:
    assert run_main(["init", "--ci", "github"]).code == 0
    theirs, ours = load_workload(Path("workloads/ci-smoke.yaml")), load_workload(ROOT / "workloads/ci-smoke.yaml")
    for key in ("traffic", "engine", "rounds", "launches", "threads", "device", "instruments", "outputs", "gates"):
        assert getattr(theirs, key) == getattr(ours, key), key
    assert (ours.outputs, ours.threads, ours.engine.dtype, ours.device) == ("forced", 1, "float32", "cpu")
    assert ours.traffic.arrivals is not None and not ours.traffic.arrivals.is_open
    assert ours.gates is not None and ours.gates.fail_on == ("exact", "routing", "quality")
    assert ours.prices.usd_per_device_hour is not None
    assert ours.instruments.forced_picks and ours.instruments.quality


def test_the_example_gates_are_those_of_the_workload_and_each_line_in_them_is_a_gate(project: Path) -> None:
    assert run_main(["init", "--ci", "github"]).code == 0
    text = Path("regress.yaml").read_text()
    assert load_gate_settings(Path("regress.yaml")) == load_workload(Path("workloads/ci-smoke.yaml")).gates
    Path("all.yaml").write_text(text.replace("  # - ", "  - "))
    settings = load_gate_settings(Path("all.yaml"))
    assert len(settings.fail_on) == 6
    assert len(parse_gates(settings, "all.yaml")) == 6


# -- the project's own files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", [".pre-commit-config.yaml", *(f".github/ISSUE_TEMPLATE/{name}.yml" for name in ("bug", "figure", "idea"))]
)
def test_a_file_for_contributors_is_read_as_what_it_is(file: str) -> None:
    found = yaml.safe_load((ROOT / file).read_text())
    if file.startswith(".github"):
        assert {"name", "description", "body"} <= set(found)
        ids = [part["id"] for part in found["body"]]
        assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in found["body"])
    else:
        assert [hook["entry"].split()[0] for repo in found["repos"] for hook in repo["hooks"]] == ["make", "make"]


def test_ci_runs_the_script_on_every_python_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text]
    check = yaml.safe_load(texts()[WORKFLOW])["jobs"]["check"]
    assert check["strategy"]["matrix"]["python"] == named
    assert ".ci/run" in [step.get("run") for step in check["steps"]]
