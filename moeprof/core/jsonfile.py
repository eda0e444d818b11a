"""JSON objects on disk, as records keep them: damage is named, and a reader never sees half a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moeprof.core.errors import RecordError


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a record.

    Raises:
        RecordError: unreadable, no JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RecordError(f"{path}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path}: damaged (a JSON object was expected)")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that a reader never sees half a file."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
