"""``moeprof trace``: results on stdout, talk on stderr, nothing overwritten, narrow terminals."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moeprof.cli.trace import trace_app
from moeprof.core.errors import InputError
from moeprof.sources.formats import read_trace
from tests.helpers.shared_data import shared

ROWS = [
    {"arrival_s": float(i), "input_tokens": 10 * (i + 1), "output_tokens": 5, "request_class": "a", "session": "s"}
    for i in range(5)
]


def run(*arguments: object, columns: int = 100) -> Result:
    return CliRunner().invoke(trace_app, [str(a) for a in arguments], env={"COLUMNS": str(columns)})


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, InputError)
    return str(result.exception)


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_inspect_shows_rates_lengths_classes_and_a_plot_in_ascii(trace_file: Path) -> None:
    result = run("inspect", trace_file)
    assert result.exit_code == 0
    assert "request rate   1 per second" in result.stdout
    assert "p50 30  p90 46  p99 50  max 50" in result.stdout
    assert "a 5" in result.stdout
    assert "1 with 5 requests" in result.stdout
    assert "#" in result.stdout
    assert result.stdout.isascii()
    assert result.stderr == ""


def test_inspect_as_json_csv_and_markdown_carries_the_same_numbers(trace_file: Path) -> None:
    as_json = json.loads(run("inspect", trace_file, "--format", "json").stdout)
    rows = dict(csv.reader(io.StringIO(run("inspect", trace_file, "--format", "csv").stdout)))
    assert as_json["num_requests"] == int(rows["num_requests"]) == 5
    assert as_json["input"]["p50"] == float(rows["input_p50_tokens"]) == 30
    assert as_json["reused_prefix_ratio"] is None
    assert rows["reused_prefix_ratio"] == ""
    assert "| requests | 5 |" in run("inspect", trace_file, "--format", "md").stdout


def test_inspect_works_on_a_narrow_terminal(trace_file: Path) -> None:
    result = run("inspect", trace_file, columns=40)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("    path:")) <= 40  # a path is pasted whole


def test_names_from_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"input_tokens": 1, "output_tokens": 1, "request_class": "[red]\x1b[2J"}))
    assert "[red]?[2J 1" in run("inspect", path).stdout


def test_inspect_says_that_text_has_no_lengths_yet(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "four"}')
    shown = run("inspect", path).stdout
    assert "n/a (needs the text's tokenizer)" in shown
    assert "4 characters" in shown


def test_convert_applies_the_transforms_and_says_what_changed(trace_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    options = ("--start-s", 1, "--duration-s", 3, "--time-scale", 2, "--length-scale", 0.5, "--num-prompts", 2)
    result = run("convert", trace_file, out, *options)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert f"Wrote {out} (2 requests)" in result.stderr
    assert "note: requests outside the time window were left out (2)" in result.stderr
    trace = read_trace(out)
    assert trace.arrival_s.tolist() == [0, 2]
    assert trace.input_tokens.tolist() == [10, 15]
    assert trace.request_class == ("a", "a")


def test_convert_does_not_overwrite_unless_forced(trace_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert run("convert", trace_file, out).exit_code == 0
    assert "already there" in refused("convert", trace_file, out)
    assert run("convert", trace_file, out, "--force").exit_code == 0


def test_a_real_trace_converted_reads_back_the_same(tmp_path: Path) -> None:
    path = shared("traces/AzureLLMInferenceTrace_code.csv")
    out = tmp_path / "code.jsonl"
    assert run("convert", path, out).exit_code == 0
    before, after = read_trace(path), read_trace(out)
    assert before.arrival_s.tolist() == after.arrival_s.tolist()
    assert before.input_tokens.tolist() == after.input_tokens.tolist()
    assert before.output_tokens.tolist() == after.output_tokens.tolist()


def test_synth_writes_rows_to_stdout_or_a_file_the_same(tmp_path: Path) -> None:
    options = ("--request-rate", 2, "--num-prompts", 7, "--input-len", "lognormal:64:512", "--seed", 3)
    rows = run("synth", *options).stdout
    out = tmp_path / "s.jsonl"
    written = run("synth", out, *options)
    assert out.read_text() == rows
    assert f"Wrote {out} (7 requests)" in written.stderr
    assert len(read_trace(out)) == 7


def test_synth_makes_bursts_classes_prefixes_and_closed_loops() -> None:
    options = ("--num-prompts", 4, "--prefix-len", 8, "--request-class", "a=1", "--output-len", "3-4")
    burst = [
        json.loads(row)
        for row in run(
            "synth", "--pattern", "burst", "--burst-size", 2, "--request-rate", 1, *options
        ).stdout.splitlines()
    ]
    assert [row["arrival_s"] for row in burst] == [0, 0, 2, 2]
    assert {row["request_class"] for row in burst} == {"a"}
    assert {row["prefix_block_tokens"] for row in burst} == {8}
    assert "arrival_s" not in run("synth", "--max-concurrency", 4).stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("synth",), "rate: missing"),
        (("synth", "--request-rate", 1, "--input-len", "many"), "--input-len: found 'many'; allowed: 256"),
        (("synth", "--request-rate", 1, "--output-len", "9-3"), "--output-len: low: 9"),
        (("synth", "--request-rate", 1, "--request-class", "a=x"), "--request-class: found 'a=x'"),
        (("synth", "--request-rate", 1, "--input-len", "empirical:absent.csv"), "absent.csv: no such file"),
        (("convert", "absent.csv", "out.jsonl", "--time-scale", -1), "time_scale: found -1"),
        (("convert", "absent.csv", "out.jsonl", "--request-rate", 0), "--request-rate: found 0"),
        (("inspect", "absent.csv", "--from", "azzure"), "did you mean 'azure'"),
    ],
)
def test_bad_options_are_refused_in_one_line(arguments: tuple[object, ...], said: str) -> None:
    text = refused(*arguments)
    assert said in text
    assert "\n" not in text


def test_named_columns_units_and_skipped_rows_are_said_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("began;took in;took out;who\n0;10;1;a\n500;20;2;b\n700;many;2;b\n")
    names = ("arrival=began", "input=took in", "output=took out", "class=who")
    options = [part for name in names for part in ("--column", name)] + ["--timestamp-unit", "ms"]
    assert str(path) + ":4: took in is 'many'; a number is expected" == refused("inspect", path, *options)
    found = json.loads(run("inspect", path, *options, "--skip-bad-rows", "--format", "json").stdout)
    assert (found["source"], found["num_requests"], found["span_s"]) == ("columns", 2, 0.5)
    assert found["classes"] == {"a": 1, "b": 1}
    out = tmp_path / "out.jsonl"
    done = run("convert", path, out, *options, "--skip-bad-rows")
    assert "note: rows that do not fit were skipped; the first is row 4" in done.stderr
    assert read_trace(out).input_tokens.tolist() == [10, 20]


def test_the_block_size_is_said_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"input_length": 100, "output_length": 1, "hash_ids": [1]}
    path.write_text("\n".join(map(json.dumps, [row, row])))
    found = json.loads(run("inspect", path, "--block-tokens", 64, "--format", "json").stdout)
    assert found["reused_prefix_ratio"] == 0.32  # 64 of 200 tokens


def test_a_column_without_a_role_is_refused(trace_file: Path) -> None:
    assert "--column: found 'began'; ROLE=NAME is allowed" in refused("inspect", trace_file, "--column", "began")
    assert "columns: found 'start'; allowed: arrival" in refused("inspect", trace_file, "--column", "start=began")
