"""Text from a record inside Markdown."""

from __future__ import annotations

import re

from moeprof.core.plaintext import printable

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def escape(text: str) -> str:
    """Text from a record as text: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))
