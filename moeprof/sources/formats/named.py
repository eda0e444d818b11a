"""Files whose columns the user names: any CSV, JSON lines, JSON array or parquet file, in whatever form it stands.

``columns`` maps a role to a column or key: ``arrival, input, output, session, text, class, blocks``. A name with dots
goes into nested objects, into lists by number, and into JSON that stands inside a string; a key that itself has dots is
found first. ``text`` holds a prompt or chat messages; ``output`` a number of tokens or the text of an answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from moeprof.core.trace import NO_SESSION, IntArray, Note, Trace
from moeprof.sources.formats.chat import ChatReader
from moeprof.sources.formats.columns import (
    ANY_ROW,
    RowOf,
    assemble,
    checked_text,
    checked_tokens,
    lines_of,
    read_table,
    shown,
    text_to_floats,
    times,
    typed_columns,
    values_to_floats,
)
from moeprof.sources.formats.fast import are_times, are_tokens, json_columns
from moeprof.sources.formats.file import SourceFile, json_rows, list_rows
from moeprof.sources.formats.mooncake import checked_blocks

DEFAULT_BLOCK_TOKENS = 512
NUMBERS = ("arrival", "input", "output")
MAX_NESTED = 8  # objects within objects that are looked into for names


def read(file: SourceFile) -> Trace:
    """Read the named columns.

    Raises:
        TraceError: a column that is not there, or the first row that does not fit.
    """
    names = file.how.columns
    values, row_of = _columns(file, names)
    number = len(next(iter(values.values())))
    columns: dict[str, Any] = {"arrival_s": None}
    if "arrival" in names:
        columns["arrival_s"] = times(file, names["arrival"], values["arrival"], row_of, unit=None)
    columns |= _prompts(file, names, values, row_of)
    columns |= _outputs(file, names, values, row_of, number)
    if "session" in names:
        columns["session"] = _labels(values["session"], NO_SESSION)
    if "class" in names:
        columns["request_class"] = _labels(values["class"], "all")
    if "blocks" in names and "text" not in names:
        name = names["blocks"]
        rows = [{name: _unpacked(value)} for value in values["blocks"]]
        columns |= checked_blocks(file, name, rows, row_of, columns["input_tokens"], DEFAULT_BLOCK_TOKENS)
    return assemble("columns", file, **columns)


def unwrapped(file: SourceFile) -> tuple[SourceFile, tuple[Note, ...]]:
    """One JSON object whose rows are in a list, as these rows; the list is the first that holds a named value.

    Raises:
        TraceError: an item of the list that is no object.
    """
    names = file.how.columns.values()
    whole = file.rows[0][1] if file.single and file.rows else {}
    if all(find(whole, name) is not None for name in names):
        return file, ()
    for key, items in whole.items():
        if not isinstance(items, list) or not any(find(i, name) is not None for i in items for name in names):
            continue
        return list_rows(file, key)
    return file, ()


def _columns(file: SourceFile, names: dict[str, str]) -> tuple[dict[str, Any], RowOf]:
    """The values of each role, with the row numbers."""
    plain = "text" not in names and "blocks" not in names and all(name in file.header for name in names.values())
    if file.has_objects and not (plain and typed_columns(file, list(names.values())) is not None):
        if (fast := _fast(file, names)) is not None:
            return fast
        pairs = _objects(file, names)
        file.use(*names.values())
        rows = [row for _, row in pairs]
        for role, name in names.items():
            if all(find(row, name) is None for row in rows):
                raise _not_there(file, role, name, list(file.seen))
        return {role: _found(rows, name) for role, name in names.items()}, lines_of([number for number, _ in pairs])
    heads = {role: _head(file, role, name) for role, name in names.items()}
    table = read_table(file, tuple(dict.fromkeys(heads.values())))
    values: dict[str, Any] = {}
    for role, name in names.items():
        rest = name[len(heads[role]) + 1 :]
        if role in NUMBERS and "text" not in names and not rest:
            values[role] = table.taken(name)
            continue
        cells = table.texts(heads[role])
        values[role] = [find(cell, rest) for cell in cells] if rest else cells
    return values, table.line_of


def _fast(file: SourceFile, names: dict[str, str]) -> tuple[dict[str, Any], RowOf] | None:
    """The values of JSON lines that have plain numbers and texts under these keys; None where they have others."""
    if "text" in names or "blocks" in names or not file.keys >= set(names.values()):
        return None
    found = json_columns(
        file,
        numbers=[name for role, name in names.items() if role in NUMBERS],
        texts=[name for role, name in names.items() if role not in NUMBERS],
    )
    tokens = [names[role] for role in ("input", "output") if role in names]
    if found is None or not all(are_tokens(found[name]) for name in tokens):
        return None
    if "arrival" in names and (file.how.timestamp_unit == "iso" or not are_times(found[names["arrival"]])):
        return None
    file.use(*names.values())
    return {role: found[name] for role, name in names.items()}, ANY_ROW


def _found(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    if "." not in name:
        return [row.get(name) for row in rows]
    return [find(row, name) for row in rows]


def _objects(file: SourceFile, names: dict[str, str]) -> list[tuple[int, dict[str, Any]]]:
    """The rows; what they hold is counted by dotted name."""
    others: list[str] = []
    if file.table is not None:  # other columns may be large: images, say
        heads = list(dict.fromkeys(_head(file, role, name) for role, name in names.items()))
        others = [name for name in file.header if name not in heads]
        numbers = file.numbers or range(1, len(file.table) + 1)
        pairs = list(zip(numbers, file.table.rows(heads), strict=True))
    else:
        pairs = list(json_rows(file))
    file.seen.clear()
    for _, row in pairs:
        file.seen.update(_leaves(row, names.values(), "", MAX_NESTED))
    file.seen.update(dict.fromkeys(others, len(pairs)))
    return pairs


def _leaves(row: dict[str, Any], wanted: Collection[str], prefix: str, depth: int) -> list[str]:
    """Dotted names of the values that an object holds; a value that is wanted as a whole is one."""
    names: list[str] = []
    for key, value in row.items():
        name = prefix + key
        inner = _unpacked(value) if any(want.startswith(name + ".") for want in wanted) else value
        if isinstance(inner, dict) and depth and name not in wanted:
            names += _leaves(inner, wanted, name + ".", depth - 1)
        elif isinstance(inner, list) and any(want.startswith(name + ".") for want in wanted):
            names += [want for want in wanted if want.startswith(name + ".")]
        elif value or value == 0:
            names.append(name)
    return names


def _head(file: SourceFile, role: str, name: str) -> str:
    """The column that a name begins with: the longest that is there."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if (head := ".".join(parts[:end])) in file.header:
            return head
    raise _not_there(file, role, name, list(file.header))


def _not_there(file: SourceFile, role: str, name: str, there: list[str]) -> Exception:
    near = get_close_matches(name, there, n=1)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return file.error(None, f"columns.{role}: no column {name!r}{hint}; found {', '.join(there)[:240]}")


def find(value: Any, name: str) -> Any:
    """The value under a dotted name; None where there is none."""
    return _find(value, name.split("."))


def _find(value: Any, parts: list[str]) -> Any:
    if not parts:
        return value
    value = _unpacked(value)
    if isinstance(value, list):
        index = int(parts[0]) if parts[0].isdecimal() else -1
        return _find(value[index], parts[1:]) if 0 <= index < len(value) else None
    if isinstance(value, dict):
        for end in range(len(parts), 0, -1):
            key = ".".join(parts[:end])
            if key in value and (found := _find(value[key], parts[end:])) is not None:
                return found
    return None


def _unpacked(value: Any) -> Any:
    """A list or object that stands as JSON inside a string; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _labels(values: Sequence[Any], missing: str) -> tuple[str, ...]:
    return tuple(missing if value is None or value == "" else str(value) for value in values)


def _prompts(file: SourceFile, names: dict[str, str], values: dict[str, list[Any]], row_of: RowOf) -> dict[str, Any]:
    if "text" not in names:
        return {"input_tokens": _tokens(file, names["input"], values["input"], row_of)}
    if "input" in names:
        file.note(
            "lengths_of_text", len(values["text"]), f"prompts are counted by the tokenizer, not by {names['input']}"
        )
    unpacked = [_unpacked(value) for value in values["text"]]
    if all(isinstance(value, list) for value in unpacked):
        chat = ChatReader(file=file)
        messages = tuple(chat.messages(row_of(i), value) for i, value in enumerate(unpacked))
        file.notes.extend(chat.notes())
        return {"messages": messages, "input_tokens": np.full(len(messages), -1, dtype=np.int64)}
    texts = tuple(checked_text(file, row_of(i), names["text"], value) for i, value in enumerate(values["text"]))
    return {"prompt_text": texts, "input_tokens": np.where([bool(text) for text in texts], -1, 0)}


def _outputs(
    file: SourceFile, names: dict[str, str], values: dict[str, list[Any]], row_of: RowOf, number: int
) -> dict[str, Any]:
    unknown = np.full(number, -1, dtype=np.int64)
    if "output" not in names:
        if "text" not in names:
            raise file.error(None, "columns: output is missing; a trace of lengths needs it")
        return {"output_tokens": unknown}
    name, given = names["output"], values["output"]
    if "text" not in names or not any(isinstance(value, str) and not _numeric(value) for value in given):
        return {"output_tokens": _tokens(file, name, given, row_of)}
    answers = tuple(
        None if value is None else checked_text(file, row_of(i), name, value) or None for i, value in enumerate(given)
    )
    return {"output_tokens": unknown, "output_text": answers}


def _numeric(text: str) -> bool:
    return not text or text.strip().replace(".", "", 1).isdecimal()


def _tokens(file: SourceFile, name: str, values: Any, row_of: RowOf) -> IntArray:
    """Token counts, written as numbers or as text."""
    as_floats: Callable[..., Any] = values_to_floats
    column: Any = values
    if isinstance(values, np.ndarray):
        return checked_tokens(file, name, values, row_of)
    if not isinstance(values, Sequence):  # a column of a table
        as_floats = text_to_floats
    elif values and isinstance(values[0], str):
        import pyarrow as pa

        if not all(isinstance(value, str) for value in values):
            i = next(i for i, value in enumerate(values) if not isinstance(value, str))
            raise file.error(row_of(i), f"{name} is {shown(values[i])}; text like that of the first row is expected")
        as_floats, column = text_to_floats, pa.chunked_array([pa.array(values, type=pa.string())])
    return checked_tokens(file, name, as_floats(file, name, column, row_of), row_of)
