"""Text from a record inside Markdown."""

from __future__ import annotations

import html
import re

from moeprof.core.plaintext import printable

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def html_text(text: str) -> str:
    """Text from a record where GitHub reads HTML and no Markdown, such as a line that begins with a block's tag."""
    return html.escape(printable(" ".join(text.split())), quote=False)


def escape(text: str) -> str:
    """Text from a record as text: no markup, no HTML, one line."""
    return _SPECIAL.sub(r"\\\1", printable(" ".join(text.split())))
