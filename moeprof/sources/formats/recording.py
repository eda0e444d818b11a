"""What `moeprof trace record` writes: a header line, then one row for each finished request, in the order they ended.

The rows have the keys of moeprof's own JSONL (see jsonl.py) and more; docs/record-traffic.md lists them. The header
names the recording and the size of a prefix block. Sessions and blocks are hashed with a salt that no file holds, so
that they can be compared within one recording and with nothing else; files of one recording may stand in one file,
header lines and all, or in one folder.

Lengths are those that the server told. Where it told none, an output has as many tokens as chunks were streamed, and a
prompt as many as its characters come to at the recording's own ratio: both are estimates, and a Note says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from moeprof.core.trace import Note, Trace
from moeprof.sources.formats import jsonl
from moeprof.sources.formats.columns import MAX_SECONDS, assemble, lines_of, shown
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.stored import Stored

HEADER_KEY = "moeprof_recording"
VERSION = 1
OK = "ok"
CLIENT_LEFT = "client_disconnect"
BLOCK_CHARACTERS = 512
BLOCK_IDS = 128
USUAL_CHARACTERS_PER_TOKEN = 4.0  # of English; used only where the server told no length at all

Numbered = tuple[int, dict[str, Any]]


def matches(file: SourceFile) -> bool:
    """True when the first line is a recording's header."""
    return HEADER_KEY in file.keys


def read(file: SourceFile) -> Trace:
    """Read a recording; failed requests are dropped and counted by their status.

    Raises:
        TraceError: a header of a newer version, files of two recordings, or a row that cannot be understood.
    """
    header, rows, notes = _rows(file)
    file.use(
        *header, *{key for _, row in rows for key in row}
    )  # they are ours: what is not replayed describes the rest
    rows, dropped = _usable(file, rows)
    if not rows:
        said = "; ".join(f"{note.count} {note.text}" for note in dropped)
        raise file.error(None, f"no recorded request can be replayed{f' ({said})' if said else ''}")
    rows.sort(key=lambda pair: _arrival(file, pair))
    ratio = characters_per_token([row for _, row in rows])
    notes += [*dropped, *_same_text(rows), *_fill_lengths(rows, ratio)]
    if any(row.get("prefix_blocks") for _, row in rows):
        block_tokens, block_notes = _block_tokens(header, rows, ratio)
        notes += block_notes
        for _, row in rows:
            row["prefix_block_tokens"] = block_tokens
    row_of = lines_of([number for number, _ in rows])
    columns = jsonl.columns(file, [row for _, row in rows], row_of)
    notes += columns.pop("notes", ())
    return assemble("recording", file, **columns, notes=tuple(notes))


def characters_per_token(rows: Sequence[dict[str, Any]]) -> float | None:
    """Characters of prompts over the tokens that the server counted in them; None where it counted none."""
    told = [
        (row["prompt_characters"], row["input_tokens"])
        for row in rows
        if _whole(row.get("prompt_characters")) and _whole(row.get("input_tokens"))
    ]
    return sum(c for c, _ in told) / sum(t for _, t in told) if told else None


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _rows(file: SourceFile) -> tuple[dict[str, Any], list[Numbered], list[Note]]:
    """The header, the rows of requests, and a Note where the last line stops in its middle."""
    whole = file
    notes: list[Note] = []
    lines = file.data.rstrip(b"\n").rsplit(b"\n", 1)
    if len(lines) == 2 and not file.data.endswith(b"\n") and not _is_json(lines[1]):
        whole = SourceFile(path=file.path, stored=Stored(file.path, lines[0], is_whole=True), keys=file.keys)
        notes.append(Note(code="half_row", count=1, text="last row that stops in its middle was left out"))
    header: dict[str, Any] = {}
    rows: list[Numbered] = []
    for number, row in json_rows(whole):
        if HEADER_KEY not in row:
            rows.append((number, row))
            continue
        _check_header(file, number, row)
        header = header or row
        if row.get("recording") != header.get("recording"):
            raise file.error(
                number, "a second recording begins here; each has a salt of its own, so read one at a time"
            )
    return header, rows, notes


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _check_header(file: SourceFile, number: int, row: dict[str, Any]) -> None:
    version = row[HEADER_KEY]
    if not _whole(version):
        raise file.error(number, f"{HEADER_KEY} is {shown(version)}; the format's version is expected")
    if version > VERSION:
        raise file.error(number, f"written by a newer moeprof (recording format {version}); upgrade")
    for key in ("prefix_block_characters", "prefix_block_ids"):
        if key in row and not _whole(row[key]):
            raise file.error(number, f"{key} is {shown(row[key])}; a whole number of at least 1 is expected")


def _arrival(file: SourceFile, pair: Numbered) -> float:
    number, row = pair
    value: Any = row.get("arrival_s")
    if type(value) not in (int, float) or not abs(value) <= MAX_SECONDS:
        raise file.error(number, f"arrival_s is {shown(value)}; a time in seconds is expected")
    return float(value)


def _usable(file: SourceFile, rows: list[Numbered]) -> tuple[list[Numbered], list[Note]]:
    """Requests that were answered, as far as they were; why the others go."""
    kept: list[Numbered] = []
    failed: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for number, row in rows:
        status = str(row.get("status", OK))
        for key in ("prompt_characters", "output_chunks", "prompts", "prompt_ids"):
            if row.get(key) is not None and (type(row[key]) is not int or row[key] < 0):
                raise file.error(number, f"{key} is {shown(row[key])}; a whole number is expected")
        output = row.get("output_tokens") or row.get("output_chunks")
        if status not in (OK, CLIENT_LEFT):
            failed[status if row.get("http_status", 200) == 200 else f"{status} {row['http_status']}"] += 1
        elif (row.get("prompts") or 1) > 1:
            counts["several"] += 1
        elif not output:
            counts["no_output"] += 1
        elif row.get("input_tokens") is None and not (row.get("prompt_characters") or row.get("prompt_ids")):
            counts["no_input"] += 1
        else:
            counts["left"] += status == CLIENT_LEFT
            kept.append((number, dict(row)))
    kinds = ", ".join(f"{name} {count}" for name, count in failed.most_common())
    texts = {
        "failed": ("dropped_failed", f"requests that failed were dropped ({kinds})"),
        "several": ("dropped_several_prompts", "requests of several prompts were dropped: their lengths are sums"),
        "no_output": ("dropped_no_output", "requests without any output, or of unknown output length, were dropped"),
        "no_input": ("dropped_no_input", "requests whose prompt could not be read were dropped"),
        "left": ("ended_by_client", "requests were ended by their client; their output is what was sent until then"),
    }
    counts["failed"] = failed.total()
    return kept, [Note(code=c, count=counts[key], text=text) for key, (c, text) in texts.items() if counts[key]]


def _fill_lengths(rows: list[Numbered], ratio: float | None) -> list[Note]:
    """Estimates where the server told no length."""
    inputs = outputs = 0
    for _, row in rows:
        if row.get("input_tokens") is None and _whole(row.get("prompt_ids")):
            row["input_tokens"] = row["prompt_ids"]
        elif row.get("input_tokens") is None:
            row["input_tokens"] = max(1, round(row["prompt_characters"] / (ratio or USUAL_CHARACTERS_PER_TOKEN)))
            inputs += not set(jsonl.TEXT_KEYS) & row.keys()  # kept text is counted by the tokenizer
        if row.get("output_tokens") is None:
            row["output_tokens"] = row["output_chunks"]
            outputs += 1
    notes = []
    if inputs:
        whose = f"{ratio:.3g} as in the recording's other prompts" if ratio else f"{USUAL_CHARACTERS_PER_TOKEN:g} taken"
        text = f"prompt lengths are estimates: the server told none; from characters, {whose} per token"
        notes.append(Note(code="input_estimated", count=inputs, text=text))
    if outputs:
        text = "output lengths are estimates: the server told none; one token taken for each streamed chunk"
        notes.append(Note(code="output_estimated", count=outputs, text=text))
    return notes


def _same_text(rows: list[Numbered]) -> list[Note]:
    """A trace has prompts or messages for every request; where the recording has not, lengths alone are used."""
    kinds = {next((key for key in jsonl.TEXT_KEYS if key in row), None) for _, row in rows}
    if len(kinds) == 1:
        return []
    for _, row in rows:
        for key in (*jsonl.TEXT_KEYS, "output"):
            row.pop(key, None)
    text = "requests have text of different kinds (prompt, messages, none); their lengths alone are used"
    return [Note(code="text_left_out", count=len(rows), text=text)]


def _block_tokens(header: dict[str, Any], rows: list[Numbered], ratio: float | None) -> tuple[int, list[Note]]:
    """Tokens in a prefix block: exact for prompts of ids, by the ratio for blocks of characters."""
    if not any(row.get("prompt_characters") for _, row in rows):
        return int(header.get("prefix_block_ids", BLOCK_IDS)), []
    characters = header.get("prefix_block_characters", BLOCK_CHARACTERS)
    per_token = ratio or USUAL_CHARACTERS_PER_TOKEN
    tokens = max(1, round(characters / per_token))
    text = f"prefix blocks are {characters} characters of text, taken as {tokens} tokens ({per_token:.3g} per token)"
    return tokens, [Note(code="prefix_blocks_estimated", count=len(rows), text=text)]
