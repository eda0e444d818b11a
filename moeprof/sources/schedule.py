"""From a workload's traffic to the exact requests that every model gets: ids, arrival times, order; and the warm-up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from moeprof.core.errors import TraceError
from moeprof.core.trace import NO_SESSION, IntArray, Note, Pattern, Schedule, Trace
from moeprof.core.turns import NONE, REUSE_BLOCK_TOKENS, Turns
from moeprof.core.workload.traffic import Arrivals, Sessions, Traffic
from moeprof.sources.content import Content, ScheduleText, chained_ids, deal_windows, limit_text, merge, tokenise_text
from moeprof.sources.corpus import WindowSource, window_source
from moeprof.sources.synthetic import draw_arrivals, draw_lengths, streams, synthesise
from moeprof.sources.tokenizer import Ids, TextTokenizer
from moeprof.sources.transforms import (
    first_requests,
    limit_lengths,
    sessions_of,
    transform,
    with_closed_sessions,
    with_outputs,
)

Outputs = Literal["forced", "forced_length", "free"]
DEFAULT_NUM_WARMUPS = 8
ALL_CLASSES = "all"
REPEATED_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltSchedule:
    """What an experiment sends.

    Attributes:
        measured: the requests that count.
        warmup: requests of the same lengths with other text, sent before.
        text: the text of ``measured``, for models with another tokenizer; None for random ids.
        warmup_text: the text of ``warmup``; None for random ids.
    """

    measured: Schedule
    warmup: Schedule
    text: ScheduleText | None
    warmup_text: ScheduleText | None

    def for_tokenizer(self, tokenizer: TextTokenizer) -> BuiltSchedule:
        """The same text under another model's tokenizer.

        Raises:
            TraceError: the schedule is of random ids, which have no text.
        """
        if self.text is None or self.warmup_text is None:
            raise TraceError(
                "prompts.source random_ids has no text, so models with different tokenizers cannot be sent the same; "
                "use another source, or models of one tokenizer"
            )
        return BuiltSchedule(
            measured=retokenise(self.measured, self.text, tokenizer),
            warmup=retokenise(self.warmup, self.warmup_text, tokenizer),
            text=self.text,
            warmup_text=self.warmup_text,
        )


def build_schedule(
    traffic: Traffic,
    *,
    tokenizer: TextTokenizer,
    seed: int,
    outputs: Outputs = "forced",
    num_warmups: int = DEFAULT_NUM_WARMUPS,
    input_tokens: int | None = None,
) -> BuiltSchedule:
    """The measured schedule and its warm-up; the same arguments give the same bytes.

    Args:
        traffic: the workload's ``traffic:``.
        tokenizer: the reference tokenizer; lengths are counted in it.
        seed: of every random stream.
        outputs: who chooses the output; without text to continue with, ``forced`` becomes ``forced_length``, noted.
        num_warmups: requests of the warm-up.
        input_tokens: every prompt has so many tokens, whatever the traffic says; None: as it says. Outputs keep
            their lengths. A trace's own text then gives way to windows of ``prompts`` text, which a Note says.

    Raises:
        TraceError: the trace or prompts cannot be used; the message names file and row.
    """
    rngs = streams(seed)
    trace = traffic_trace(traffic, seed=seed)
    source_rng, class_rng = rngs.content.spawn(2)
    source = window_source(traffic.prompts, tokenizer, source_rng)
    content = None
    if trace.prompt_text is not None or trace.messages is not None:
        content = _text_content(
            with_output_lengths(trace, traffic, rngs.output_lengths), traffic, source, tokenizer, class_rng
        )
    if input_tokens is not None:
        content, trace = None, with_input_length(trace if content is None else content.trace, input_tokens)
    if content is None:
        trace = with_output_lengths(trace, traffic, rngs.output_lengths)
        content = deal_windows(trace, source, tokenizer, class_rng)
    realism, notes = _realism(source, len(trace))
    sessions = sessions_of(content.trace, None if traffic.trace is None else traffic.trace.sessions)
    measured = _schedule(content, traffic.arrivals, outputs, "request", sessions)
    measured = _with_reuse(replace(measured, realism=realism, notes=(*measured.notes, *notes)))
    warmup = _warmup(measured, source, tokenizer, rngs.warmup, num_warmups)
    return BuiltSchedule(
        measured=measured, warmup=_schedule_like(warmup, measured), text=content.text, warmup_text=warmup.text
    )


def _text_content(
    trace: Trace, traffic: Traffic, source: WindowSource, tokenizer: TextTokenizer, rng: np.random.Generator
) -> Content:
    """A trace's own text as ids, within the limits; rows that state a length alone get windows of other text."""
    alone = np.zeros(len(trace), dtype=np.bool_)
    if trace.prompt_text is not None:
        alone = np.array([not text for text in trace.prompt_text]) & (trace.input_tokens > 0)
    content = tokenise_text(trace.select(~alone) if alone.any() else trace, tokenizer, source)
    if traffic.trace is not None:
        content = limit_text(content, traffic.trace, tokenizer)
    if not alone.any():
        return content
    lengths = replace(trace.select(alone), prompt_text=None, output_text=None)
    if traffic.trace is not None:
        lengths = limit_lengths(
            lengths,
            max_input_tokens=traffic.trace.max_input_tokens,
            max_output_tokens=traffic.trace.max_output_tokens,
            max_total_tokens=traffic.trace.max_total_tokens,
            too_long=traffic.trace.too_long,
        )
    return merge(content, deal_windows(lengths, source, tokenizer, rng))


def traffic_trace(traffic: Traffic, *, seed: int) -> Trace:
    """The requests of a traffic before any text: recorded and changed as asked, or made up.

    Raises:
        TraceError: the trace cannot be read or changed so.
    """
    from moeprof.sources.formats import read_source

    if traffic.trace is None:
        return synthesise(traffic, seed=seed)
    rng = streams(seed).arrivals
    recorded = transform(read_source(traffic.trace), traffic.trace, rng=rng)
    closed = sessions_of(recorded, traffic.trace.sessions) == "closed"
    # As they would arrive if answers took no time: the first requests are then a beginning of the traffic.
    trace = first_requests(with_closed_sessions(recorded) if closed else recorded, traffic.num_requests)
    if traffic.arrivals is None:
        return trace
    if closed:
        number = int((trace.waits == NONE).sum())
        text = f"the times at which conversations begin were replaced by pattern {traffic.arrivals.pattern}"
        trace = with_closed_sessions(trace, draw_arrivals(rng, traffic.arrivals, number))
        return trace.with_notes(Note(code="arrivals_replaced", count=number, text=text))
    text = f"the trace's own times were replaced by pattern {traffic.arrivals.pattern}"
    return replace(trace, arrival_s=draw_arrivals(rng, traffic.arrivals, len(trace))).with_notes(
        Note(code="arrivals_replaced", count=len(trace), text=text)
    )


def with_input_length(trace: Trace, input_tokens: int) -> Trace:
    """A length-only trace whose prompts all have so many tokens; outputs, times, classes and prefixes stay."""
    has_text = trace.prompt_text is not None or trace.messages is not None
    text = f"every prompt has {input_tokens} tokens" + (": windows of other text, not the trace's own" * has_text)
    return replace(
        trace,
        stated="whole",
        input_tokens=np.full(len(trace), input_tokens, dtype=np.int64),
        # Text without tags is one class; windows would bring the classes of their own text.
        request_class=trace.request_class or ((ALL_CLASSES,) * len(trace) if has_text else None),
        prompt_text=None,
        messages=None,
        output_text=None,
    ).with_notes(Note(code="input_tokens_swept", count=len(trace), text=text))


def with_output_lengths(trace: Trace, traffic: Traffic, rng: np.random.Generator) -> Trace:
    """A trace whose rows without output text and length get one from ``lengths.output``.

    Raises:
        TraceError: there are such rows and no distribution.
    """
    said = trace.output_text or (None,) * len(trace)
    unknown = (trace.output_tokens < 0) & np.array([text is None for text in said])
    if not unknown.any():
        return trace
    if traffic.lengths.output is None:
        row = int(np.argmax(unknown))
        raise TraceError(
            f"request {row} of the {trace.source} trace has neither an output nor output_tokens; give "
            "traffic.lengths.output to draw lengths for such rows"
        )
    output_tokens = trace.output_tokens.copy()
    output_tokens[unknown] = draw_lengths(rng, traffic.lengths.output, int(unknown.sum()), "output")
    text = "requests without an output length got one from lengths.output"
    return with_outputs(trace, output_tokens).with_notes(
        Note(code="output_lengths_drawn", count=int(unknown.sum()), text=text)
    )


def retokenise(schedule: Schedule, text: ScheduleText, tokenizer: TextTokenizer) -> Schedule:
    """The same requests, times and text under another tokenizer: its own ids, so its own lengths.

    Continuations are the same text too, so a forced or asked output has as many tokens as that text has here.
    Comparisons between the two go by character.

    Raises:
        TraceError: the chat template refuses the messages.
    """
    context_of, turns = np.full(len(schedule), NONE, dtype=np.int64), schedule.turns
    if turns is not None:
        context_of = np.where(turns.context_tokens > 0, turns.context, NONE)
    said = [None if output is None else tokenizer.encode(output) for output in text.outputs]
    followed = set(context_of.tolist())
    answers = [tokenizer.encode(text.answer(i)) if ids is None and i in followed else ids for i, ids in enumerate(said)]
    inputs = chained_ids(tokenizer, text, answers, context_of)
    output_tokens = [
        int(asked) if ids is None else max(1, len(ids)) for ids, asked in zip(said, schedule.output_tokens, strict=True)
    ]
    forced = None
    if schedule.output_ids is not None:
        forced = tuple(ids for ids in said if ids is not None)
        assert len(forced) == len(said)
        if not all(len(ids) for ids in (*inputs, *forced)):
            raise TraceError(f"{tokenizer.name}: a prompt or output of the schedule has no token under this tokenizer")
    told = Note(code="retokenised", count=len(schedule), text="the reference's text under this model's own tokenizer")
    if turns is not None:
        turns = replace(turns, context_tokens=_context_tokens(inputs, np.array(output_tokens), answers, context_of))
    retold = replace(
        schedule,
        input_ids=inputs,
        output_tokens=np.array(output_tokens, dtype=np.int64),
        output_ids=forced,
        turns=turns,
        notes=(*schedule.notes, told),
    )
    return retold if schedule.reusable_tokens is None else _with_reuse(retold)


def _realism(source: WindowSource, number: int) -> tuple[str, tuple[Note, ...]]:
    """What the prompts are made of; ``repeated`` when more than half of the windows show text a second time."""
    notes = source.notes()
    reused = sum(note.count for note in notes if note.code == "text_reused")
    return ("repeated" if reused > REPEATED_SHARE * number else source.realism), notes


def _schedule(
    content: Content, arrivals: Arrivals | None, outputs: Outputs, name: str, sessions: Sessions | None = None
) -> Schedule:
    trace = content.trace
    notes = trace.notes
    given = tuple(ids for ids in content.output_ids if ids is not None)
    if outputs == "forced" and len(given) < len(trace):
        outputs = "forced_length"
        text = "requests have no output text to force: all keep their output length, the models choose the tokens"
        notes = (*notes, Note(code="no_output_text", count=len(trace) - len(given), text=text))
    forced = outputs == "forced"
    pattern = _pattern(trace, arrivals)
    turns = None if sessions is None else _turns(content, sessions)
    if turns is not None:
        notes = (*notes, _sessions_note(trace, turns, pattern, outputs))
    unknown = np.full(len(trace), -1, dtype=np.int64)
    width = len(str(len(trace) - 1))
    return Schedule(
        pattern=pattern,
        concurrency=arrivals.concurrency if arrivals is not None and pattern == "closed" else None,
        request_id=tuple(f"{name}-{i:0{width}d}" for i in range(len(trace))),
        arrival_s=trace.arrival_s if pattern == "open" else np.zeros(len(trace), dtype=np.float64),
        input_ids=content.input_ids,
        output_tokens=trace.output_tokens,
        output_ids=given if forced else None,
        request_class=trace.request_class or tuple(name or ALL_CLASSES for name in content.text_class),
        session=trace.session or (NO_SESSION,) * len(trace),
        prefix_blocks=trace.prefix_blocks or ((),) * len(trace),
        outputs=outputs,
        num_characters=unknown if not forced or content.text is None else content.text.num_characters(trace.context_of),
        turns=turns,
        notes=notes,
    )


def _pattern(trace: Trace, arrivals: Arrivals | None) -> Pattern:
    if arrivals is not None:
        if arrivals.pattern == "concurrency":
            return "closed"
        return "open" if arrivals.is_open else "offline"
    return "offline" if any(note.code == "no_times" for note in trace.notes) else "open"


def _turns(content: Content, sessions: Sessions) -> Turns:
    """Who waits for whom, for how long, and how much of each prompt is the one before and its answer."""
    trace = content.trace
    after = trace.waits
    later = after != NONE
    pause_s = np.full(len(trace), np.nan) if trace.delay_s is None else trace.delay_s
    since_s = trace.arrival_s - trace.arrival_s[np.where(later, after, 0)]
    stated = later & ~np.isnan(pause_s)
    return Turns(
        after=after,
        is_closed=sessions == "closed",
        delay_s=np.where(stated, pause_s, 0.0),
        gap_s=np.where(later & ~stated, np.maximum(since_s, 0.0), 0.0),
        context=trace.context_of,
        context_tokens=_context_tokens(content.input_ids, trace.output_tokens, content.output_ids, trace.context_of),
    )


def _context_tokens(
    inputs: Sequence[Ids], output_tokens: IntArray, answers: Sequence[Ids | None], context_of: IntArray
) -> IntArray:
    """Leading tokens that are the prompt before and its answer; 0 where the prompt does not begin with them."""
    found = np.zeros(len(inputs), dtype=np.int64)
    for i in np.flatnonzero(context_of != NONE).tolist():
        before = int(context_of[i])
        prompt, answer, number = inputs[before], answers[before], int(output_tokens[before])
        context = len(prompt) + number
        same = context <= len(inputs[i]) and np.array_equal(inputs[i][: len(prompt)], prompt)
        if same and (answer is None or np.array_equal(inputs[i][len(prompt) : context], answer[:number])):
            found[i] = context
    return found


def _with_reuse(schedule: Schedule) -> Schedule:
    """With the prompt tokens that a prefix cache without limit would have, in whole blocks.

    A block counts when a request before it in the schedule had the same tokens up to its end: in its prompt, or in its
    forced output. Answers that models choose are known while they run alone. At least the last prompt token is always
    computed, and the last output token never.
    """
    seen: set[int] = set()
    reusable = np.zeros(len(schedule), dtype=np.int64)
    forced = schedule.output_ids or ((),) * len(schedule)
    for i, (prompt, output) in enumerate(zip(schedule.input_ids, forced, strict=True)):
        ids = np.concatenate([prompt, np.asarray(output, dtype=np.int32)[:-1]])
        digest, known = 0, True
        for end in range(REUSE_BLOCK_TOKENS, len(ids) + 1, REUSE_BLOCK_TOKENS):
            digest = hash((digest, ids[end - REUSE_BLOCK_TOKENS : end].tobytes()))
            known = known and digest in seen
            if known and end < len(prompt):
                reusable[i] = end
            seen.add(digest)
    return replace(schedule, reusable_tokens=reusable)


def _sessions_note(trace: Trace, turns: Turns, pattern: Pattern, outputs: Outputs) -> Note:
    """Says whether turns wait for answers, and what their pauses are."""
    later = int((turns.after != NONE).sum())
    if not turns.is_closed:
        when = "when they are due" if pattern == "open" else "as soon as there is room"
        text = f"sessions are open: turns are sent {when}, even before the answer to the turn before has ended"
        return Note(code="sessions_open", count=later, text=text)
    parts = ["sessions are closed: a turn is sent when the answer to the turn before it has ended"]
    stated = 0 if trace.delay_s is None else int((~np.isnan(trace.delay_s) & (turns.after != NONE)).sum())
    if stated:
        parts.append(f"{stated} after the pause that the file states")
    if later > stated and (turns.gap_s > 0).any():
        parts.append(f"{later - stated} not sooner after the turn before arrived than in the file")
    if outputs == "free" and turns.context_tokens.any():
        parts.append("prompts hold the model's own answers, so models get different ones")
    return Note(code="sessions_closed", count=later, text="; ".join(parts))


def _warmup(
    measured: Schedule,
    source: WindowSource,
    tokenizer: TextTokenizer,
    rng: np.random.Generator,
    number: int,
) -> Content:
    """Requests with the lengths of measured ones drawn by chance, and the text that comes after theirs."""
    rows = rng.choice(len(measured), size=number, replace=number > len(measured))
    trace = Trace(
        source="warmup",
        arrival_s=np.zeros(number, dtype=np.float64),
        input_tokens=measured.input_tokens[rows],
        output_tokens=measured.output_tokens[rows],
        request_class=tuple(measured.request_class[int(row)] for row in rows),
    )
    return deal_windows(trace, source, tokenizer, rng)


def _schedule_like(content: Content, measured: Schedule) -> Schedule:
    """A warm-up schedule that is driven like the measured one: as many in flight, or all at once."""
    warmup = _schedule(content, None, measured.outputs, "warmup")
    pattern: Pattern = "closed" if measured.pattern == "closed" else "offline"
    return replace(
        warmup,
        pattern=pattern,
        concurrency=measured.concurrency,
        arrival_s=np.zeros(len(warmup), dtype=np.float64),
        realism=measured.realism,
    )
