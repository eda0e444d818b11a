"""AIPerf's conversation trees (its ``dag_jsonl``): a conversation a line, whose turns start others.

::

    {"session_id", "turns": [{"messages", "max_tokens", "delay", "forks": [child], "spawns": [child]}]}

``messages`` are what a turn adds, ``delay`` is milliseconds. A forked child goes on from the turn's messages and
answer; a spawned one starts from nothing; both wait for that answer, and several may wait for it. The turn at which
spawned children join (``join_at``, else the next one) waits for the last turn of the child that is longest in turns:
here a request waits for one other alone, which a Note says. Children of ``pre_session_spawns`` and of an orchestrator
wait for none; what orders an orchestrator's rounds is left out and counted.
Source: https://github.com/ai-dynamo/aiperf/blob/main/docs/benchmark-modes/dag.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moeprof.core.trace import Note, Trace
from moeprof.core.turns import NONE
from moeprof.core.workload.traffic import TimestampUnit
from moeprof.sources.formats.calls import count_of
from moeprof.sources.formats.chat import ChatReader, Messages
from moeprof.sources.formats.columns import assemble, shown, values_to_floats
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.turns import additions_note, turn_times
from moeprof.sources.formats.units import PER_SECOND

UNKNOWN = -1
MAX_DEPTH = 100
STARTS = ("forks", "spawns")


@dataclass(slots=True, kw_only=True)
class _Row:
    """One request of a tree; ``after`` and ``context`` are rows, -1: none."""

    line: int
    session: str
    messages: Messages
    output: int
    delay: float
    after: int
    context: int


@dataclass(slots=True, kw_only=True)
class _Trees:
    """The conversations of a file by name, and the requests that they come to."""

    chat: ChatReader
    lines: dict[str, tuple[int, dict[str, Any]]]
    rows: list[_Row] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    num_joins: int = 0
    num_rounds: int = 0

    def add(self, name: str, after: int, context: int, depth: int = 0) -> tuple[int, int]:
        """The requests of a conversation and of those that it starts; its last row, and how many turns deep it goes."""
        line, conversation = self.lines[name]
        if name in self.done or depth > MAX_DEPTH:
            raise self.chat.file.error(line, f"session {shown(name)} is started twice, or by itself")
        self.done.add(name)
        turns = _objects(self.chat.file, line, conversation, "turns")
        joins: dict[int, list[tuple[int, int]]] = {}  # turn that children join -> (turns, last row) of each
        last, longest = after, 0
        for number, turn in enumerate(turns):
            waits = last
            if joined := joins.pop(number, []):
                self.num_joins += len(joined) > 1
                deepest, row = max(joined)
                waits = row if deepest > 0 else last
            self.rows.append(self._row(line, name, turn, after=waits, context=last if number else context))
            last, longest = len(self.rows) - 1, longest + 1
            longest = max(longest, self._children(line, turn, number, last, longest, joins, depth))
        return last, longest

    def _children(
        self,
        line: int,
        turn: Mapping[str, Any],
        number: int,
        row: int,
        length: int,
        joins: dict[int, list[tuple[int, int]]],
        depth: int,
    ) -> int:
        """The conversations that one turn starts; returns the most turns of a path that goes through one."""
        longest = length
        for kind, child, join_at in _started(self.chat.file, line, turn, number):
            if child not in self.lines:
                raise self.chat.file.error(line, f"{kind} names {shown(child)}; no session of the file has this name")
            end, turns = self.add(child, row, row if kind == "forks" else NONE, depth + 1)
            longest = max(longest, length + turns)
            if join_at is not None:
                joins.setdefault(join_at, []).append((turns, end))
        return longest

    def _row(self, line: int, name: str, turn: Mapping[str, Any], *, after: int, context: int) -> _Row:
        file = self.chat.file
        messages = self.chat.messages(line, turn.get("messages"), tools=turn.get("tools"))
        delay = turn.get("delay")
        pause = np.nan if delay is None else float(values_to_floats(file, "delay", [delay], lambda _: line)[0])
        if pause < 0 or np.isinf(pause):
            raise file.error(line, f"delay is {pause:g}; a finite pause is expected")
        output = count_of(file, line, "max_tokens", turn.get("max_tokens"))
        return _Row(
            line=line, session=name, messages=messages, output=UNKNOWN if output is None else output, delay=pause,
            after=after, context=context,
        )  # fmt: skip


def is_tree(keys: Mapping[str, Any]) -> bool:
    """True for a row whose turns hold messages or start others, or that starts others itself."""
    if not isinstance(keys.get("session_id"), str):
        return False
    turns = keys.get("turns")
    inside = [turn for turn in turns if isinstance(turn, dict)] if isinstance(turns, list) else []
    return bool(keys.get("orchestrator")) or any(turn.keys() & {"messages", *STARTS} for turn in inside)


def read(file: SourceFile) -> Trace:
    """Read conversation trees.

    Raises:
        TraceError: see chat.py and columns.py; a child that is not there, or is started twice.
    """
    file.use("session_id", "turns", "pre_session_spawns", "orchestrator", "spawns")
    lines: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, row in json_rows(file):
        name = row.get("session_id")
        if not isinstance(name, str) or not name:
            raise file.error(number, f"session_id is {shown(name)}; a text is expected")
        if name in lines:
            raise file.error(number, f"session_id {shown(name)} stands twice")
        lines[name] = (number, row)
    trees = _Trees(chat=ChatReader(file=file), lines=lines)
    started = {child for line, row in lines.values() for child in _all_started(file, line, row)}
    for name, (_, row) in lines.items():
        trees.num_rounds += "rounds" in row
        if name not in started and not row.get("orchestrator"):
            trees.add(name, NONE, NONE)
    for line, row in lines.values():
        for child in _free(row):
            if child not in lines:
                raise file.error(line, f"spawns names {shown(child)}; no session of the file has this name")
            if child not in trees.done:
                trees.add(child, NONE, NONE)
    if lost := sorted(
        lines.keys() - trees.done - {name for name, (_, row) in lines.items() if row.get("orchestrator")}
    ):
        raise file.error(lines[lost[0]][0], f"session {shown(lost[0])} is started by none that is sent (a circle)")
    return _trace(file, trees)


def _trace(file: SourceFile, trees: _Trees) -> Trace:
    rows = trees.rows
    if not rows:
        raise file.error(None, "none of its conversations has a turn")
    after = np.array([row.after for row in rows], dtype=np.int64)
    delay_s = np.array([row.delay for row in rows]) / PER_SECOND[_unit(file)]
    due_s = turn_times(file, np.full(len(rows), np.nan), delay_s, after, lambda i: rows[i].line)
    notes = [*additions_note(after), *trees.chat.notes()]
    if trees.num_joins:
        text = "turns that wait for several agents wait for the one with the most turns"
        notes.append(Note(code="joins", count=trees.num_joins, text=text))
    if trees.num_rounds:
        text = "rounds of an orchestrator were not replayed one after the other: their conversations start at once"
        notes.append(Note(code="rounds", count=trees.num_rounds, text=text))
    return assemble(
        "aiperf",
        file,
        arrival_s=due_s,
        input_tokens=np.full(len(rows), UNKNOWN, dtype=np.int64),
        output_tokens=np.array([row.output for row in rows], dtype=np.int64),
        messages=tuple(row.messages for row in rows),
        session=tuple(row.session for row in rows),
        after=after,
        context=np.array([row.context for row in rows], dtype=np.int64),
        delay_s=np.where(after == NONE, np.nan, np.nan_to_num(delay_s)),
        stated="added",
        notes=tuple(notes),
    )


def _unit(file: SourceFile) -> TimestampUnit:
    if file.how.timestamp_unit == "iso":
        raise file.error(None, "delay of this format is a number; give timestamp_unit as s, ms, us or ns")
    return file.how.timestamp_unit or "ms"


def _objects(file: SourceFile, line: int, row: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    inside = row.get(key)
    if not isinstance(inside, list) or not all(isinstance(item, dict) for item in inside):
        raise file.error(line, f"{key} is {shown(inside)}; a list of objects is expected")
    return inside


def _started(
    file: SourceFile, line: int, turn: Mapping[str, Any], number: int
) -> Iterator[tuple[str, str, int | None]]:
    """What a turn starts: how, which session, and the turn that waits for it."""
    for kind in STARTS:
        for entry in turn.get(kind) or ():
            if isinstance(entry, str):
                yield kind, entry, number + 1 if kind == "spawns" else None
                continue
            if not isinstance(entry, dict):
                raise file.error(line, f"{kind} holds {shown(entry)}; a session or an object is expected")
            join_at = entry.get("join_at", number + 1 if kind == "spawns" else None)
            if join_at is not None and (type(join_at) is not int or join_at <= number):
                raise file.error(line, f"join_at is {shown(join_at)}; the number of a later turn is expected")
            children = [entry["child"]] if "child" in entry else entry.get("children") or ()
            for child in children:
                yield kind, str(child), join_at


def _free(row: Mapping[str, Any]) -> Iterator[str]:
    """Sessions that start with a conversation and wait for none of its turns."""
    yield from (str(child) for child in row.get("pre_session_spawns") or ())
    if row.get("orchestrator"):
        rounds = row.get("rounds")
        yield from (str(child) for child in row.get("spawns") or ())
        for one in rounds if isinstance(rounds, list) else ():
            yield from (str(child) for child in (one.get("spawns") or () if isinstance(one, dict) else ()))


def _all_started(file: SourceFile, line: int, row: Mapping[str, Any]) -> Iterator[str]:
    yield from _free(row)
    for number, turn in enumerate(row["turns"] if isinstance(row.get("turns"), list) else ()):
        if isinstance(turn, dict):
            yield from (child for _, child, _ in _started(file, line, turn, number))
