"""What two processes of a launch pair say to each other: one JSON object per line, over the child's stdin and stdout.

Not pickle: the two sides may run other versions of Python, torch, transformers and moeprof, and must agree on this file
alone. The child greets with PROTOCOL first; a parent with another one says so and measures nothing.

    child:  {"protocol": 2, "moeprof": "0.1.0", "python": "3.11.7", "torch": ..., "transformers": ...}
    parent: {"do": "prepare", "plan": {...}}                     child: {"event": "done", "data": {...}}
    parent: {"do": "begin", "concurrency": 4, ...}               child: {"event": "done", "data": {...}}
    parent: {"do": "steps", "number": 8}                         child: {"event": "done", "data": {"rows": ...}}
    parent: restart, reference, end, close                       child: likewise
    child, at any time: {"event": "progress", "data": {"doing": ...}}, or once and for good
            {"event": "failed", "data": {"error": ..., "exit_code": 1, "traceback": ...}}
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from moeprof.capture.protocol import WorkerPlan
from moeprof.core import VERSION, yamlfile
from moeprof.core.errors import EngineError
from moeprof.core.workload.engine import OWN_KINDS, EngineSettings

PROTOCOL = 2


def encode(message: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8") + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """One message.

    Raises:
        EngineError: no JSON object; something else wrote into the channel.
    """
    try:
        message = json.loads(line)
    except ValueError as error:
        raise EngineError(f"two processes: no message but {line[:80]!r}; something else wrote there") from error
    if not isinstance(message, dict):
        raise EngineError(f"two processes: no message but {line[:80]!r}; a JSON object was expected")
    return message


def greeting() -> dict[str, Any]:
    """What a child says first. Versions are read from the packages' own notes; nothing heavy is imported."""
    found: dict[str, Any] = {"protocol": PROTOCOL, "moeprof": VERSION, "python": platform.python_version()}
    for package in ("torch", "transformers"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def plan_to_json(plan: WorkerPlan) -> dict[str, Any]:
    """The plan as plain data. What has its default is left out, so that an older revision need not know the key."""
    value = _plain(plan)
    assert isinstance(value, dict)
    return value


def plan_from_json(value: Mapping[str, Any]) -> WorkerPlan:
    """The plan again.

    Raises:
        WorkloadError: an unknown or missing key, a wrong type, a value that is not allowed; JSON is YAML, so the strict
            reader of workloads reads it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return yamlfile.loads(text, WorkerPlan, "<plan>", {EngineSettings: OWN_KINDS})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name: _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != _default(field)
        }
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
