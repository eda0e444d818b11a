"""How a Document looks: one file per form, found through this table. Nothing here reads a record or computes."""

from __future__ import annotations

import difflib

from moeprof.core.errors import WorkloadError

# format -> (file name, module with ``render``-like function); html is loaded only when asked for
FILES = {"md": "report.md", "html": "report.html", "json": "summary.json", "csv": "summary.csv"}
COMPARE_FILES = {name: f"compare.{name}" for name in FILES}


def parse_formats(text: str) -> tuple[str, ...]:
    """``md,html`` -> ("md", "html").

    Raises:
        WorkloadError: an unknown format.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in FILES:
            close = difflib.get_close_matches(name, FILES, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise WorkloadError(f"--write {text!r}: unknown format {name!r}; allowed: {', '.join(FILES)}{hint}")
    return names
