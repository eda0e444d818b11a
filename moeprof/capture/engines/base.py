"""Engines: what the loop drives. Those that are stepped by us, and those that step themselves and deliver tokens.

An engine *says what happened* and measures nothing else. Whoever drives a stepped engine decides when, so two of them
can be stepped in turn (lock-step pairs) and nothing hides in a background thread. An engine that steps itself (a
server behind a client) has a thread of its own behind ``poll``. Times come from one injectable clock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from moeprof.core.trace import Request

Phase = Literal["prefill", "decode", "mixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceInStep:
    """What one request did in one step.

    Attributes:
        request: row of the request in the schedule.
        query_tokens: tokens of it computed in this step (prompt tokens in prefill, 1 in decode).
        past_tokens: tokens of it already in the cache before the step.
        is_prefill: True while prompt tokens (or recomputed tokens) are processed.
        token: the id it produced (forced or chosen), or None when the step ended inside its prompt.
        chosen: the id the model itself would have chosen, or None when unknown.
        finished: True when this token was its last.
    """

    request: int
    query_tokens: int
    past_tokens: int
    is_prefill: bool
    token: int | None = None
    chosen: int | None = None
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What happened in one engine step. Times are ``perf_counter`` seconds of the process.

    Attributes:
        start_s: before the batch was prepared.
        end_s: after the new tokens were known on the host.
        device_s: device time by events, or None (CPU, or not resolved yet).
        sequences: who was in the batch, in the order of the flattened tokens.
        kv_tokens_used: token slots of the KV cache in use when the forward ends, finished sequences included;
            None when the engine cannot tell.
        preempted: requests that lost their cache in this step (schedule rows).
    """

    start_s: float
    end_s: float
    device_s: float | None
    sequences: tuple[SequenceInStep, ...]
    kv_tokens_used: int | None = None
    preempted: tuple[int, ...] = ()

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed (recomputed ones included)."""
        return sum(s.query_tokens for s in self.sequences if s.is_prefill)

    @property
    def decode_tokens(self) -> int:
        """Decode tokens computed."""
        return sum(s.query_tokens for s in self.sequences if not s.is_prefill)

    @property
    def context_tokens(self) -> int:
        """Keys attended to, summed over sequences: past plus query tokens."""
        return sum(s.past_tokens + s.query_tokens for s in self.sequences)

    @property
    def num_ended(self) -> int:
        """Requests that ended in it."""
        return sum(s.finished for s in self.sequences)

    @property
    def phase(self) -> Phase:
        """``mixed`` when prefill and decode tokens share the step."""
        if self.prefill_tokens and self.decode_tokens:
            return "mixed"
        return "prefill" if self.prefill_tokens else "decode"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What is known of a request at its end where it went to a server; None: not told.

    Attributes:
        sent_s: clock time at which the client wrote it to the socket.
        first_answer_s: when the first token came that was no reasoning.
        input_tokens: prompt tokens as the server counts them.
        reasoning_tokens: output tokens that were reasoning.
        chunks: pieces in which output came; they are no tokens.
        finish_reason: the server's word for why it ended.
        token_times: False where only the first and the last token have a time of their own.
    """

    sent_s: float | None = None
    first_answer_s: float | None = None
    input_tokens: int | None = None
    reasoning_tokens: int | None = None
    chunks: int | None = None
    finish_reason: str | None = None
    token_times: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """What arrived for one request of an engine that steps itself.

    Attributes:
        request: row of the request in the schedule.
        at_s: clock time at which it arrived; tokens of one event arrived together.
        num_tokens: output tokens; 0 where the event only ends the request, or tells of its cache.
        chosen: ids that the model itself would have chosen, one per token; empty where the engine cannot tell.
        cached_tokens: prompt tokens that were taken from a prefix cache; None: not told by this event.
        finished: True when nothing follows, whether it went well or not.
        error: why the request failed, or None. What failed stays in the record.
        told: with the last event of a request, what a server said of it.
    """

    request: int
    at_s: float
    num_tokens: int = 0
    chosen: tuple[int, ...] = ()
    cached_tokens: int | None = None
    finished: bool = False
    error: str | None = None
    told: Told | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvents:
    """What arrived since the last poll, oldest first; may be empty."""

    events: tuple[TokenEvent, ...] = ()

    @property
    def num_ended(self) -> int:
        """Requests that ended, failed ones included."""
        return sum(event.finished for event in self.events)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout:
    """Which tokens a forward pass holds; given to listeners *before* the forward runs.

    Attributes:
        query_tokens: tokens per sequence in flattened order, padding left out.
        requests: schedule row per sequence.
        is_prefill: phase per sequence.
        token_mask: for padded batches, a list over the flattened [batch * width] positions, True = real; None when
            nothing is padded. The order of True positions is the order of ``query_tokens``.
        past_tokens: per sequence, tokens of it already in the cache: the position of its first token. Left out of
            comparisons, because it grows in every step of a batch that stays the same.
    """

    query_tokens: tuple[int, ...]
    requests: tuple[int, ...]
    is_prefill: tuple[bool, ...]
    token_mask: list[bool] | None = None
    past_tokens: tuple[int, ...] = field(default=(), compare=False)


class ForwardListener(Protocol):
    """Is told what a forward pass will hold, just before it runs (the routing tap uses it to label tokens)."""

    def before_forward(self, layout: BatchLayout) -> None:
        """Called once per forward, before it."""

    def after_forward(self) -> None:
        """Called once per forward, after it was launched (not synchronised)."""


@runtime_checkable
class InGraphListener(Protocol):
    """A ForwardListener that can take part in captured decode steps (CUDA graphs), where no hook runs in a replay.

    How a captured step goes, for every listener of the engine, in the order of adding:

    once, while capturing:  ``enter_capture(width)``; the model runs with its hooks; ``leave_capture()`` as the last
    thing inside the captured region.
    at each replay:  ``before_forward(layout)`` (outside of the graph: fills static input buffers on the same stream),
    the replay, ``after_replay(kept)`` with what ``leave_capture`` returned, ``after_forward()``.

    Rows past the real tokens of ``layout`` are padding: copies of the first row, so that they touch no expert that no
    real token touches. Listeners must not count them.
    """

    @property
    def graph_key(self) -> Hashable:
        """What of the listener's state is baked into a captured step: another key, another capture."""

    def enter_capture(self, width: int) -> None:
        """A step of ``width`` rows is about to be captured: static buffers of that width must exist from here on."""

    def leave_capture(self) -> Any:
        """Inside the captured region, after the model: last device work. Returns what ``after_replay`` gets."""

    def after_replay(self, kept: Any) -> None:
        """A replay was launched; ``kept`` are the static tensors that it fills, valid until the next replay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFacts:
    """What any engine is, for the record.

    Attributes:
        kind: the row of ``ENGINES`` that opened it.
        max_sequence_tokens: longest prompt + output that is accepted; None: it does not tell.
        notes: reasons for choices that a reader should know (for example why batches are static).
    """

    kind: str
    max_sequence_tokens: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts(ServedFacts):
    """What a stepped engine is, for the record.

    Attributes:
        batching: ``continuous`` or ``static``.
        attention: name of the attention path that ran.
        experts: name of the experts implementation, or None for dense models.
        dtype: for example ``bfloat16``.
        device: for example ``cpu`` or ``cuda:0``.
        kv_tokens: token slots of the KV cache.
        kv_bytes: bytes allocated for it, or None.
        max_batch_tokens: largest number of tokens in a step.
        max_sequence_tokens: longest prompt + output that is accepted.
        scheduler: whose loop forms the batches: ``transformers`` or ``moeprof``.
        decode: how a decode step is launched: ``eager`` or ``graph`` (captured once per batch size, then replayed).
        compiled: what torch.compile was applied to (``layers``), or None.
        run_ahead: True when a step is launched while the one before still runs.
        decode_experts: experts kernel of decode steps where it is another than ``experts``.
        cpu_kernels: which of our CPU kernels are in force: ``off``, ``experts`` or ``all``.
        ranks: processes that share the model (tensor or expert parallel).
        parallel: ``tensor``, ``expert`` or None.
    """

    batching: Literal["continuous", "static"]
    attention: str
    experts: str | None
    dtype: str
    device: str
    kv_tokens: int
    kv_bytes: int | None
    max_batch_tokens: int
    max_sequence_tokens: int
    scheduler: str = "transformers"
    decode: Literal["eager", "graph"] = "eager"
    compiled: str | None = None
    run_ahead: bool = False
    decode_experts: str | None = None
    cpu_kernels: str = "off"
    ranks: int = 1
    parallel: Literal["tensor", "expert"] | None = None


class ServedEngine(Protocol):
    """What the loop drives, whoever steps it."""

    @property
    def facts(self) -> ServedFacts:
        """What it is, for the record."""

    def submit(self, request: Request) -> None:
        """Hand over a request.

        Raises:
            EngineError: the request can never fit (prompt + output over ``facts.max_sequence_tokens``). The replay
                loop refuses such requests before, so this is a second fence.
        """

    def poll(self, wait_s: float) -> Step | TokenEvents | None:
        """What happened next. A stepped engine runs one step, however long; None: it has nothing to do.

        An engine that steps itself returns as soon as something has arrived, and after ``wait_s`` with no events.
        """

    def drain(self) -> Sequence[Step | TokenEvents]:
        """What was launched or has arrived and was not told yet, oldest first; waits for no request to end."""

    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        """Make ready for passes of so many sequences at once and so long ones; how many steps were captured for it.

        Called while nothing is under way and with the listeners of those passes.
        """

    def reset(self) -> None:
        """Forget all requests and free their cache (between passes)."""

    def close(self) -> None:
        """Release the model, its hooks and its memory."""


class Engine(ServedEngine, Protocol):
    """A model that runs one step at a time."""

    facts: EngineFacts

    def step(self) -> Step | None:
        """Run one step; None when there is nothing to do.

        An engine that runs ahead launches the next step first, then waits for the oldest one and tells that.
        """

    def drain(self) -> list[Step]:
        """Wait for steps that were launched and not told yet, oldest first."""


class SteppedEngine(ABC):
    """What engines have in common that tell each step when it has ended and capture nothing."""

    @abstractmethod
    def step(self) -> Step | None:
        """Run one step."""

    def poll(self, wait_s: float) -> Step | None:
        """One step."""
        return self.step()

    def drain(self) -> list[Step]:
        """Nothing is under way."""
        return []

    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        """Nothing to capture."""
        return 0


class WrappedEngine(SteppedEngine):
    """Another engine, handed on to; for those that add to its steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.facts = engine.facts

    def submit(self, request: Request) -> None:
        """Hand on."""
        self._engine.submit(request)

    def step(self) -> Step | None:
        """Hand on."""
        return self._engine.step()

    def drain(self) -> list[Step]:
        """Hand on."""
        return self._engine.drain()

    def prepare(self, num_sequences: int, longest_tokens: int) -> int:
        """Hand on; a model that could not be captured says so in the facts from now on."""
        num = self._engine.prepare(num_sequences, longest_tokens)
        self.facts = self._engine.facts
        return num

    def reset(self) -> None:
        """Hand on."""
        self._engine.reset()

    def close(self) -> None:
        """Hand on."""
        self._engine.close()


@dataclass(slots=True)
class ListenerSet:
    """The listeners of an engine; empty by default. Order of calls = order of adding."""

    listeners: list[ForwardListener] = field(default_factory=list)

    def before_forward(self, layout: BatchLayout) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.before_forward(layout)

    def after_forward(self) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener.after_forward()

    @property
    def graph_key(self) -> Hashable:
        """Which captured steps serve these listeners as they are; None when one of them cannot be in a graph."""
        inside = [listener for listener in self.listeners if isinstance(listener, InGraphListener)]
        return None if len(inside) < len(self.listeners) else tuple(listener.graph_key for listener in inside)

    def enter_capture(self, width: int) -> None:
        """Tell all."""
        for listener in self._inside():
            listener.enter_capture(width)

    def leave_capture(self) -> list[Any]:
        """What each of them keeps of a captured step."""
        return [listener.leave_capture() for listener in self._inside()]

    def after_replay(self, kept: Sequence[Any]) -> None:
        """Give each of them what it kept."""
        for listener, own in zip(self._inside(), kept, strict=True):
            listener.after_replay(own)

    def _inside(self) -> list[InGraphListener]:
        return [listener for listener in self.listeners if isinstance(listener, InGraphListener)]


Model = Any  # a torch.nn.Module; typed loosely so that base.py needs no torch
