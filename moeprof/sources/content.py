"""The token ids of every request: windows of real text for length-only traces, the trace's own text otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.errors import TraceError
from moeprof.core.trace import NO_SESSION, IntArray, Note, Trace
from moeprof.core.workload.traffic import MOST_TOKENS, TraceSource
from moeprof.sources.corpus import WindowSource
from moeprof.sources.tokenizer import Ids, TextTokenizer, render_chat
from moeprof.sources.transforms import limit_lengths, too_long_rows

Messages = tuple[tuple[str, str], ...]
MOST_ALL_TOKENS = 250_000_000  # of one schedule: a gigabyte of ids


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleText:
    """The text behind a schedule, so that a model with another tokenizer can be sent the same.

    Attributes:
        prompts: prompt text per request, without the tokenizer's own leading tokens.
        messages: chat messages per request where the prompt is to go through the chat template, else None.
        outputs: text of the continuation per request, or None where there is none.
    """

    prompts: tuple[str, ...]
    messages: tuple[Messages | None, ...]
    outputs: tuple[str | None, ...]

    def num_characters(self) -> IntArray:
        """Characters of prompt (messages without template) plus continuation, -1 without one; shape [N]."""
        counts = [
            -1 if output is None else _prompt_characters(prompt, messages) + len(output)
            for prompt, messages, output in zip(self.prompts, self.messages, self.outputs, strict=True)
        ]
        return np.array(counts, dtype=np.int64)


def _prompt_characters(prompt: str, messages: Messages | None) -> int:
    return len(prompt) if messages is None else sum(len(content) for _, content in messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A trace with its token ids.

    Attributes:
        trace: its lengths are those of the ids; rows that cannot be sent are gone.
        input_ids: prompt ids per request.
        output_ids: continuation ids per request, None where there is no text to continue with.
        text_class: class of text that each prompt was taken from, or the request's own tag.
        text: the same as text; None for random ids.
    """

    trace: Trace
    input_ids: tuple[Ids, ...]
    output_ids: tuple[Ids | None, ...]
    text_class: tuple[str, ...]
    text: ScheduleText | None


def deal_windows(trace: Trace, source: WindowSource, tokenizer: TextTokenizer, rng: np.random.Generator) -> Content:
    """Text for a length-only trace: the first ``input`` tokens of a window are the prompt, the rest its continuation.

    Requests whose prefix blocks are shared with others get the same ids there. The tokenizer's own leading ids (a
    begin-of-text mark) take the place of the first ids, so lengths stay exact.
    """
    _check_lengths(trace)
    text_class = _text_classes(trace, source, rng)
    shared = _shared_prefixes(trace)
    blocks: dict[int, Ids] = {}
    lead = np.array(tokenizer.leading_ids, dtype=np.int32)
    inputs: list[Ids] = []
    outputs: list[Ids | None] = []
    for i, (num_input, num_output) in enumerate(
        zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    ):
        for block in shared[i]:
            if block not in blocks:
                blocks[block] = source.take(text_class[i], trace.prefix_block_tokens or 0)
        prefix = np.concatenate([np.empty(0, dtype=np.int32), *(blocks[b] for b in shared[i])])[:num_input]
        window = source.take(text_class[i], num_input - len(prefix) + num_output)
        prompt = np.concatenate([prefix, window[: num_input - len(prefix)]])
        prompt[: len(lead)] = lead[:num_input]
        inputs.append(prompt)
        outputs.append(window[num_input - len(prefix) :])
    text = None
    if source.realism != "random_ids":
        texts = tokenizer.decode([ids[len(lead) :] for ids in inputs])
        said = tokenizer.decode([ids for ids in outputs if ids is not None])
        text = ScheduleText(prompts=texts, messages=(None,) * len(texts), outputs=said)
    return Content(trace=trace, input_ids=tuple(inputs), output_ids=tuple(outputs), text_class=text_class, text=text)


def _check_lengths(trace: Trace) -> None:
    """Text is made only for what a model could be sent.

    Raises:
        TraceError: one request, or all together, are longer than that.
    """
    lengths = trace.input_tokens + trace.output_tokens
    total, longest = int(lengths.sum()), int(lengths.max(initial=0))
    if longest > MOST_TOKENS or int(trace.input_tokens.max(initial=0)) > MOST_TOKENS:
        raise TraceError(
            f"request {int(lengths.argmax())} has {longest:,} tokens; at most {MOST_TOKENS:,} are sent to a model: "
            "say max_total_tokens"
        )
    if total > MOST_ALL_TOKENS:
        raise TraceError(
            f"{len(trace):,} requests have {total:,} tokens together; at most {MOST_ALL_TOKENS:,} are made: "
            "say num_requests, or shorter lengths"
        )


def _text_classes(trace: Trace, source: WindowSource, rng: np.random.Generator) -> tuple[str, ...]:
    """The request's own class where the source has such text, else drawn evenly; one class per shared prefix."""
    names = source.classes
    drawn = rng.integers(0, len(names), size=len(trace)).tolist()
    tags = trace.request_class or ("",) * len(trace)
    roots = [blocks[0] if blocks else None for blocks in trace.prefix_blocks or ((),) * len(trace)]
    of_root: dict[int, str] = {}
    chosen = []
    for tag, draw, root in zip(tags, drawn, roots, strict=True):
        name = tag if tag in names else names[draw]
        chosen.append(name if root is None else of_root.setdefault(root, name))
    return tuple(chosen)


def _shared_prefixes(trace: Trace) -> list[tuple[int, ...]]:
    """The leading blocks of each request that others have too (ids are chained: what is shared is at the front)."""
    if trace.prefix_blocks is None:
        return [()] * len(trace)
    uses = Counter(block for blocks in trace.prefix_blocks for block in set(blocks))
    shared = []
    for blocks in trace.prefix_blocks:
        alone = next((j for j, block in enumerate(blocks) if uses[block] < 2), len(blocks))
        shared.append(blocks[:alone])
    return shared


def tokenise_text(trace: Trace, tokenizer: TextTokenizer) -> Content:
    """The trace's own prompts, messages and outputs as ids; lengths become those of the ids.

    Raises:
        TraceError: the chat template refuses a row's messages, or nothing is left.
    """
    messages: tuple[Messages | None, ...] = trace.messages or (None,) * len(trace)
    prompts = trace.prompt_text or ("",) * len(trace)
    inputs = tuple(prompt_ids(tokenizer, prompt, chat) for prompt, chat in zip(prompts, messages, strict=True))
    said = trace.output_text or (None,) * len(trace)
    outputs = [_forced(tokenizer, text, asked) for text, asked in zip(said, trace.output_tokens.tolist(), strict=True)]
    known = np.array([-1 if ids is None else len(ids) for ids, _ in outputs], dtype=np.int64)
    notes = []
    shorter = (known >= 0) & (trace.output_tokens > known)
    if shorter.any():
        text = "outputs are shorter than the asked length; their true length is used"
        notes.append(Note(code="output_shorter", count=int(shorter.sum()), text=text))
    if trace.messages is not None and tokenizer.chat_template is None:
        text = "the model has no chat template: messages are written as 'role: content'"
        notes.append(Note(code="no_chat_template", count=len(trace), text=text))
    content = Content(
        trace=replace(
            trace,
            input_tokens=np.array([len(ids) for ids in inputs], dtype=np.int64),
            output_tokens=np.where(known >= 0, known, trace.output_tokens),
        ).with_notes(*notes),
        input_ids=inputs,
        output_ids=tuple(ids for ids, _ in outputs),
        text_class=trace.request_class or ("",) * len(trace),
        text=ScheduleText(prompts=prompts, messages=messages, outputs=tuple(text for _, text in outputs)),
    )
    return _without_empty(content)


def prompt_ids(tokenizer: TextTokenizer, prompt: str, messages: Messages | None) -> Ids:
    """Ids of one prompt; messages go through the chat template.

    Raises:
        TraceError: the template refuses them.
    """
    if messages is None:
        return tokenizer.encode_prompt(prompt)
    rendered = render_chat(tokenizer, messages)
    return tokenizer.encode_prompt(rendered) if tokenizer.chat_template is None else tokenizer.encode_template(rendered)


def _forced(tokenizer: TextTokenizer, text: str | None, asked: int) -> tuple[Ids | None, str | None]:
    """Ids and text of a continuation, cut to the asked length (-1: all of it)."""
    if text is None:
        return None, None
    ids = tokenizer.encode(text)
    if 0 <= asked < len(ids):
        return ids[:asked], tokenizer.decode([ids[:asked]])[0]
    return ids, text


def _without_empty(content: Content) -> Content:
    """Without requests whose prompt or output came to no token."""
    trace = content.trace
    empty = (trace.input_tokens == 0) | (trace.output_tokens == 0)
    if not empty.any():
        return content
    if empty.all():
        raise TraceError("none of the trace's texts comes to a token; is it the right tokenizer?")
    note = Note(
        code="dropped_no_tokens", count=int(empty.sum()), text="requests whose text came to no token were dropped"
    )
    return select(content, ~empty, note)


def select(content: Content, keep: npt.NDArray[np.bool_], note: Note) -> Content:
    """The kept rows, with a Note of why the others went."""
    rows = np.flatnonzero(keep).tolist()
    text = content.text
    return Content(
        trace=content.trace.select(keep).with_notes(note),
        input_ids=tuple(content.input_ids[i] for i in rows),
        output_ids=tuple(content.output_ids[i] for i in rows),
        text_class=tuple(content.text_class[i] for i in rows),
        text=text
        and ScheduleText(
            prompts=tuple(text.prompts[i] for i in rows),
            messages=tuple(text.messages[i] for i in rows),
            outputs=tuple(text.outputs[i] for i in rows),
        ),
    )


def merge(text: Content, made: Content) -> Content:
    """Requests with a text of their own and requests of lengths alone, as one content in order of arrival."""

    def both(name: str, default: Any) -> Any:
        columns = [getattr(part.trace, name) for part in (text, made)]
        if columns == [None, None]:
            return None
        filled = zip(columns, (text, made), strict=True)
        return tuple(item for column, part in filled for item in column or (default,) * len(part.trace))

    trace = replace(
        text.trace,
        arrival_s=np.concatenate([text.trace.arrival_s, made.trace.arrival_s]),
        input_tokens=np.concatenate([text.trace.input_tokens, made.trace.input_tokens]),
        output_tokens=np.concatenate([text.trace.output_tokens, made.trace.output_tokens]),
        request_class=both("request_class", "all"),
        session=both("session", NO_SESSION),
        prefix_blocks=both("prefix_blocks", ()),
        prompt_text=both("prompt_text", ""),
        messages=None,
        output_text=both("output_text", None),
        delay_s=None,
        notes=tuple(dict.fromkeys((*text.trace.notes, *made.trace.notes))),
    )
    order = np.argsort(trace.arrival_s, kind="stable")

    def sorted_rows(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
        rows = (*first, *second)
        return tuple(rows[i] for i in order.tolist())

    joined = None
    if text.text is not None and made.text is not None:
        joined = ScheduleText(
            prompts=sorted_rows(text.text.prompts, made.text.prompts),
            messages=sorted_rows(text.text.messages, made.text.messages),
            outputs=sorted_rows(text.text.outputs, made.text.outputs),
        )
    return Content(
        trace=trace.select(order),
        input_ids=sorted_rows(text.input_ids, made.input_ids),
        output_ids=sorted_rows(text.output_ids, made.output_ids),
        text_class=sorted_rows(text.text_class, ("",) * len(made.text_class)),
        text=joined,
    )


def limit_text(content: Content, source: TraceSource, tokenizer: TextTokenizer) -> Content:
    """The workload's length limits on tokenised text: longer requests are dropped or cut (from the end), and counted.

    Raises:
        TraceError: ``too_long: scale`` (text has no scale), or nothing is left.
    """
    limits = (source.max_input_tokens, source.max_output_tokens, source.max_total_tokens)
    over = too_long_rows(content.trace, *limits)
    if not over.any():
        return content
    if source.too_long == "scale":
        raise TraceError("too_long: scale needs a trace of lengths; text can be dropped or truncated")
    trace = limit_lengths(
        content.trace,
        max_input_tokens=limits[0],
        max_output_tokens=limits[1],
        max_total_tokens=limits[2],
        too_long=source.too_long,
    )
    if source.too_long == "drop":
        return select(content, ~over, trace.notes[-1])
    assert content.text is not None
    rows = zip(content.input_ids, trace.input_tokens.tolist(), strict=True)
    inputs = tuple(ids[:n] for ids, n in rows)
    outputs = tuple(
        None if ids is None else ids[:n]
        for ids, n in zip(content.output_ids, trace.output_tokens.tolist(), strict=True)
    )
    cut = [len(new) < len(old) for new, old in zip(inputs, content.input_ids, strict=True)]
    text = content.text
    return Content(
        trace=trace,
        input_ids=inputs,
        output_ids=outputs,
        text_class=content.text_class,
        # Half a chat template cannot be rendered again: cut messages go on as the text that is left of them.
        text=ScheduleText(
            prompts=tuple(
                tokenizer.decode([new])[0] if was_cut else old
                for new, old, was_cut in zip(inputs, text.prompts, cut, strict=True)
            ),
            messages=tuple(None if was_cut else old for old, was_cut in zip(text.messages, cut, strict=True)),
            outputs=tuple(
                old if ids is None or len(ids) == len(before or ()) else tokenizer.decode([ids])[0]
                for ids, before, old in zip(outputs, content.output_ids, text.outputs, strict=True)
            ),
        ),
    )
