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
        prompts: prompt text per request, without the tokenizer's own leading tokens; of a turn that begins with the
            prompt before and its answer, what it adds.
        messages: chat messages per request where the prompt is to go through the chat template, else None.
        outputs: text of the continuation per request, or None where there is none.
        answers: what stands for the answer in later prompts where there is no continuation, else None.
    """

    prompts: tuple[str, ...]
    messages: tuple[Messages | None, ...]
    outputs: tuple[str | None, ...]
    answers: tuple[str | None, ...] = ()

    def answer(self, i: int) -> str:
        """What later prompts hold as the answer to request ``i``."""
        return self.outputs[i] or (self.answers[i] if self.answers else None) or ""

    def select(self, rows: Sequence[int]) -> ScheduleText:
        """The text of these rows."""
        return ScheduleText(
            prompts=tuple(self.prompts[i] for i in rows),
            messages=tuple(self.messages[i] for i in rows),
            outputs=tuple(self.outputs[i] for i in rows),
            answers=tuple(self.answers[i] for i in rows) if self.answers else (),
        )

    def num_characters(self, context_of: IntArray) -> IntArray:
        """Characters of prompt (messages without template) plus continuation, -1 without one; shape [N].

        Args:
            context_of: row whose prompt and answer each prompt begins with, -1: none.
        """
        prompts = [_prompt_characters(*one) for one in zip(self.prompts, self.messages, strict=True)]
        for i, before in enumerate(context_of.tolist()):
            if before >= 0 and self.messages[i] is None:
                prompts[i] += prompts[before] + len(self.answer(before))
        counts = [
            -1 if output is None else prompt + len(output) for prompt, output in zip(prompts, self.outputs, strict=True)
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

    Requests whose prefix blocks are shared with others get the same ids there. A turn that adds to its conversation
    begins with the prompt before and its continuation, whatever a model will say. The tokenizer's own leading ids (a
    begin-of-text mark) take the place of the first ids, so lengths stay exact.
    """
    context_of = trace.context_of.tolist()
    _check_lengths(trace)
    text_class = _text_classes(trace, source, rng)
    shared = _shared_prefixes(trace)
    blocks: dict[int, Ids] = {}
    lead = np.array(tokenizer.leading_ids, dtype=np.int32)
    inputs: list[Ids] = []
    windows: list[Ids] = []
    added: list[Ids] = []
    for i, (num_input, num_output) in enumerate(
        zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    ):
        for block in shared[i]:
            if block not in blocks:
                blocks[block] = source.take(text_class[i], trace.prefix_block_tokens or 0)
        prefix = np.concatenate([np.empty(0, dtype=np.int32), *(blocks[b] for b in shared[i])])[:num_input]
        if context_of[i] >= 0:
            prefix = np.concatenate([inputs[context_of[i]], windows[context_of[i]]])[:num_input]
        window = source.take(text_class[i], num_input - len(prefix) + num_output)
        prompt = np.concatenate([prefix, window[: num_input - len(prefix)]])
        prompt[: len(lead)] = lead[:num_input]
        inputs.append(prompt)
        windows.append(window[num_input - len(prefix) :])
        added.append(prompt[len(prefix) if context_of[i] >= 0 else len(lead) :])
    text = None
    if source.realism != "random_ids":
        texts, said = tokenizer.decode(added), tokenizer.decode(windows)
        text = ScheduleText(prompts=texts, messages=(None,) * len(texts), outputs=said)
    return Content(trace=trace, input_ids=tuple(inputs), output_ids=tuple(windows), text_class=text_class, text=text)


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
    # A turn that adds to its conversation takes the ids of the prompt before, not those of blocks.
    whole = [() if before >= 0 else b for b, before in zip(trace.prefix_blocks, trace.context_of.tolist(), strict=True)]
    uses = Counter(block for blocks in whole for block in set(blocks))
    shared = []
    for blocks in whole:
        alone = next((j for j, block in enumerate(blocks) if uses[block] < 2), len(blocks))
        shared.append(blocks[:alone])
    return shared


def tokenise_text(trace: Trace, tokenizer: TextTokenizer, source: WindowSource) -> Content:
    """The trace's own prompts, messages and outputs as ids; lengths become those of the ids.

    Turns that add to their conversation begin with the ids of the prompt before and its answer; ``source`` gives other
    text of the asked length for answers that the file does not hold.

    Raises:
        TraceError: the chat template refuses a row's messages, or nothing is left.
    """
    messages: tuple[Messages | None, ...] = trace.messages or (None,) * len(trace)
    prompts = trace.prompt_text or ("",) * len(trace)
    said = trace.output_text or (None,) * len(trace)
    outputs = [_forced(tokenizer, text, asked) for text, asked in zip(said, trace.output_tokens.tolist(), strict=True)]
    known = np.array([-1 if ids is None else len(ids) for ids, _ in outputs], dtype=np.int64)
    lengths = np.where(known >= 0, known, trace.output_tokens)
    context_of = trace.context_of
    answers, notes = _missing_answers(trace, [ids for ids, _ in outputs], lengths, source)
    if trace.messages is not None:
        messages = _whole_messages(messages, context_of, said, answers, tokenizer)
    text = ScheduleText(
        prompts=prompts,
        messages=messages,
        outputs=tuple(text for _, text in outputs),
        answers=tuple(None if ids is None else tokenizer.decode([ids])[0] for ids in answers),
    )
    spoken = [answer if ids is None else ids for (ids, _), answer in zip(outputs, answers, strict=True)]
    inputs = chained_ids(tokenizer, text, spoken, context_of)
    shorter = (known >= 0) & (trace.output_tokens > known)
    if shorter.any():
        told = "outputs are shorter than the asked length; their true length is used"
        notes.append(Note(code="output_shorter", count=int(shorter.sum()), text=told))
    if trace.messages is not None and tokenizer.chat_template is None:
        told = "the model has no chat template: messages are written as 'role: content'"
        notes.append(Note(code="no_chat_template", count=len(trace), text=told))
    content = Content(
        trace=replace(
            trace, input_tokens=np.array([len(ids) for ids in inputs], dtype=np.int64), output_tokens=lengths
        ).with_notes(*notes),
        input_ids=inputs,
        output_ids=tuple(ids for ids, _ in outputs),
        text_class=trace.request_class or ("",) * len(trace),
        text=text,
    )
    return _without_empty(content)


def _missing_answers(
    trace: Trace, outputs: Sequence[Ids | None], lengths: IntArray, source: WindowSource
) -> tuple[list[Ids | None], list[Note]]:
    """Other text for answers that later prompts hold and the file does not; None where none is needed."""
    needed = {before for before in trace.context_of.tolist() if before >= 0 and outputs[before] is None}
    tags = trace.request_class or ("",) * len(trace)
    answers: list[Ids | None] = [None] * len(trace)
    for row in sorted(needed):
        name = tags[row] if tags[row] in source.classes else source.classes[row % len(source.classes)]
        answers[row] = source.take(name, max(0, int(lengths[row])))
    if not needed:
        return answers, []
    told = "answers are not in the file: later prompts hold other text of their length"
    return answers, [Note(code="answers_made_up", count=len(needed), text=told)]


def _whole_messages(
    messages: tuple[Messages | None, ...],
    context_of: IntArray,
    said: Sequence[str | None],
    answers: Sequence[Ids | None],
    tokenizer: TextTokenizer,
) -> tuple[Messages | None, ...]:
    """All messages of each prompt: those before, the assistant's answer, and what the turn adds."""
    whole: list[Messages | None] = []
    for own, before in zip(messages, context_of.tolist(), strict=True):
        if before >= 0:
            made = answers[before]
            answer = said[before] or ("" if made is None else tokenizer.decode([made])[0])
            own = (*(whole[before] or ()), ("assistant", answer), *(own or ()))
        whole.append(own)
    return tuple(whole)


def chained_ids(
    tokenizer: TextTokenizer, text: ScheduleText, answers: Sequence[Ids | None], context_of: IntArray
) -> tuple[Ids, ...]:
    """Prompt ids; those of a turn that adds begin with the ids of the prompt before and of its answer.

    Where a chat template writes earlier messages otherwise once others follow, the prompt is made anew, as a whole.

    Raises:
        TraceError: the chat template refuses messages.
    """
    inputs: list[Ids] = []
    for i, before in enumerate(context_of.tolist()):
        messages = text.messages[i]
        if before < 0:
            inputs.append(prompt_ids(tokenizer, text.prompts[i], messages))
            continue
        if messages is None:
            added: Ids | None = tokenizer.encode(text.prompts[i])
        else:
            added = _added_by_template(tokenizer, text, i, before)
        answer = answers[before]
        if added is None or answer is None:
            inputs.append(prompt_ids(tokenizer, text.prompts[i], messages))
        else:
            inputs.append(np.concatenate([inputs[before], answer, added]))
    return tuple(inputs)


def _added_by_template(tokenizer: TextTokenizer, text: ScheduleText, i: int, before: int) -> Ids | None:
    """Ids of what the template writes after the answer before; None where its beginning is another than before."""
    rendered = render_chat(tokenizer, text.messages[i] or ())
    context = render_chat(tokenizer, text.messages[before] or ()) + text.answer(before)
    if not rendered.startswith(context):
        return None
    rest = rendered[len(context) :]
    return tokenizer.encode(rest) if tokenizer.chat_template is None else tokenizer.encode_template(rest)


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


def with_whole_prompts(content: Content) -> Content:
    """The same ids; prompts are whole ones from now on, which no longer grow with the answers before."""
    text, context_of = content.text, content.trace.context_of.tolist()
    if text is not None:
        whole: list[str] = []
        for i, before in enumerate(context_of):
            grown = before >= 0 and text.messages[i] is None
            whole.append(whole[before] + text.answer(before) + text.prompts[i] if grown else text.prompts[i])
        text = replace(text, prompts=tuple(whole))
    return replace(content, trace=replace(content.trace, stated="whole"), text=text)


def select(content: Content, keep: npt.NDArray[np.bool_], note: Note) -> Content:
    """The kept rows, with a Note of why the others went."""
    context_of = content.trace.context_of
    if (keep & (context_of >= 0) & ~keep[context_of]).any():
        content = with_whole_prompts(content)  # the prompt of a turn that went is in those after it
    rows = np.flatnonzero(keep).tolist()
    text = content.text
    return Content(
        trace=content.trace.select(keep).with_notes(note),
        input_ids=tuple(content.input_ids[i] for i in rows),
        output_ids=tuple(content.output_ids[i] for i in rows),
        text_class=tuple(content.text_class[i] for i in rows),
        text=text and text.select(rows),
    )


def merge(text: Content, made: Content) -> Content:
    """Requests with a text of their own and requests of lengths alone, as one content in order of arrival."""
    text, made = with_whole_prompts(text), with_whole_prompts(made)

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
        after=None,
        context=None,
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
    content = with_whole_prompts(content)
    trace = replace(trace, stated="whole")
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
            answers=text.answers,
        ),
    )
