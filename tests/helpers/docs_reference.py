"""``python -m tests.helpers.docs_reference`` (``make docs``) writes the parts of docs/ that repeat what the code says.

A test holds them equal. A part stands between ``<!-- generated: NAME -->`` and ``<!-- /generated -->`` and is made from
docstrings, annotations and defaults, so that a key or a column is explained in one place.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import tomllib
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from moeprof.analysis.metrics.cards import SECTION_TITLES, all_cards
from moeprof.capture.engines import engine_kinds
from moeprof.core.record import layout, pairs, tables
from moeprof.core.record.picks import ForcedPicks, Picks
from moeprof.core.record.routing import RequestCounts, Routing
from moeprof.core.workload.engine import EngineSettings
from moeprof.core.workload.workload import Workload

DOCS = Path(__file__).resolve().parents[2] / "docs"
PACKAGE = DOCS.parent / "moeprof"
ROOMS = ("core", "sources", "capture", "analysis", "render", "cli")
BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- /generated -->)", re.DOTALL)
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", dict: "keys and values"}


def filled(text: str) -> str:
    """A document with every generated part made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{PARTS[match[2]]()}\n{match[3]}", text)


# -- keys of a workload ------------------------------------------------------------------------------------------------


def workload_keys() -> str:
    """One table per section of the YAML file, in the order of the file."""
    kinds = {kind: settings for kind, settings in engine_kinds().items() if kind != "auto"}
    parts = []
    for kind, path in _sections(Workload, "").items():
        tables = {path: kind} if kind is not EngineSettings else {f"{path}, kind `{k}`": v for k, v in kinds.items()}
        parts += [f"### {heading}\n\n{_key_table(found, path)}" for heading, found in tables.items()]
    return "\n".join(parts)


def _sections(kind: type, path: str) -> dict[type, str]:
    """Every class that a workload is read into -> where it stands first."""
    found = {kind: f"`{path}`" if path else "The whole file"}
    for name, hint in get_type_hints(kind).items():
        for inner in _classes(hint):
            below = _sections(inner, f"{path}.{name}".lstrip("."))
            found |= {one: place for one, place in below.items() if one not in found}
    return found


def _classes(hint: Any) -> Iterator[type]:
    if dataclasses.is_dataclass(hint):
        yield hint  # type: ignore[misc]
    for inner in get_args(hint):
        yield from _classes(inner)


def _key_table(kind: type, path: str) -> str:
    hints, said = get_type_hints(kind), explained(kind)
    rows = [
        f"| `{field.name}` | {_allowed(hints[field.name])} | {_default(field)} | {said[field.name]} |"
        for field in dataclasses.fields(kind)
    ]
    return "\n".join(["| key | what | default | |", "|:--|:--|:--|:--|", *rows, ""])


def _allowed(hint: Any) -> str:
    origin, inner = get_origin(hint), [one for one in get_args(hint) if one is not types.NoneType]
    if origin is Annotated:
        return _allowed(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_allowed(one) for one in inner)
    if origin is tuple:
        return f"list: {_allowed(inner[0])}"
    if dataclasses.is_dataclass(hint):
        return "section, below"
    return PLAIN[origin or hint]


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING or field.default in (None, (), ""):
        return ""
    if field.default is dataclasses.MISSING:
        return "needed"
    value = field.default
    return f"`{list(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else value}`"


# -- the record --------------------------------------------------------------------------------------------------------


def explained(kind: type) -> dict[str, str]:
    """Attribute -> its sentence in the docstring, as Markdown."""
    section = inspect.getdoc(kind).partition("Attributes:\n")[2]  # type: ignore[union-attr]
    found: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): ((?:.|\n {8})*)", section, re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), _ticks(re.sub(r"\s+", " ", text.strip())))
    return found


def record_files() -> str:
    """The contract, as its module words it."""
    return _markdown(layout.__doc__ or "")


def pairs_layout() -> str:
    """What ``regress --ab`` leaves, likewise."""
    return _markdown(pairs.__doc__ or "")


def columns() -> str:
    """One table per table of the record, with the comments of the source."""
    source = inspect.getsource(tables)
    parts = []
    for name, columns in tables.TABLES.items():
        constant = next(key for key, value in vars(tables).items() if value is columns and key != "TABLES")
        same = [other for other, others in tables.TABLES.items() if others is columns]
        if name != same[0]:
            continue
        body = source.partition(f"{constant} = {{\n")[2].partition("\n}")[0]
        rows = re.findall(r'^    "(\w+)": "([^"]+)",(?:  # (.*))?$', body, re.MULTILINE)
        assert [row[0] for row in rows] == list(columns), f"{constant} is not one column a line"
        heading = ", ".join(f"`{other}`" for other in same)
        lines = [f"| `{column}` | `{kind}` | {_ticks(comment).replace('|', '/')} |" for column, kind, comment in rows]
        parts.append("\n".join([f"### {heading}", "", "| column | type | |", "|:--|:--|:--|", *lines, ""]))
    return "\n".join(parts)


def arrays() -> str:
    """Arrays of the npz files."""
    parts = []
    for title, kind in (("routing.npz", Routing), ("forced.npz", ForcedPicks), ("picks/part-n.npz", Picks)):
        fields = explained(kind)
        if kind is Routing:
            fields.pop("requests")
            fields |= explained(RequestCounts)
        lines = [f"| `{name}` | {text} |" for name, text in fields.items()]
        parts.append("\n".join([f"### `{title}`", "", "| array | |", "|:--|:--|", *lines, ""]))
    return "\n".join(parts)


def _markdown(docstring: str) -> str:
    """A module's docstring: indented lines become a listing, the first line is left out."""
    lines, text, listing = inspect.cleandoc(docstring).splitlines()[1:], list[str](), False
    for line in lines:
        if bool(line.startswith(("    ", "<"))) != listing and line:
            text += ["```", ""] if listing else ["", "```"]
            listing = not listing
        text.append(line.removeprefix("    ") if listing else re.sub(r"^(\w[\w.]*): ", r"- \1: ", _ticks(line)))
    written = "\n".join([*text, *(["```"] if listing else [])])
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n+```(?=\n\n|$)", "\n```", written)).strip() + "\n"


def _ticks(text: str) -> str:
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", text.replace("``", "`"))


# -- the house ---------------------------------------------------------------------------------------------------------


def folders() -> str:
    """Every package with the sentence of its own docstring."""
    rows = ["| folder | what lives there |", "|:--|:--|"]
    for room in ROOMS:
        for file in sorted((PACKAGE / room).rglob("__init__.py"), key=lambda file: file.parent.parts):
            sentence = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            sentence = re.sub(r"\s+", " ", sentence.partition("\n\n")[0])
            rows.append(f"| `{file.parent.relative_to(PACKAGE).as_posix()}/` | {_ticks(sentence)} |")
    return "\n".join(rows) + "\n"


def floors() -> str:
    """The layers that ``make lint`` holds, topmost first."""
    contracts = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    parts = []
    for contract in contracts["contracts"]:
        if contract["type"] == "layers":
            layers = "\n".join(contract["layers"]).replace("moeprof.", "")
            parts.append(f"{contract['name'].capitalize()}:\n\n```\n{layers}\n```\n")
    return "\n".join(parts)


# -- metrics -----------------------------------------------------------------------------------------------------------


def metric_cards(section: str) -> str:
    """The cards of one section, each with the anchor that ``moeprof explain`` names."""
    rows = ["| metric | unit | better | kind | formula | source |", "|:--|:--|:--|:--|:--|:--|"]
    for card in all_cards():
        if card.section == section:
            name = f'<a id="{card.reference.partition("#")[2]}"></a>`{card.name}`<br>{card.title}'
            source = re.sub(r"docs/metrics\.md#([\w-]+)", r"[\1](#\1)", card.source)
            formula = card.formula.replace("*", r"\*").replace("|", r"\|")
            rows.append(f"| {name} | {card.unit} | {card.better} | {card.kind_text} | {formula} | {source} |")
    return "\n".join(rows) + "\n"


def default_gates() -> str:
    """In the order of the checks."""
    gates = sorted(((place, card) for card in all_cards() for place in card.gates), key=lambda one: one[0].rank)
    rows = [f"| `{card.gate(place)}` | {card.title} | {card.kind} |" for place, card in gates]
    return "\n".join(["| gate | figure | group |", "|:--|:--|:--|", *rows, ""])


PARTS: dict[str, Callable[[], str]] = {
    "folders": folders,
    "floors": floors,
    "workload-keys": workload_keys,
    "record-layout": record_files,
    "record-pairs": pairs_layout,
    "record-columns": columns,
    "record-arrays": arrays,
    "default-gates": default_gates,
    **{f"metrics-{section}": partial(metric_cards, section) for section in SECTION_TITLES},
}


if __name__ == "__main__":
    for page in sorted(DOCS.glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
