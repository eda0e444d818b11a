"""``moeprof trace``: results on stdout, talk on stderr, nothing overwritten, narrow terminals."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moeprof.cli.trace import trace_app
from moeprof.core.errors import InputError
from moeprof.sources.formats import read_trace
from moeprof.sources.text_lengths import own_tokenizer
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
    assert r"[red]\x1b[2J 1" in run("inspect", path).stdout


def test_inspect_shows_bursts_turns_unused_columns_and_the_lines_of_a_workload(tmp_path: Path) -> None:
    """Four requests in the first minute, one in each of the next three: 7 in 3.5 minutes are 2 a minute on average."""
    times = [0, 10, 20, 30, 70, 130, 210]
    rows = [
        {"arrival_s": t, "input_tokens": 5, "output_tokens": 1, "session": "a" if t < 60 else str(t), "colour": "red"}
        for t in times
    ]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(map(json.dumps, [*rows, rows[-1] | {"output_tokens": 0}])))
    text = run("inspect", path).stdout
    assert "peak minute    4 requests (2 times the mean)" in text
    assert "sessions       4 with 7 requests; of several turns p50 4, most 4" in text
    assert "not used       colour" in text
    assert "left out       1 rows" in text
    assert text.endswith(f"traffic:\n  trace:\n    path: {path}\n    format: jsonl\n")
    found = json.loads(run("inspect", path, "--format", "json").stdout)
    assert (found["peak_minute_requests"], found["peak_minute_ratio"], found["turns"]["max"]) == (4, 2.0, 4)
    assert (found["unused"], found["num_left_out"]) == ("colour", 1)


def test_lengths_of_text_are_estimated_from_500_rows_and_told_and_counted_when_asked(tmp_path: Path) -> None:
    """Rows of one length in bytes and two in tokens: the estimate is their mean, the count tells them apart."""
    texts = ["the and the and the and ", "%$#@!^&*()_+{}|<>?~`;:[]"]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": texts[i % 2], "output_tokens": 1}) for i in range(2_000)))
    exact = json.loads(run("inspect", path, "--exact", "--format", "json").stdout)
    few, many = (len(own_tokenizer().encode(text)) for text in texts)
    assert exact["input"]["mean"] == (few + many) / 2
    assert exact["input"]["max"] == many > few
    assert [note["code"] for note in exact["notes"] if note["code"].startswith("lengths")] == ["lengths_counted"]
    about = json.loads(run("inspect", path, "--format", "json").stdout)
    assert about["input"]["mean"] == pytest.approx(exact["input"]["mean"], rel=0.05)
    assert about["input"]["p50"] not in (few, many)
    assert "500 rows were counted, the others by their bytes" in " ".join(run("inspect", path).stdout.split())


def test_convert_writes_other_forms_and_names_what_they_do_not_hold(trace_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    text = refused("convert", trace_file, "--to", "mooncake", "-o", out)
    assert (
        text
        == f"{out}: the mooncake form does not hold request classes (5), sessions (5); --allow-loss writes it without"
    )
    assert not out.exists()
    done = run("convert", trace_file, "--to", "mooncake", "-o", out, "--allow-loss")
    assert "note: the mooncake form does not hold sessions (5)" in done.stderr
    assert read_trace(out).input_tokens.tolist() == [10, 20, 30, 40, 50]
    assert "give it as the second argument or with -o, one of them" in refused("convert", trace_file)


def test_light_commands_import_neither_torch_nor_pandas(trace_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from moeprof.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or bool({'torch', 'pandas', 'transformers', 'scipy'} & set(sys.modules)))"
    )
    for arguments in (("trace", "inspect", trace_file), ("init", "--from", trace_file, "-o", tmp_path / "w.yaml")):
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True)
        assert done.returncode == 0, done.stderr


def test_inspect_counts_text_whose_lengths_the_file_does_not_state(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "four"}')
    shown = run("inspect", path).stdout
    assert "input tokens   p50" in shown
    assert "lengths of text are in moeprof's own tokenizer" in shown
    assert "n/a (needs the text's tokenizer)" in shown  # no output is asked for
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
