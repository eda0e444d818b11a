"""Token windows of real text: a prompt of exactly n tokens and its true continuation, no text used twice.

Each text class is one long stream of ids: its passages in a seeded order, encoded as they are reached. A window is the
next piece of the stream, so different requests get different text; when the stream ends it starts again in a new order
and the reuse is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from moeprof.core.errors import TraceError
from moeprof.core.trace import Note
from moeprof.core.traffic import Prompts
from moeprof.sources.corpus import Corpus, Passage, load_corpus
from moeprof.sources.tokenizer import Ids, TextTokenizer

PASSAGE_END = "\n\n"


class WindowSource(Protocol):
    """Something that hands out pieces of token streams."""

    realism: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The text classes."""

    def take(self, text_class: str, count: int) -> Ids:
        """The next ``count`` ids of a class."""

    def notes(self) -> tuple[Note, ...]:
        """What a reader should know about the text taken so far."""


def window_source(prompts: Prompts, tokenizer: TextTokenizer, rng: np.random.Generator) -> WindowSource:
    """The text of a workload's ``traffic.prompts``.

    Raises:
        TraceError: a prompts file that cannot be read, or a class that the source does not have.
    """
    if prompts.source == "random_ids":
        return RandomIds(tokenizer, rng)
    return RealText(load_corpus(prompts), tokenizer, rng)


@dataclass(slots=True)
class TokenStream:
    """The ids of one text class, handed out from front to back.

    Attributes:
        passages: the texts.
        tokenizer: encodes them.
        rng: the order.
        num_passes: how often the passages have been begun.
        num_reused: windows taken after the first pass ended.
    """

    passages: tuple[Passage, ...]
    tokenizer: TextTokenizer
    rng: np.random.Generator
    num_passes: int = 0
    num_reused: int = 0
    _waiting: list[int] = field(default_factory=list)
    _buffer: list[Ids] = field(default_factory=list)
    _buffered: int = 0
    _has_ids: bool = False
    _cache: dict[int, Ids] = field(default_factory=dict)

    def take(self, count: int) -> Ids:
        """The next ``count`` ids.

        Raises:
            TraceError: the passages hold no text at all.
        """
        while self._buffered < count:
            self._load_next()
        self.num_reused += self.num_passes > 1
        ids = np.concatenate(self._buffer) if len(self._buffer) != 1 else self._buffer[0]
        self._buffer = [ids[count:]]
        self._buffered = len(ids) - count
        return ids[:count]

    def _load_next(self) -> None:
        if not self._waiting:
            if self.num_passes and not self._has_ids:
                raise TraceError("the text source holds no text; give a file with passages, or another source")
            self.num_passes += 1
            self._waiting = self.rng.permutation(len(self.passages)).tolist()[::-1]
        if self._waiting:
            ids = self._encoded(self._waiting.pop())
            self._buffer.append(ids)
            self._buffered += len(ids)
            self._has_ids = self._has_ids or len(ids) > 0

    def _encoded(self, index: int) -> Ids:
        # Kept, because a long trace goes over its text many times: 4 bytes per token of the corpus.
        if index not in self._cache:
            text = self.passages[index].load().strip("\n")
            self._cache[index] = self.tokenizer.encode(text + PASSAGE_END if text.strip() else "")
        return self._cache[index]


class RealText:
    """Windows of a corpus."""

    realism = "real_text"

    def __init__(self, corpus: Corpus, tokenizer: TextTokenizer, rng: np.random.Generator) -> None:
        children = rng.spawn(len(corpus))
        self.streams = {
            name: TokenStream(corpus[name], tokenizer, child)
            for name, child in zip(sorted(corpus), children, strict=True)
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """The text classes."""
        return tuple(self.streams)

    def take(self, text_class: str, count: int) -> Ids:
        """The next ``count`` ids of a class."""
        return self.streams[text_class].take(count)

    def notes(self) -> tuple[Note, ...]:
        """How often text had to be used again."""
        reused = {name: s for name, s in self.streams.items() if s.num_reused}
        return tuple(
            Note(
                code="text_reused",
                count=stream.num_reused,
                text=f"windows of {name} text came from a later pass over it ({stream.num_passes} passes)",
            )
            for name, stream in reused.items()
        )


class RandomIds:
    """Random ids: routers see nonsense, so schedules of it are marked."""

    realism = "random_ids"
    classes: tuple[str, ...] = ("random_ids",)

    def __init__(self, tokenizer: TextTokenizer, rng: np.random.Generator) -> None:
        allowed = set(range(tokenizer.vocab_size)) - tokenizer.special_ids
        self.allowed = np.array(sorted(allowed), dtype=np.int32)
        self.rng = rng

    def take(self, text_class: str, count: int) -> Ids:
        """``count`` ids drawn evenly from the vocabulary without its special tokens."""
        return self.allowed[self.rng.integers(0, len(self.allowed), size=count)]

    def notes(self) -> tuple[Note, ...]:
        """None: the realism mark says it."""
        return ()
