"""Files whose columns the user names, in each form that files come in; numbers that can be checked in the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.core.errors import WorkloadError
from moeprof.core.trace import Trace
from moeprof.core.workload.traffic import TraceSource
from moeprof.sources.formats import read_source
from moeprof.sources.formats.named import find
from tests.helpers.trace_files import counts, read, refusal, said, write_rows, write_text

PLAIN = {"arrival": "started_at", "input": "tokens_in", "output": "tokens_out", "session": "conv", "class": "team"}
ROWS: list[dict[str, Any]] = [
    {"started_at": 5, "tokens_in": 10, "tokens_out": 3, "conv": "a", "team": "x"},
    {"started_at": 7, "tokens_in": 20, "tokens_out": 4, "conv": "b", "team": "y"},
]


def plain_numbers(trace: Trace) -> None:
    assert trace.source == "columns"
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    assert trace.input_tokens.tolist() == [10, 20]
    assert trace.output_tokens.tolist() == [3, 4]
    assert trace.session == ("a", "b")
    assert trace.request_class == ("x", "y")
    assert counts(trace) == {"timestamp_unit": 2}
    assert "seconds (0.5 requests per second)" in said(trace, "timestamp_unit")


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_cells_between_commas_semicolons_and_tabs_are_read(tmp_path: Path, delimiter: str) -> None:
    lines = [list(ROWS[0]), *(list(row.values()) for row in ROWS)]
    text = "\n".join(delimiter.join(map(str, line)) for line in lines)
    plain_numbers(read(write_text(tmp_path, text), columns=PLAIN))


def test_json_lines_arrays_and_objects_over_several_lines_are_read(tmp_path: Path) -> None:
    plain_numbers(read(write_rows(tmp_path, ROWS), columns=PLAIN))
    plain_numbers(read(write_text(tmp_path, json.dumps(ROWS)), columns=PLAIN))
    plain_numbers(read(write_text(tmp_path, "\n".join(json.dumps(row, indent=2) for row in ROWS)), columns=PLAIN))


def test_one_object_that_holds_a_list_gives_the_lists_rows_and_says_so(tmp_path: Path) -> None:
    trace = read(write_text(tmp_path, json.dumps({"version": 3, "calls": ROWS}, indent=1)), columns=PLAIN)
    assert trace.input_tokens.tolist() == [10, 20]
    assert "the list calls" in said(trace, "rows_of_list")
    assert said(trace, "beside_the_list") == "keys beside the list calls that are not used: version"


def test_items_of_other_kinds_in_the_list_are_rows_that_do_not_fit(tmp_path: Path) -> None:
    path = write_text(tmp_path, json.dumps({"batch": [{"kind": "start"}, *ROWS]}))
    assert refusal(path, columns=PLAIN) == ":1: started_at is missing"
    plain = read(path, columns=PLAIN, skip_bad_rows=True)
    assert plain.input_tokens.tolist() == [10, 20]
    assert counts(plain)["skipped_bad_rows"] == 1


def test_one_object_that_has_the_named_keys_itself_is_one_row(tmp_path: Path) -> None:
    path = write_text(tmp_path, json.dumps({"usage": {"in": 3, "out": 4}, "choices": [{"in": 9}]}, indent=1))
    trace = read(path, columns={"input": "usage.in", "output": "usage.out"})
    assert trace.input_tokens.tolist() == [3]
    assert said(trace, "unused_keys") == "keys of the file that are not used: choices"


def test_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    plain_numbers(read(path, columns=PLAIN))


def test_parquet_times_and_nested_values_are_read(tmp_path: Path) -> None:
    from datetime import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"at": datetime(2024, 5, 10, 0, 0, second), "usage": {"in": 10 + second, "out": 2}, "who": "me"}
        for second in (0, 3)
    ]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    trace = read(path, columns={"arrival": "at", "input": "usage.in", "output": "usage.out"})
    assert trace.arrival_s.tolist() == [0.0, 3.0]
    assert trace.input_tokens.tolist() == [10, 13]
    assert said(trace, "unused_keys") == "columns of the file that are not used: who"


def test_dots_go_into_nested_keys_lists_and_json_inside_a_string(tmp_path: Path) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "tools": [1]})
    rows = [
        {"t_ms": 1000 + 250 * i, "usage": {"gen_ai.input": 5 + i, "cost": 1}, "choices": [{"n": 7}], "body": body}
        for i in range(2)
    ]
    path = write_rows(tmp_path, rows)
    names = {"arrival": "t_ms", "input": "usage.gen_ai.input", "output": "choices.0.n"}
    trace = read(path, columns=names)
    assert trace.arrival_s.tolist() == [0.0, 0.25]
    assert trace.input_tokens.tolist() == [5, 6]
    assert trace.output_tokens.tolist() == [7, 7]
    assert said(trace, "unused_keys") == "keys of the file that are not used: usage.cost, body"
    assert "its name says so" in said(trace, "timestamp_unit")
    chats = read(path, columns={"text": "body.messages", "output": "choices.0.n"})
    assert chats.messages == ((("user", "hi"),),) * 2
    assert "body.tools" in said(chats, "unused_keys")


def test_json_inside_a_csv_cell_is_read_and_line_ends_in_quotes_do_not_move_the_lines(tmp_path: Path) -> None:
    text = 'q;r\n"{""i"": 5}";"two\nlines"\n"{""i"": 6}";x\nbroken;x\n'
    names = {"input": "q.i", "output": "q.i"}
    path = write_text(tmp_path, text)
    assert refusal(path, columns=names).startswith(":5: q.i is missing")
    trace = read(path, columns=names, skip_bad_rows=True)
    assert trace.input_tokens.tolist() == [5, 6]
    assert said(trace, "skipped_bad_rows").startswith("rows that do not fit were skipped; the first is row 5")


def test_a_comma_is_the_decimal_sign_between_semicolons(tmp_path: Path) -> None:
    path = write_text(tmp_path, "at;in;out\n0,5;10;1\n2,25;20;1\n")
    assert read(path, columns={"arrival": "at", "input": "in", "output": "out"}).arrival_s.tolist() == [0.0, 1.75]


def test_an_answers_text_is_the_continuation_and_a_prompts_stated_length_is_not_used_but_told(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"ask": "four", "say": "yes, 4", "n": 1}, {"ask": "five", "say": "no", "n": 1}])
    trace = read(path, columns={"text": "ask", "output": "say", "input": "n"})
    assert trace.prompt_text == ("four", "five")
    assert trace.output_text == ("yes, 4", "no")
    assert trace.input_tokens.tolist() == [-1, -1]
    assert counts(trace) == {"lengths_of_text": 2, "no_times": 2}


def test_named_prefix_ids_are_shared(tmp_path: Path) -> None:
    path = write_text(tmp_path, 'in,out,ids\n64,1,"[1, 2]"\n64,1,"[1, 3]"\n')
    trace = read(path, columns={"input": "in", "output": "out", "blocks": "ids"})
    assert trace.prefix_blocks == ((1, 2), (1, 3))
    assert trace.prefix_block_tokens == 32


@pytest.mark.parametrize(
    ("name", "stamps", "arrival_s"),
    [
        ("start_ms", (0, 7), 0.007),
        ("startTimeMs", (0, 7), 0.007),
        ("time (us)", (0, 7), 7e-6),
        ("duration_ns", (0, 7), 7e-9),
        ("begin_seconds", (0, 7), 7.0),
        ("when", (0, 7), 7.0),
        ("when", (0, 7000), 7.0),  # as seconds one request in two hours
        ("when", (0, 7000000), 7.0),
    ],
)
def test_a_named_column_of_times_has_the_unit_of_its_name_or_of_a_plausible_rate(
    tmp_path: Path, name: str, stamps: tuple[int, int], arrival_s: float
) -> None:
    path = write_rows(tmp_path, [{name: stamp, "i": 1, "o": 1} for stamp in stamps])
    trace = read(path, columns={"arrival": name, "input": "i", "output": "o"})
    assert trace.arrival_s.tolist() == pytest.approx([0.0, arrival_s])
    assert counts(trace) == {"timestamp_unit": 2}


def test_a_name_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    text = ": columns.input: no column 'token_in' (nearest: 'tokens_in'); found started_at, tokens_in"
    assert text in refusal(write_rows(tmp_path, ROWS), columns=PLAIN | {"input": "token_in"})
    path = write_text(tmp_path, "started_at,tokens_in,b\n1,2,3\n")
    assert text in refusal(path, columns={"input": "token_in", "output": "b"})


def test_a_row_that_lacks_a_named_value_is_refused_with_its_number(tmp_path: Path) -> None:
    rows = [*ROWS, {key: value for key, value in ROWS[0].items() if key != "tokens_out"}]
    assert refusal(write_rows(tmp_path, rows), columns=PLAIN) == ":3: tokens_out is missing"


def test_roles_are_checked_before_the_file_is_opened() -> None:
    for columns, text in (
        ({"arrivals": "a", "input": "b"}, "columns: found 'arrivals'; allowed: arrival, input"),
        ({"arrival": "a"}, r"input \(prompt lengths\) or text"),
        ({"input": ""}, "columns.input: is empty"),
    ):
        with pytest.raises(WorkloadError, match=text):
            TraceSource(path="absent", columns=columns)
    with pytest.raises(WorkloadError, match="leave format out"):
        TraceSource(path="absent", format="azure", columns={"input": "a"})


def test_a_workload_names_columns_units_and_blocks(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [{"at": 0, "n": 40, "m": 5}, {"at": 4, "n": 40, "m": 5}])
    columns = {"arrival": "at", "input": "n", "output": "m"}
    source = TraceSource(path=str(path), columns=columns, timestamp_unit="ms")
    assert read_source(source).arrival_s.tolist() == [0.0, 0.004]


def test_a_key_with_dots_is_found_before_nested_ones() -> None:
    assert find({"a.b": {"c": 1}, "a": {"b": {"c": 2}}}, "a.b.c") == 1
    assert find({"a": {"b": {"c": 2}}}, "a.b.c") == 2
    assert find({"a": [{"b": 3}]}, "a.0.b") == 3
    assert find({"a": [{"b": 3}]}, "a.1.b") is None
    assert find({"a": '{"b": [4]}'}, "a.b.0") == 4
    assert find({"a": "{broken"}, "a.b") is None
