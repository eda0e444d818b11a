"""Strict YAML into frozen dataclasses, with the line of every complaint. The only file that knows PyYAML.

Strict means: unknown keys are errors (with the nearest valid name), duplicate keys are errors, a text like ``1e-3``
where a number belongs is read as the number YAML 1.2 says it is, and a wrong type is named with its line. Errors read
``file:line: key: what was found; what is allowed``; bounds of numbers have one wording for all errors.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from moeprof.core.errors import InputError, WorkloadError
from moeprof.core.files import LARGEST, UnreadableError, read_bytes, read_text

T = TypeVar("T")
MOST_BYTES = 64 * 1024  # a workload has two or three thousand
Kinds = Mapping[type, Mapping[str, type]]  # class -> what its key ``kind`` may name -> the class to read instead


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Without aliases: a few lines of them stand for more values than fit into memory, and a workload needs none."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A value; an alias has none of its own."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            told = f"the alias *{event.anchor} is not followed; write the value out"
            raise yaml.MarkedYAMLError(problem=told, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: file, line, dotted key."""

    file: str
    line: int
    key: str = ""
    kinds: Kinds = field(default_factory=dict)

    def child(self, name: str, line: int) -> Place:
        """The place of a key below this one."""
        return dataclasses.replace(self, line=line, key=f"{self.key}.{name}" if self.key else name)

    def error(self, message: str) -> WorkloadError:
        """An error at this place."""
        return WorkloadError(f"{self.file}:{self.line}: {self.key + ': ' if self.key else ''}{message}")


def load(path: Path, kind: type[T], kinds: Kinds | None = None) -> T:
    """Read ``path`` as a ``kind``; ``kinds``: classes of which the file says by ``kind:`` which one it means.

    Raises:
        WorkloadError: missing file, YAML syntax, unknown or missing key, wrong type, value out of range.
    """
    try:
        text = read_text(path, MOST_BYTES)
    except UnreadableError as error:
        raise WorkloadError(str(error)) from error
    return loads(text, kind, str(path), kinds)


def text_of(path: Path) -> str:
    """The text of a file for the record, whatever stands in it; empty where there is none."""
    return read_bytes(path, MOST_BYTES).decode("utf-8", errors="replace") if path.is_file() else ""


def loads(text: str, kind: type[T], file: str = "<text>", kinds: Kinds | None = None) -> T:
    """Like :func:`load`, from text."""
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise WorkloadError(f"{file}:{line}: not valid YAML: {error.problem or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WorkloadError(f"{file}:1: not valid YAML: {error}") from error
    if node is None:
        raise WorkloadError(f"{file}:1: the file is empty; `moeprof init` writes starter workloads")
    value: T = _build(kind, node, Place(file, node.start_mark.line + 1, kinds=kinds or {}))
    return value


def _build(kind: Any, node: yaml.Node, place: Place) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _optional(kind, node, place)
    if origin is Annotated:
        return _checked(kind, node, place)
    if origin is Literal:
        return _choice(get_args(kind), node, place)
    if origin is tuple:
        return _sequence(get_args(kind)[0], node, place)
    if origin is dict:
        return _table(get_args(kind)[1], node, place)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, node, place)
    return _scalar(kind, node, place)


def _optional(kind: Any, node: yaml.Node, place: Place) -> Any:
    options = [option for option in get_args(kind) if option is not type(None)]
    if _is_null(node):
        if len(options) == len(get_args(kind)):
            raise place.error("is empty; give a value or leave the key out")
        return None
    fitting = [option for option in options if _fits(option, node)]
    return _build(fitting[0] if fitting else options[0], node, place)


def _fits(kind: Any, node: yaml.Node) -> bool:
    if dataclasses.is_dataclass(kind) or get_origin(kind) is dict:
        return isinstance(node, yaml.MappingNode)
    if get_origin(kind) is tuple:
        return isinstance(node, yaml.SequenceNode)
    if kind is str or get_origin(kind) is Literal:
        return isinstance(node, yaml.ScalarNode)
    return isinstance(node, yaml.ScalarNode) and _number(node.value) is not None


def _checked(kind: Any, node: yaml.Node, place: Place) -> Any:
    """``Annotated[T, check]``: a T of which ``check(value)`` may raise an InputError; it gets the value's own line."""
    base, *checks = get_args(kind)
    value = _build(base, node, place)
    for check in checks:
        try:
            check(value)
        except InputError as error:
            raise place.error(str(error)) from error
    return value


def _choice(allowed: tuple[Any, ...], node: yaml.Node, place: Place) -> Any:
    found = _text(node, place)
    for option in allowed:
        if str(option) == found:
            return option
    raise place.error(f"found {found!r}; allowed: {', '.join(map(str, allowed))}{_nearest(found, map(str, allowed))}")


def _sequence(item: Any, node: yaml.Node, place: Place) -> tuple[Any, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise place.error(f"found {_describe(node)}; a list is allowed")
    return tuple(
        _build(item, child, dataclasses.replace(place, line=child.start_mark.line + 1, key=f"{place.key}[{i}]"))
        for i, child in enumerate(node.value)
    )


def _table(item: Any, node: yaml.Node, place: Place) -> dict[str, Any]:
    return {name: _build(item, child, at) for name, child, at in _pairs(node, place)}


def _dataclass(kind: Any, node: yaml.Node, place: Place) -> Any:
    if kind in place.kinds:
        kind = _of_kind(place.kinds[kind], node, place)
    hints = get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    values: dict[str, Any] = {}
    for name, child, at in _pairs(node, place):
        if name not in fields:
            raise at.error(f"unknown key; allowed here: {', '.join(sorted(fields))}{_nearest(name, fields)}")
        values[name] = _build(hints[name], child, at)
    missing = [name for name, f in fields.items() if _required(f) and name not in values]
    if missing:
        raise place.error(f"missing {', '.join(missing)}")
    try:
        return kind(**values)
    except InputError as error:  # a __post_init__ that names the key and what is allowed
        raise place.error(str(error)) from error


def _of_kind(classes: Mapping[str, type], node: yaml.Node, place: Place) -> type:
    """The class that the key ``kind`` names; the first one where it is left out."""
    named = next(((child, at) for name, child, at in _pairs(node, place) if name == "kind"), None)
    return classes[next(iter(classes)) if named is None else _choice(tuple(classes), *named)]


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _pairs(node: yaml.Node, place: Place) -> list[tuple[str, yaml.Node, Place]]:
    if not isinstance(node, yaml.MappingNode):
        raise place.error(f"found {_describe(node)}; keys and values are allowed")
    pairs: dict[str, tuple[str, yaml.Node, Place]] = {}
    for key, child in node.value:
        at = place.child(str(key.value), key.start_mark.line + 1)
        if not isinstance(key, yaml.ScalarNode):
            raise at.error("a key must be plain text")
        if key.value in pairs:
            raise at.error("the key stands here twice")
        pairs[key.value] = (key.value, child, at)
    return list(pairs.values())


def _scalar(kind: Any, node: yaml.Node, place: Place) -> Any:
    if kind is Any:
        try:
            return yaml.SafeLoader("").construct_object(node, deep=True)
        except yaml.MarkedYAMLError as error:
            raise place.error(f"cannot be used: {error.problem or error}") from error
        except (ValueError, OverflowError, RecursionError) as error:  # a date that is none, a number of 5,000 digits
            raise place.error(f"cannot be used: {error}") from error
    text = _text(node, place)
    if kind in (str, Path):
        return kind(text)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise place.error(f"found {text!r}; true or false is allowed")
        return text.lower() == "true"
    number = _number(text)
    if number is None:
        raise place.error(f"found {text!r}; a number is allowed")
    if kind is int:
        if number != int(number):
            raise place.error(f"found {text}; a whole number is allowed")
        digits = text.replace("_", "")
        whole = int(digits) if digits.lstrip("+-").isdecimal() else int(number)  # a float keeps 15 digits, a seed all
        if abs(whole) >= LARGEST:
            raise place.error(f"found {text[:40]}; a whole number of at most 64 bits is allowed")
        return whole
    return number


def _number(text: str) -> float | None:
    """A finite number. YAML 1.1 reads ``1e-3`` as text; people mean the number."""
    try:
        value = float(text.replace("_", ""))
    except (ValueError, AttributeError):
        return None
    return value if value == value and abs(value) != float("inf") else None


def _text(node: yaml.Node, place: Place) -> str:
    if not isinstance(node, yaml.ScalarNode) or _is_null(node):
        raise place.error(f"found {_describe(node)}; one value is allowed")
    return str(node.value)


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _describe(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "keys and values"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "nothing" if _is_null(node) else repr(node.value)


def _nearest(found: str, allowed: Any) -> str:
    close = difflib.get_close_matches(found, list(allowed), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def at_least(low: float, **values: float | None) -> None:
    """Raise WorkloadError for a value below ``low`` or not finite; None passes."""
    for name, value in values.items():
        if value is not None and not low <= value < float("inf"):
            raise WorkloadError(f"{name}: found {value}; {low:g} or more is allowed")


def at_most(high: float, **values: float | None) -> None:
    """Raise WorkloadError for a value above ``high``, which no run can have; None passes."""
    for name, value in values.items():
        if value is not None and value > high:
            raise WorkloadError(f"{name}: found {value}; at most {high:,} is allowed")


def more_than_zero(**values: float | None) -> None:
    """Raise WorkloadError for a value of 0 or less or not finite; None passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise WorkloadError(f"{name}: found {value}; more than 0 is allowed")
