"""Real text by class, in passages that are loaded only when they are needed.

``stdlib`` is what every Python carries: its own source (code), help topics and docstrings (prose). It differs between
Python versions, so ``packaged`` ships with moeprof: smaller, and the same everywhere.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from moeprof.core.errors import TraceError
from moeprof.core.traffic import Prompts
from moeprof.sources.file import SourceFile, json_rows, open_source, read_bytes
from moeprof.sources.numbers import shown
from moeprof.sources.text import checked_messages, checked_text, plain_text

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
    if path.suffix not in (".jsonl", ".json", ".gz"):
        text = read_bytes(path).decode("utf-8")
        return {path.stem: _passages(path.name, text)}
    file = open_source(path)
    if not file.is_json:
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
