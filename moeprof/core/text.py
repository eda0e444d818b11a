"""Text that nobody vouches for (names in a record, a checkpoint's messages) made harmless, in one place per reader.

:func:`printable` for terminals, pages and files that people read; :class:`Harmless` for what a CI runner reads of the
standard streams; :func:`cell` for spreadsheets; :func:`json_text` for JSON.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

# control, format (which can reverse a line), surrogates, private, unassigned, separators of lines and paragraphs
UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
# What a runner obeys: `::error::` at the start of a line (blanks aside); `##[error]`, `##vso[`, `##teamcity[` anywhere.
_COLONS = re.compile(r"^([^\S\n]*)::", re.MULTILINE)
_HASHES = re.compile(r"##(?=\[|vso\[|teamcity\[)", re.IGNORECASE)
_FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20|%]|::|[\t\r]")  # also in their full-width forms
_DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_NUMBER = re.compile(r"[-+]?\d[\d_,]*(\.\d+)?(e[-+]?\d+)?", re.IGNORECASE)


def printable(text: str, *, keep: str = "\n") -> str:
    r"""The text with every character that a terminal would obey written as an escape, for example ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in UNSAFE else repr(c)[1:-1] for c in text)


def unturned(text: str) -> str:
    """The text without characters that change the direction of a line, which are written as escapes."""
    return text if text.isascii() else _DIRECTION.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(part.strip() for part in text.splitlines()), keep="")


def cell(value: Any) -> Any:
    """A cell of a CSV file; text that a spreadsheet would run as a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    runs = _FORMULA.match(text.lstrip()) or _FORMULA.match(value)
    return f"'{text}" if runs and not _NUMBER.fullmatch(text) else text


def json_text(value: Any, *, indent: int | None = 1) -> str:
    """JSON in which what a terminal or a runner would obey is written as JSON escapes it.

    Raises:
        ValueError: a number that JSON has no word for; what was not measured is None, never NaN.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    if not (text.isascii() and text.replace("\n", "").isprintable()):
        text = "".join(c if c == "\n" or unicodedata.category(c) not in UNSAFE else json.dumps(c)[1:-1] for c in text)
    return _HASHES.sub(r"#\\u0023", text)


class Harmless:
    """A standard stream on which no line is a command of a CI runner, whoever wrote it and however it was wrapped.

    ``commands`` is the stream itself, for the commands that are meant.
    """

    def __init__(self, stream: TextIO) -> None:
        self.commands = stream
        self._line = ""  # what was written of a line that has not ended

    def write(self, text: str) -> int:
        """Write, with a backslash before what begins a command."""
        whole = self._line + text
        safe = _HASHES.sub("# #", _COLONS.sub(r"\1\\::", whole))
        if not safe.startswith(self._line):  # a command that was written in two parts: what stands there is told apart
            safe = self._line + "\\" + _HASHES.sub("# #", text)
        self.commands.write(safe[len(self._line) :])
        self._line = safe.rpartition("\n")[2][-64:]
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.commands, name)
