"""How the JSON files of a record are read and written: one type per file, at both ends.

A file is a :class:`Header`, its parts are headers or :class:`Facts`. A reader tolerates what other versions of moeprof
wrote: keys that are not known here are passed over, keys that are missing have a default. ``None`` means that nothing
was measured. Kinds of keys:

    name: str                                        must be there
    load_s: float | None = None                      of a Header: written once it is known
    error: str | None = field(default_factory=written(None))    of a Header: always written
    any key of Facts                                 always written
    reason: str | None | UnsetType = UNSET           null and absent are told apart on disk; no reader minds

The history of the format stands in :mod:`moeprof.core.record.layout`; :data:`UPGRADERS` makes old files current.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from moeprof.core.errors import RecordError
from moeprof.core.files import read_json, write_json

FORMAT_VERSION = 1
# Version -> what makes a file of it (its name, its content) one of the next version.
UPGRADERS: dict[int, Callable[[str, dict[str, Any]], dict[str, Any]]] = {}

T = TypeVar("T")
KINDS = {
    "object": "keys and values",
    "array": "a list",
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}
_PLACE = re.compile(r"(?P<what>.*?)(?: - at `(?P<role>key` in `)?\$\.?(?P<key>[^`]*)`)?", re.DOTALL)
_KIND = re.compile(r"Expected `(?P<expected>[^`]+)`, got `(?P<found>[^`]+)`")


class Header(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A JSON file of a record, or a part of it whose keys are written as they become known."""


class Facts(Struct, frozen=True, kw_only=True):
    """A part of a file that is written whole, null for what is not known."""


def written(value: T) -> Callable[[], T]:
    """A default for files that lack the key; the key itself is always written."""
    return lambda: value


def check_version(file: Path, value: Mapping[str, Any]) -> int:
    """The format that a file says it has.

    Raises:
        RecordError: none, one that no moeprof wrote, or a newer one than this moeprof reads.
    """
    version, oldest = value.get("format_version"), min(UPGRADERS, default=FORMAT_VERSION)
    if type(version) is not int or version < oldest:  # True is an int too
        raise RecordError(f"{file}: damaged, format_version is {version!r}; a whole number from {oldest} belongs there")
    if version > FORMAT_VERSION:  # before its shape, which may be another
        raise RecordError(
            f"{file}: format {version}, this moeprof reads up to {FORMAT_VERSION}; upgrade moeprof to read it"
        )
    return version


def read_header(file: Path, kind: type[T], version: int = FORMAT_VERSION) -> T:
    """Read a file of a record of this version.

    Raises:
        RecordError: damaged; the message names the key, what was found and what belongs there.
    """
    return header_of(kind, upgraded(file.name, read_json(file), version), file)


def read_header_if_there(file: Path, kind: type[T], version: int = FORMAT_VERSION) -> T | None:
    """As :func:`read_header`; None where there is no such file."""
    return read_header(file, kind, version) if file.exists() else None


def write_header(file: Path, header: Header) -> None:
    """Write a file of a record, so that a reader never sees half of it."""
    write_json(file, to_json(header))


def write_known(file: Path, kind: type[Header], found: Mapping[str, Any], *, free: Iterable[str] = ()) -> None:
    """Write what is known of a header, by name; keys of ``free`` that it lacks are written as they are."""
    own = {key: found[key] for key in free if key in found and key not in kind.__struct_fields__}
    known = {key: value for key, value in found.items() if key not in own}
    write_json(file, to_json(part_of(kind, known)) | own)


def to_json(facts: Any) -> dict[str, Any]:
    """A header, a part of one or a data class as JSON types."""
    found: dict[str, Any] = msgspec.to_builtins(facts)
    return found


def part_of(kind: type[T], found: Any) -> T:
    """A header, or a part of one, from the object or the mapping that capture knows it by: the fields of equal name."""
    if isinstance(found, dict):
        unknown = set(found) - set(getattr(kind, "__struct_fields__", found))
        assert not unknown, f"{kind.__name__} has no {unknown}"
    return msgspec.convert(found, kind, from_attributes=True)


def upgraded(name: str, value: dict[str, Any], version: int) -> dict[str, Any]:
    """The content of file ``name`` as the current version would have written it."""
    for step in range(version, FORMAT_VERSION):
        value = UPGRADERS[step](name, value)
    return value


def header_of(kind: type[T], value: Any, file: Path, within: str = "") -> T:
    """Content of a file, or of its key ``within``, as its type.

    Raises:
        RecordError: as :func:`read_header`.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise RecordError(f"{file}: damaged, {_damage(str(error), within)}") from error


def _damage(text: str, within: str) -> str:
    """What msgspec found, in the words of a reader: key, what was found, what belongs there."""
    place = _PLACE.fullmatch(text)
    assert place is not None, text
    what, key = place["what"], ".".join(part for part in (within, place["key"]) if part)
    if missing := re.fullmatch(r"Object missing required field `(.+)`", what):
        return f"without {f'{key}.' if key else ''}{missing[1]}"
    if unknown := re.fullmatch(r"Invalid enum value (.+)", what):
        return (
            f"{key}.{unknown[1][1:-1]} is not known" if place["role"] else f"{key} is {unknown[1]}, which is not known"
        )
    if kinds := _KIND.match(what):
        expected, found = (_in_words(kinds[name]) for name in ("expected", "found"))
        return f"{key or 'it'} is {found}; {expected} belong{'' if expected.startswith('keys') else 's'} there"
    return f"{key}: {what}" if key else what


def _in_words(kinds: str) -> str:
    return " or ".join(KINDS.get(kind, kind) for kind in kinds.split(" | "))
