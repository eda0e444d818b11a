"""Text that nobody vouches for (names in a trace, a checkpoint's messages) made safe to print on a terminal."""

from __future__ import annotations

import unicodedata

UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn")  # control, format (which can reverse a line), surrogates, private, unassigned


def printable(text: str, *, keep: str = "\n") -> str:
    r"""The text with every character that a terminal would obey written as an escape, for example ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in UNSAFE else repr(c)[1:-1] for c in text)


def one_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(part.strip() for part in text.splitlines()), keep="")
