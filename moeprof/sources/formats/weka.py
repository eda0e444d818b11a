"""Weka's agent traces: ``{"id", "block_size", "requests": [{"t", "in", "out", "hash_ids"}]}``, a conversation each.

``t`` is seconds from the start of the conversation, ``in`` the whole prompt. A hash id stands for ``block_size`` tokens
(64 where the file does not say), means the same text and the same text before it, and counts inside its conversation
only, unless ``hash_id_scope`` is global. Partly filled blocks have no id. ``think_time`` is the pause since the
previous answer ended, ``api_time`` how long the answer took. A request of type ``subagent`` holds a conversation of its
own, whose ``t`` counts from its own start. Files say nothing about when conversations start: here all start at 0, which
a Note says.

A request waits for the one whose answer ended last before it began: of the requests before it in its own list, and of
the agents among them. Calls that overlapped so wait for the same one, and what follows agents waits for the slowest.
Without ``api_time`` an answer is taken to end when its request began: then a request waits for the one before it.
Sources: https://github.com/callanjfox/agentic-coding-analysis/blob/master/docs/TRACE_FORMAT.md,
https://github.com/vllm-project/guidellm/blob/main/docs/guides/trace_replay.md
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moeprof.core.trace import Note, Trace
from moeprof.core.turns import NONE
from moeprof.sources.formats.calls import name_of
from moeprof.sources.formats.columns import (
    assemble,
    checked_seconds,
    checked_tokens,
    lines_of,
    shown,
    values_to_floats,
)
from moeprof.sources.formats.file import SourceFile, json_rows
from moeprof.sources.formats.mooncake import block_ids
from moeprof.sources.formats.units import PER_SECOND

BLOCK_TOKENS = 64
REQUEST_KEYS = {"t", "in", "out"}
MAX_DEPTH = 20


def matches(file: SourceFile) -> bool:
    """True for conversations of requests, and for requests that stand a line each."""
    return file.keys >= {"id", "requests"} or file.keys >= REQUEST_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One request with the line it is from, its conversation, its session and the start of its time axis."""

    line: int
    conversation: str
    session: str
    start: float
    row: Mapping[str, Any]

    def number(self, key: str) -> float:
        """A time of its own, NaN where it states none."""
        value = self.row.get(key)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan

    @property
    def began(self) -> float:
        """On the time axis of its conversation."""
        return self.start + self.number("t")

    @property
    def ended(self) -> float:
        """When its answer ended; when it began where that is not stated."""
        taken = self.number("api_time")
        return self.began + (taken if taken >= 0 else 0.0)


def read(file: SourceFile) -> Trace:
    """Read agent traces; a conversation, and each agent below it, is a session.

    Raises:
        TraceError: see columns.py; or requests that are none, or blocks of two sizes.
    """
    file.use("id", "requests", "block_size", "hash_id_scope", *REQUEST_KEYS, "hash_ids", "think_time", "type", "totals")
    file.use("api_time")
    requests: list[_Request] = []
    sizes: dict[int, int] = {}
    scopes: set[str] = set()
    num_agents = 0
    for number, row in json_rows(file):
        name = name_of(row.get("id")) or str(number)
        size = row.get("block_size", BLOCK_TOKENS)
        if type(size) is not int or size < 1:
            raise file.error(number, f"block_size is {shown(size)}; a whole number of at least 1 is expected")
        sizes.setdefault(size, number)
        if len(sizes) > 1:
            raise file.error(number, f"block_size is {size}, other rows have {next(iter(sizes))}; split the file")
        if row.get("hash_id_scope") == "global":
            scopes.add(name)
        found = list(_requests(file, number, row, name)) if "requests" in row else [_flat(number, row, name)]
        num_agents += len({request.session for request in found} - {name})
        requests += found
    if not requests:
        raise file.error(None, "none of its conversations has a request")
    block_tokens = file.how.block_tokens or next(iter(sizes))
    return _assembled(file, requests, block_tokens, scopes, _notes(requests, num_agents))


def _flat(number: int, row: Mapping[str, Any], name: str) -> _Request:
    return _Request(line=number, conversation=name, session=name, start=0.0, row=row)


def _requests(
    file: SourceFile, number: int, row: Mapping[str, Any], conversation: str, agent: str = "", start: float = 0.0
) -> Iterator[_Request]:
    """The requests of a conversation, and of the agents that it started, in file order."""
    inside = row["requests"]
    if not isinstance(inside, list) or not all(isinstance(request, dict) for request in inside):
        raise file.error(number, f"requests is {shown(inside)}; a list of objects is expected")
    if agent.count("/") > MAX_DEPTH:
        raise file.error(number, f"agents are nested more than {MAX_DEPTH} deep")
    for i, request in enumerate(inside):
        if "requests" not in request:
            yield _Request(
                line=number, conversation=conversation, session=conversation + agent, start=start, row=request
            )
            continue
        began = values_to_floats(file, "t", [request.get("t", 0)], lambda _: number)
        below = f"{agent}/{name_of(request.get('agent_id')).replace('/', '-') or i}"
        yield from _requests(file, number, request, conversation, below, start + float(began[0]))


def _assembled(
    file: SourceFile, requests: list[_Request], block_tokens: int, scopes: set[str], notes: tuple[Note, ...]
) -> Trace:
    row_of = lines_of([request.line for request in requests])
    rows = [request.row for request in requests]
    ids: dict[tuple[str, int], int] = {}
    blocks = tuple(
        tuple(
            ids.setdefault(("" if request.conversation in scopes else request.conversation, block), len(ids))
            for block in block_ids(file, "hash_ids", request.row.get("hash_ids", []), request.line)
        )
        for request in requests
    )
    relative = values_to_floats(file, "t", [row.get("t") for row in rows], row_of)
    due_s = (relative + np.array([request.start for request in requests])) / _units_per_s(file)
    inputs, outputs = (
        checked_tokens(file, key, values_to_floats(file, key, [row.get(key) for row in rows], row_of), row_of)
        for key in ("in", "out")
    )
    return assemble(
        "weka",
        file,
        arrival_s=checked_seconds(file, "t", due_s, row_of),
        input_tokens=inputs,
        output_tokens=outputs,
        notes=notes,
        session=tuple(request.session for request in requests),
        prefix_blocks=blocks,
        prefix_block_tokens=block_tokens,
        **_waits(file, requests),
    )


def _waits(file: SourceFile, requests: list[_Request]) -> dict[str, Any]:
    """Who waits for whom, and how long after its answer: ``think_time``, or what the times of both tell."""
    for key in ("think_time", "api_time"):
        given = [request.row.get(key) for request in requests]
        values = [np.nan if value is None else value for value in given]
        values_to_floats(file, key, values, lines_of([request.line for request in requests]))
    after = np.full(len(requests), NONE, dtype=np.int64)
    pause = np.full(len(requests), np.nan)
    own: dict[str, list[tuple[float, int]]] = {}  # (end of the answer, row), ascending, of each list of requests
    below: dict[str, list[tuple[float, int]]] = {}  # the same with those of the agents that it started
    last: dict[str, int] = {}  # the row before in the same list
    for i, request in enumerate(requests):
        mine, above = request.session, list(_above(request))
        # An agent's first request waits for one of whoever started the agent.
        known = below.get(mine) or (own.get(above[0], []) if above else [])
        place = bisect_right(known, (request.began, len(requests)))
        if place:
            after[i] = known[place - 1][1]
            before = requests[after[i]]
            alone = mine not in last or requests[last[mine]].ended <= request.began
            if alone and request.number("think_time") >= 0:
                pause[i] = request.number("think_time")
            elif before.number("api_time") >= 0:
                pause[i] = request.began - before.ended
        insort(own.setdefault(mine, []), (request.ended, i))
        for name in (mine, *above):
            insort(below.setdefault(name, []), (request.ended, i))
        last[mine] = i
    if (after == NONE).all():
        return {}
    return {"after": after, "delay_s": pause / _units_per_s(file)}


def _above(request: _Request) -> Iterator[str]:
    """The sessions of who started this agent, who started that one, and so on up to the conversation."""
    agent = request.session[len(request.conversation) :]
    while agent:
        agent = agent.rpartition("/")[0]
        yield request.conversation + agent


def _units_per_s(file: SourceFile) -> float:
    """Seconds, unless the user says otherwise."""
    if file.how.timestamp_unit == "iso":
        raise file.error(None, "t is a number of seconds since the conversation began, no ISO time")
    return PER_SECOND[file.how.timestamp_unit or "s"]


def _notes(requests: list[_Request], num_agents: int) -> tuple[Note, ...]:
    names = {request.conversation for request in requests}
    notes = []
    if len(names) > 1:
        text = "conversations whose start the file does not state all start at 0; `arrivals` spreads requests"
        notes.append(Note(code="conversation_starts", count=len(names), text=text))
    if num_agents:
        text = "agents that conversations started are sessions of their own"
        notes.append(Note(code="agents", count=num_agents, text=text))
    return tuple(notes)
