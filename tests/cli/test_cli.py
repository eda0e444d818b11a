"""The command line as people type it: frozen options, results on stdout, exit codes, every ``--format``."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from moeprof import __version__
from moeprof.analysis.metrics.cards import all_cards
from moeprof.cli.main import command_line
from tests.helpers.tiny_run import run_main

RECORD = Path(__file__).parents[1] / "records" / "format-1"
FORMATS = ("table", "json", "csv", "md")
# Every command, its arguments and its options. People have these in scripts: change the list knowingly.
FROZEN = {
    "run": "WORKLOAD --api --burstiness --device --dry-run --format --goodput --ignore-eos --label --launches "
    "--max-concurrency --max-minutes --no-content --num-prompts --num-warmups --output-dir --quiet "
    "--request-rate --resume --rounds --save-detailed --seed --sessions --threads --usd-per-device-hour "
    "--write -q",
    "report": "RUN --all --api --format --output-dir --pue --usd-per-device-hour --usd-per-kwh --write",
    "merge": "PARTS --clock-uncertainty-s --output-dir",
    "compare": "RUNS --all --allow --api --format --output-dir --pue --reference --usd-per-device-hour --usd-per-kwh "
    "--write",
    "audit": "RUNS --api --format --output-dir --picture --pue --usd-per-device-hour --usd-per-kwh --write",
    "regress": "RUN --ab --all --allow --allow-undecided --base-python --baseline --baselines --device --fail-on "
    "--format --gates --github --last --launches --max-minutes --max-seconds --no-github --output-dir "
    "--quiet --threads --until-precise --usd-per-device-hour --write -q",
    "ladder": "WORKLOAD --concurrency --device --distinct --format --launches --max-seconds --model --output-dir "
    "--quiet --threads --usd-per-device-hour --write -q",
    "params": "MODELS --batch --context --dtype --format --gpu --list",
    "doctor": "--coverage --format",
    "explain": "METRIC --format",
    "list": "FOLDER --format",
    "init": "FOLDER --block-tokens --ci --column --force --from --output --skip-bad-rows --timestamp-unit "
    "--trace-format -o",
    "engine install": "ENGINE --build --folder",
    "trace inspect": "PATH --block-tokens --column --exact --format --from --skip-bad-rows --timestamp-unit "
    "--tokenizer",
    "trace convert": "PATH OUTPUT --allow-loss --block-tokens --column --duration-s --force --from --jitter "
    "--length-scale "
    "--max-input-tokens --max-output-tokens --max-total-tokens --num-prompts --output --request-rate "
    "--seed --skip-bad-rows --start-s --time-scale --timestamp-unit --to --too-long -o",
    "trace synth": "OUTPUT --burst-size --burstiness --force --input-len --max-concurrency --num-prefixes "
    "--num-prompts "
    "--output-len --pattern --prefix-len --prefix-ratio --request-class --request-rate --seed",
    "trace record": "--keep-text --listen --null-test --output --part-mib --session-header --upstream -o",
    "baseline save": "RUN NAME --allow-unfinished --folder --note --pue --replace --usd-per-device-hour --usd-per-kwh",
    "baseline list": "--folder --format",
    "baseline show": "NAME --device --folder --format --workload",
    "baseline rm": "NAMES --device --folder --workload",
}


def commands() -> dict[str, str]:
    root = typer.main.get_command(command_line())
    found: dict[str, str] = {}

    def walk(command: object, path: str) -> None:
        below = getattr(command, "commands", None)
        if below is not None:
            for name, child in below.items():
                walk(child, f"{path} {name}".strip())
            return
        arguments, options = [], []
        for parameter in command.params:  # type: ignore[attr-defined]
            if parameter.param_type_name == "argument":
                arguments.append(parameter.name.upper())
            elif parameter.name != "help":
                options += [*parameter.opts, *parameter.secondary_opts]
        found[path] = " ".join([*arguments, *sorted(options)])

    walk(root, "")
    return found


def test_the_options_of_every_command_are_frozen() -> None:
    assert commands() == FROZEN


def test_every_command_and_option_has_help() -> None:
    root = typer.main.get_command(command_line())
    for name in FROZEN:
        command = root
        for word in name.split():
            command = command.commands[word]  # type: ignore[attr-defined]
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


@pytest.mark.parametrize("name", ["", *FROZEN])
def test_help_is_on_stdout_and_exit_0(name: str) -> None:
    ran = run_main([*name.split(), "--help"])
    assert (ran.code, ran.stderr) == (0, "")
    assert "Usage" in ran.stdout


def test_no_argument_shows_the_help() -> None:
    ran = run_main([])
    assert (ran.code, ran.stderr) == (0, "")
    assert ran.stdout.startswith("Usage")


def test_the_version_is_said() -> None:
    assert run_main(["--version"]).stdout == f"moeprof {__version__}\n"


# -- formats -----------------------------------------------------------------------------------------------------------


def test_report_prints_json_alone_on_stdout() -> None:
    ran = run_main(["report", RECORD, "--format", "json"])
    assert (ran.code, ran.stderr) == (0, "")
    assert set(json.loads(ran.stdout)["models"]) == {"moe", "dense"}


def test_json_and_csv_of_a_report_hold_the_same_values() -> None:
    models = json.loads(run_main(["report", RECORD, "--format", "json"]).stdout)["models"]
    rows = list(csv.DictReader(io.StringIO(run_main(["report", RECORD, "--format", "csv"]).stdout)))
    wanted = [(name, m["name"], m["value"]) for name, model in models.items() for m in model["metrics"]]
    found = [(row["model"], row["name"], float(row["value"]) if row["value"] else None) for row in rows]
    assert found == [(name, metric, None if value is None else float(value)) for name, metric, value in wanted]


def test_explain_lists_every_card_in_every_format() -> None:
    listed = json.loads(run_main(["explain", "--format", "json"]).stdout)
    assert [row["name"] for row in listed] == [card.name for card in all_cards()]
    rows = list(csv.DictReader(io.StringIO(run_main(["explain", "--format", "csv"]).stdout)))
    assert [row["name"] for row in rows] == [card.name for card in all_cards()]
    assert run_main(["explain", "--format", "md"]).stdout.count("\n") == len(all_cards()) + 2


@pytest.mark.parametrize("form", FORMATS)
def test_explain_says_formula_and_source(form: str) -> None:
    ran = run_main(["explain", "ttft_p99_s", "--format", form])
    assert (ran.code, ran.stderr) == (0, "")
    assert "formula" in ran.stdout and "source" in ran.stdout


@pytest.mark.parametrize("form", FORMATS)
def test_doctor_says_what_is_here_and_why_the_rest_is_not(form: str) -> None:
    ran = run_main(["doctor", "--format", form])
    assert ran.code == 0, ran.stderr
    for what in ("device", "price", "torch", "transformers"):
        assert what in ran.stdout
    if form == "json":
        rows = {row["what"]: row for row in json.loads(ran.stdout)}
        assert all(row["note"] for row in rows.values() if row["found"] == "n/a")


# -- writing -----------------------------------------------------------------------------------------------------------


def test_report_writes_the_asked_files_and_says_so(tmp_path: Path) -> None:
    ran = run_main(["report", RECORD, "--write", "csv,md", "--output-dir", tmp_path / "out"])
    assert ran.code == 0
    assert ran.stderr.splitlines() == [
        f"Wrote {tmp_path / 'out' / 'summary.csv'}",
        f"Wrote {tmp_path / 'out' / 'report.md'}",
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["report.md", "summary.csv"]


def test_report_makes_a_new_folder_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in ("", "-2", "-3"):
        assert run_main(["report", RECORD, "--write", "md"]).code == 0
        assert (tmp_path / "reports" / f"format-1-report{number}" / "report.md").exists()


def test_init_writes_starters_that_can_be_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_main(["init"])
    assert ran.code == 0
    written = sorted(path.name for path in (tmp_path / "workloads").iterdir())
    assert written and all(name.endswith(".yaml") for name in written)
    assert len(ran.stderr.splitlines()) == len(written)
    assert run_main(["init", "--force"]).code == 0


# -- a real process ----------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m moeprof report {RECORD} --format json | head -c 10"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert done.stdout.startswith("{")
    assert done.stderr == ""


def test_a_pipe_gets_no_colour_and_narrow_terminals_work() -> None:
    for columns in (40, 80, 120):
        done = subprocess.run(
            [sys.executable, "-m", "moeprof", "report", str(RECORD)],
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": str(columns)},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "\x1b" not in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= columns


def test_a_dry_run_shows_the_plan_and_runs_nothing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_main(["run", tiny / "workload.yaml", "--dry-run", "--num-prompts", 10])
    assert (ran.code, ran.stderr) == (0, "")
    for text in ("10, open", "memory, moe", "memory, dense", "$1.5 per hour", "or less"):
        assert text in ran.stdout
    assert list(tmp_path.iterdir()) == []
