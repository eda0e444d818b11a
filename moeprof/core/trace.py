"""Trace and Schedule: what was recorded, and what will be sent.

A *trace* is requests as recorded: arrivals and lengths, sometimes text, sessions, prefix blocks. A *schedule* is the
exact token ids and arrival times that every model of an experiment gets; it is saved, hashed, and replayable byte for
byte. Both are columns, not lists of objects: a trace may have a million rows. Suffix legend: N requests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import TraceError
from moeprof.core.files import UnreadableError, read_parquet, replacing
from moeprof.core.turns import NO_SESSION, NONE, FloatArray, IntArray, Turns, kept_waits, waits_by_session

__all__ = ["NO_SESSION", "FloatArray", "IntArray", "Note", "Pattern", "Request", "Schedule", "Trace", "first_requests"]
Pattern = Literal["open", "closed", "offline"]
Stated = Literal["whole", "added"]
TURN_COLUMNS = ("after", "context", "delay_s", "gap_s", "context_tokens")  # of Turns, as a schedule's table has them
SCHEDULE_FORMAT_VERSION = 2  # of schedules whose turns wait; the others are written as version 1, which they are


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a reader or generator changed, dropped or noticed, with how many requests it touched.

    Attributes:
        code: stable identifier, for example ``dropped_failed`` or ``grid_detected``.
        count: number of requests concerned.
        text: one sentence for people.
    """

    code: str
    count: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests as recorded, sorted by arrival.

    Attributes:
        source: the format name, for example ``azure``.
        arrival_s: seconds from the first request of the file, shape [N].
        input_tokens: prompt lengths, shape [N]; -1 where only text is known (resolved when tokenised).
        output_tokens: asked output lengths, shape [N]; -1 where only text is known.
        request_class: domain tag per request, or None.
        session: session id per request ("" = none), or None.
        prefix_blocks: ids of the prompt's prefix blocks per request, or None. Same id = same text.
        prefix_block_tokens: tokens per prefix block, or None.
        prompt_text: prompt text per request, or None for length-only traces; "" where only the length is known.
        messages: chat messages per request (role, content), or None; the chat template is applied when tokenising.
        stated: what texts and messages of later turns are: the ``whole`` prompt (Mooncake, Bailian), or what is
            ``added`` to the prompt before and its answer (AIPerf, GuideLLM). Lengths are always of whole prompts; added
            ones grow again with the answers where these change.
        after: row whose answer each request waits for, -1: none, shape [N]; None: that before it in its session.
        context: row whose prompt and answer each added prompt goes on from, -1: none, shape [N]; None: row ``after``.
        output_text: the true continuation per request, or None.
        delay_s: seconds from the end of the answer to the session's previous request, NaN where it is not known, shape
            [N]; None when no request has one.
        notes: what was dropped, changed or noticed while reading.
    """

    source: str
    arrival_s: FloatArray
    input_tokens: IntArray
    output_tokens: IntArray
    request_class: tuple[str, ...] | None = None
    session: tuple[str, ...] | None = None
    prefix_blocks: tuple[tuple[int, ...], ...] | None = None
    prefix_block_tokens: int | None = None
    prompt_text: tuple[str, ...] | None = None
    messages: tuple[tuple[tuple[str, str], ...], ...] | None = None
    output_text: tuple[str | None, ...] | None = None
    delay_s: FloatArray | None = None
    stated: Stated = "whole"
    after: IntArray | None = None
    context: IntArray | None = None
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def waits(self) -> IntArray:
        """Row whose answer each request waits for, -1: none, shape [N]."""
        if self.after is not None:
            return self.after
        return waits_by_session(self.session or (NO_SESSION,) * len(self))

    @property
    def context_of(self) -> IntArray:
        """Row whose prompt and answer each prompt begins with, -1: it is whole, shape [N]."""
        if self.stated == "whole":
            return np.full(len(self), NONE, dtype=np.int64)
        return self.waits if self.context is None else self.context

    def with_notes(self, *notes: Note) -> Trace:
        """The same trace with more notes."""
        return replace(self, notes=(*self.notes, *notes))

    def select(self, index: npt.NDArray[Any]) -> Trace:
        """The rows of ``index`` (integers or a boolean mask), in that order; notes are kept."""
        rows = np.flatnonzero(index) if index.dtype == np.bool_ else index

        def pick(column: Sequence[Any] | None) -> Any:
            return None if column is None else tuple(column[int(i)] for i in rows)

        return replace(
            self,
            arrival_s=self.arrival_s[rows],
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            request_class=pick(self.request_class),
            session=pick(self.session),
            prefix_blocks=pick(self.prefix_blocks),
            prompt_text=pick(self.prompt_text),
            messages=pick(self.messages),
            output_text=pick(self.output_text),
            delay_s=None if self.delay_s is None else self.delay_s[rows],
            after=None if self.after is None else kept_waits(self.after, rows.tolist()),
            context=None if self.context is None else kept_waits(self.context, rows.tolist()),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One row of a schedule: what an engine is given.

    Attributes:
        index: row in the schedule (also the request's number in every recorder).
        request_id: stable name.
        arrival_s: when the schedule wants it sent, seconds from the start of the round; of a turn that waits for an
            answer known when that has ended.
        input_ids: prompt token ids.
        output_tokens: how many tokens to produce.
        output_ids: the forced continuation, or None when the model chooses.
        request_class: domain tag.
        stop_at_eos: True when generation may end early (``outputs: free``).
        reusable_tokens: leading prompt tokens that requests before it had, in whole blocks; None: not known.
    """

    index: int
    request_id: str
    arrival_s: float
    input_ids: list[int]
    output_tokens: int
    output_ids: list[int] | None
    request_class: str
    stop_at_eos: bool = False
    reusable_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The exact requests of an experiment, in arrival order.

    Attributes:
        pattern: ``open`` (send at arrival_s), ``closed`` (keep ``concurrency`` in flight), ``offline`` (all at once).
        concurrency: requests in flight for ``closed``, else None.
        request_id: names, length N.
        arrival_s: shape [N]; zeros unless ``open``. Of a turn that waits: if answers took no time.
        input_ids: prompt token ids per request.
        output_tokens: shape [N].
        output_ids: forced continuation per request, or None (model's own tokens).
        request_class: domain tag per request ("all" when the trace has none).
        session: session id per request ("" = none).
        prefix_blocks: prefix block ids per request (empty = none).
        outputs: ``forced`` (ids given), ``forced_length`` (length given, model's own ids), ``free`` (may stop early).
        num_characters: characters of prompt plus asked output text per request, or -1 when unknown, shape [N].
        realism: ``real_text``, ``random_ids`` or ``repeated``: what the prompts are made of.
        turns: its conversations; None: no request belongs to another.
        reusable_tokens: see :class:`Request`, shape [N]; None: not known.
        notes: everything dropped or changed on the way from the trace.
    """

    pattern: Pattern
    concurrency: int | None
    request_id: tuple[str, ...]
    arrival_s: FloatArray
    input_ids: tuple[npt.NDArray[np.int32], ...]
    output_tokens: IntArray
    output_ids: tuple[npt.NDArray[np.int32], ...] | None
    request_class: tuple[str, ...]
    session: tuple[str, ...]
    prefix_blocks: tuple[tuple[int, ...], ...]
    outputs: Literal["forced", "forced_length", "free"]
    num_characters: IntArray
    realism: str = "real_text"
    turns: Turns | None = None
    reusable_tokens: IntArray | None = None
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.request_id)

    @property
    def waits(self) -> bool:
        """True when a turn waits for the answer to another."""
        return self.turns is not None and self.turns.num_waiting > 0

    @property
    def own_answers(self) -> bool:
        """True when later prompts hold what the model itself answered, so that models get different ones."""
        turns = self.turns
        return self.waits and self.outputs == "free" and turns is not None and bool(turns.context_tokens.any())

    @property
    def is_first(self) -> npt.NDArray[np.bool_]:
        """Requests that wait for no answer, shape [N]."""
        if self.turns is None or not self.turns.is_closed:
            return np.ones(len(self), dtype=np.bool_)
        return np.asarray(self.turns.after == NONE, dtype=np.bool_)

    @property
    def classes(self) -> tuple[str, ...]:
        """The distinct request classes, sorted."""
        return tuple(sorted(set(self.request_class)))

    @property
    def input_tokens(self) -> IntArray:
        """Prompt lengths, shape [N]."""
        return np.array([len(ids) for ids in self.input_ids], dtype=np.int64)

    def requests(self) -> Iterator[Request]:
        """The rows as Request objects, in order."""
        for i in range(len(self)):
            yield Request(
                index=i,
                request_id=self.request_id[i],
                arrival_s=float(self.arrival_s[i]),
                input_ids=self.input_ids[i].tolist(),
                output_tokens=int(self.output_tokens[i]),
                output_ids=None if self.output_ids is None else self.output_ids[i].tolist(),
                request_class=self.request_class[i],
                stop_at_eos=self.outputs == "free",
                reusable_tokens=None if self.reusable_tokens is None else int(self.reusable_tokens[i]),
            )

    def as_offline(self) -> Schedule:
        """The same requests, all at once (the capacity pass); turns still wait for answers, but do not pause."""
        return replace(
            self,
            pattern="offline",
            concurrency=None,
            arrival_s=np.zeros(len(self), dtype=np.float64),
            turns=None if self.turns is None else self.turns.without_pauses(),
        )

    def sha256(self) -> str:
        """Hash of everything that an engine sees: ids, lengths, arrivals, order, pattern."""
        digest = hashlib.sha256(f"{self.pattern}|{self.concurrency}|{self.outputs}|{len(self)}".encode())
        digest.update(np.ascontiguousarray(self.arrival_s).tobytes())
        digest.update(np.ascontiguousarray(self.output_tokens).tobytes())
        for ids in self.input_ids:
            digest.update(len(ids).to_bytes(8, "little") + np.ascontiguousarray(ids, dtype=np.int32).tobytes())
        for ids in self.output_ids or ():
            digest.update(len(ids).to_bytes(8, "little") + np.ascontiguousarray(ids, dtype=np.int32).tobytes())
        if self.turns is not None:
            digest.update(self.turns.digested())
        return digest.hexdigest()

    def save(self, path: Path, *, with_content: bool = True, through_link: bool = False) -> None:
        """Write the schedule as parquet. Without content, token ids are left out (lengths and the hash stay).

        ``through_link``: the path is a link of our own, to memory.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        empty: list[list[int] | None] | None = None if with_content else [[] for _ in range(len(self))]
        nothing: list[list[int] | None] = [None] * len(self)
        forced = nothing if self.output_ids is None else [ids.tolist() for ids in self.output_ids]
        columns: dict[str, Any] = {} if self.reusable_tokens is None else {"reusable_tokens": self.reusable_tokens}
        if self.turns is not None:
            columns |= {name: getattr(self.turns, name) for name in TURN_COLUMNS}
        table = pa.table(
            {
                "request_id": list(self.request_id),
                "arrival_s": self.arrival_s,
                "input_ids": pa.array(empty or [ids.tolist() for ids in self.input_ids], type=pa.list_(pa.int32())),
                "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens,
                "output_ids": pa.array(
                    empty or forced,
                    type=pa.list_(pa.int32()),
                ),
                "request_class": list(self.request_class),
                "session": list(self.session),
                "prefix_blocks": pa.array([list(b) for b in self.prefix_blocks], type=pa.list_(pa.int64())),
                "num_characters": self.num_characters,
                **columns,
            }
        )
        meta = {
            "moeprof_schedule": str(SCHEDULE_FORMAT_VERSION if self.waits else 1),
            "sessions": "" if self.turns is None else "closed" if self.turns.is_closed else "open",
            "pattern": self.pattern,
            "concurrency": "" if self.concurrency is None else str(self.concurrency),
            "outputs": self.outputs,
            "realism": self.realism,
            "sha256": self.sha256(),
            "content": "kept" if with_content else "left out",
        }
        with path.open("wb") if through_link else replacing(path) as file:
            pq.write_table(table.replace_schema_metadata(meta), file)

    @staticmethod
    def load(path: Path) -> Schedule:
        """Read a schedule written by :meth:`save`.

        Raises:
            TraceError: the file is no schedule, is from a newer format, or was written without content.
        """
        try:
            table = read_parquet(path)
        except UnreadableError as fault:
            raise TraceError(f"{path}: cannot be read as a schedule ({fault.why})") from fault
        meta = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        if "moeprof_schedule" not in meta:
            raise TraceError(f"{path}: this parquet file is no moeprof schedule; give one that `moeprof run` wrote")
        if int(meta["moeprof_schedule"]) > SCHEDULE_FORMAT_VERSION:
            raise TraceError(
                f"{path}: written by a newer moeprof (schedule format {meta['moeprof_schedule']}); upgrade"
            )
        if meta["content"] != "kept":
            raise TraceError(f"{path}: saved with --no-content, so it holds no token ids and cannot be replayed")
        rows = table.to_pydict()
        forced = meta["outputs"] == "forced"
        turns = None
        if meta.get("sessions"):
            turns = Turns(
                is_closed=meta["sessions"] == "closed",
                after=np.array(rows["after"], dtype=np.int64),
                context=np.array(rows["context"], dtype=np.int64),
                delay_s=np.array(rows["delay_s"], dtype=np.float64),
                gap_s=np.array(rows["gap_s"], dtype=np.float64),
                context_tokens=np.array(rows["context_tokens"], dtype=np.int64),
            )
        reusable = rows.get("reusable_tokens")
        return Schedule(
            pattern=meta["pattern"],
            concurrency=int(meta["concurrency"]) if meta["concurrency"] else None,
            request_id=tuple(rows["request_id"]),
            arrival_s=np.array(rows["arrival_s"], dtype=np.float64),
            input_ids=tuple(np.array(ids, dtype=np.int32) for ids in rows["input_ids"]),
            output_tokens=np.array(rows["output_tokens"], dtype=np.int64),
            output_ids=tuple(np.array(ids, dtype=np.int32) for ids in rows["output_ids"]) if forced else None,
            request_class=tuple(rows["request_class"]),
            session=tuple(rows["session"]),
            prefix_blocks=tuple(tuple(b) for b in rows["prefix_blocks"]),
            outputs=meta["outputs"],
            num_characters=np.array(rows["num_characters"], dtype=np.int64),
            realism=meta["realism"],
            turns=turns,
            reusable_tokens=None if reusable is None else np.array(reusable, dtype=np.int64),
        )


def first_requests(schedule: Schedule, n: int, max_tokens: int | None = None) -> Schedule:
    """The first ``n`` requests of a schedule whose prompt and output are at most ``max_tokens`` together."""
    fits = np.ones(len(schedule), dtype=np.bool_)
    if max_tokens is not None:
        fits = schedule.input_tokens + schedule.output_tokens <= max_tokens
    return _rows(schedule, np.flatnonzero(fits)[:n].tolist())


def _rows(schedule: Schedule, rows: list[int]) -> Schedule:
    outputs = schedule.output_ids

    def pick(column: Sequence[Any]) -> Any:
        return tuple(column[row] for row in rows)

    return replace(
        schedule,
        request_id=pick(schedule.request_id),
        arrival_s=schedule.arrival_s[rows],
        input_ids=pick(schedule.input_ids),
        output_tokens=schedule.output_tokens[rows],
        output_ids=None if outputs is None else pick(outputs),
        request_class=pick(schedule.request_class),
        session=pick(schedule.session),
        prefix_blocks=pick(schedule.prefix_blocks),
        num_characters=schedule.num_characters[rows],
        turns=None if schedule.turns is None else schedule.turns.select(rows),
        reusable_tokens=None if schedule.reusable_tokens is None else schedule.reusable_tokens[rows],
    )
