"""Real text by class, in passages that are loaded only when they are needed.

``stdlib`` is what every Python carries: its own source (code), help topics and docstrings (prose). It differs between
Python versions, so ``packaged`` ships with moeprof: smaller, and the same everywhere.

Token windows of real text: a prompt of exactly n tokens and its true continuation, no text used twice.

Each text class is one long stream of ids: its passages in a seeded order, encoded as they are reached. A window is the
next piece of the stream, so different requests get different text; when the stream ends it starts again in a new order
and the reuse is counted.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moeprof.core.errors import TraceError
from moeprof.core.trace import Note
from moeprof.core.workload.traffic import Prompts
from moeprof.sources.formats.columns import checked_messages, checked_text, plain_text, shown
from moeprof.sources.formats.file import SourceFile, json_rows, open_source, read_bytes
from moeprof.sources.tokenizer import Ids, TextTokenizer

SEPARATOR = "%%"
PACKAGED_CLASSES = ("code", "prose")
MIN_DOCSTRING_CHARS = 200
EXCLUDED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings", "pydoc_data"}
)
EXCLUDED_PREFIXES = ("_sysconfigdata", "config-")  # they hold the paths of the machine that built Python
CLASS_KEYS = ("request_class", "class", "category")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One text.

    Attributes:
        name: what it is, for example a file's name inside the library.
        load: gives the text; may be empty.
    """

    name: str
    load: Callable[[], str]


Corpus = dict[str, tuple[Passage, ...]]


def load_corpus(prompts: Prompts) -> Corpus:
    """The passages of a text source, by class; with ``prompts.classes`` only those.

    Raises:
        TraceError: a prompts file that cannot be read, or a class that the source does not have.
    """
    if prompts.source == "file":
        assert prompts.path is not None
        corpus = _from_file(Path(prompts.path))
    else:
        corpus = _packaged() if prompts.source == "packaged" else _stdlib()
    for name in prompts.classes:
        if name not in corpus:
            raise TraceError(f"text source {prompts.source} has no class {name!r}; it has {', '.join(sorted(corpus))}")
    return {name: corpus[name] for name in prompts.classes or sorted(corpus)}


def _packaged() -> Corpus:
    folder = resources.files("moeprof") / "data" / "text"
    return {
        name: _passages(f"packaged {name}", (folder / f"{name}.txt").read_text(encoding="utf-8"))
        for name in PACKAGED_CLASSES
    }


def _passages(name: str, text: str) -> tuple[Passage, ...]:
    """Passages between lines that hold only ``%%``."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.strip() == SEPARATOR:
            parts.append([])
        else:
            parts[-1].append(line)
    texts = ["\n".join(lines).strip("\n") for lines in parts]
    return tuple(Passage(name=f"{name} {i}", load=partial(str, text)) for i, text in enumerate(texts) if text.strip())


def _stdlib() -> Corpus:
    from pydoc_data.topics import topics

    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        path
        for path in sorted(root.rglob("*.py"))
        if not (EXCLUDED_FOLDERS & set(path.relative_to(root).parts[:-1]))
        and not path.name.startswith(EXCLUDED_PREFIXES)
    ]
    code = tuple(Passage(name=path.relative_to(root).as_posix(), load=partial(_source, path)) for path in files)
    prose = tuple(Passage(name=f"topic {name}", load=partial(str, text)) for name, text in sorted(topics.items()))
    docs = tuple(
        Passage(name=f"docs of {p.name}", load=partial(_docstrings, path)) for p, path in zip(code, files, strict=True)
    )
    return {"code": code, "prose": (*prose, *docs)}


def _source(path: Path) -> str:
    # A few files of the library are kept in other encodings on purpose; they are no loss.
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def _docstrings(path: Path) -> str:
    """The longer docstrings of a module, in order."""
    try:
        tree = ast.parse(_source(path))
    except SyntaxError:
        return ""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes)]
    return "\n\n".join(text for text in found if text and len(text) >= MIN_DOCSTRING_CHARS)


def _from_file(path: Path) -> Corpus:
    if path.suffix not in (".jsonl", ".json", ".gz", ".xz", ".zst", ".parquet"):
        text = read_bytes(path).decode("utf-8")
        return {path.stem: _passages(path.name, text)}
    file = open_source(path)
    if not file.has_objects:
        raise file.error(
            None, "JSON lines with prompt, text or messages are expected; plain text needs the ending .txt"
        )
    corpus: dict[str, list[Passage]] = {}
    for number, row in json_rows(file):
        text = _row_text(file, number, row)
        name = next((str(row[key]) for key in CLASS_KEYS if row.get(key)), path.stem.removesuffix(".jsonl"))
        corpus.setdefault(name, []).append(Passage(name=f"{path.name}:{number}", load=partial(str, text)))
    return {name: tuple(passages) for name, passages in corpus.items()}


def _row_text(file: SourceFile, number: int, row: dict[str, Any]) -> str:
    if "messages" in row:
        text = plain_text(checked_messages(file, number, row["messages"]))
    else:
        key = next((key for key in ("prompt", "text") if key in row), None)
        if key is None:
            raise file.error(number, f"no prompt, text or messages; found the keys {shown(', '.join(sorted(row)))}")
        text = checked_text(file, number, key, row[key])
    answer = row.get("output")
    return text if answer is None else f"{text}\n\n{checked_text(file, number, 'output', answer)}"


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
