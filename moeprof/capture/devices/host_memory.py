"""Memory of the host that this process may take: the machine's, or less where a container says so. No torch.

Containers are control groups: a group has a limit and a use, and every group above it binds too. Version 2 has one tree
(``memory.max``, ``memory.high``, ``memory.current``), version 1 a tree for memory (``memory.limit_in_bytes``,
``memory.usage_in_bytes``). Pages of files that nobody reads any more (``inactive_file``) count as used there, and are
given back when memory gets short, so they are free here. Sources: Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst of Linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

LIMIT_FILES = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}
USE_FILE = {"cgroup2": "memory.current", "cgroup": "memory.usage_in_bytes"}
CACHE_KEY = {"cgroup2": "inactive_file", "cgroup": "total_inactive_file"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """What may be taken.

    Attributes:
        total_bytes: of the machine, or the smallest limit that binds this process.
        free_bytes: of it.
        is_limited: True where a container, not the machine, says how much is free.
    """

    total_bytes: int
    free_bytes: int
    is_limited: bool


def host_room(root: Path = Path("/")) -> HostRoom:
    """Now; ``root`` has ``proc`` and what is mounted."""
    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    groups = list(_groups(root))
    limited_free = min((max(0, limit - used) for limit, used in groups), default=free)
    return HostRoom(
        total_bytes=min([total, *(limit for limit, _ in groups)]),
        free_bytes=min(free, limited_free),
        is_limited=limited_free < free,
    )


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of every group with a limit, from this process's own up."""
    for kind, mount, inside, path in _mounts(root):
        # A container that sees the whole tree has its own group as the mount's root, and the path names it too.
        own = PurePosixPath(path)
        part = own.relative_to(inside) if own.is_relative_to(inside) else PurePosixPath()
        if ".." in part.parts:
            part = PurePosixPath()
        for group in (part, *part.parents):
            folder = mount / group
            limits = [value for name in LIMIT_FILES[kind] if (value := _number(folder / name)) is not None]
            used = _number(folder / USE_FILE[kind])
            if limits and used is not None:
                yield min(limits), used - _inactive_file(folder / "memory.stat", CACHE_KEY[kind])


def _mounts(root: Path) -> Iterator[tuple[str, Path, str, str]]:
    """Kind of each tree with memory, where it is mounted, which group is mounted there, and this process's own path."""
    own = dict[str, str]()
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            own["cgroup2"] = path
        elif "memory" in controllers.split(","):
            own["cgroup"] = path
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, (kind, _, options) = left.split(), (*right.split(" ", 2), "", "", "")[:3]
        if len(fields) > 4 and kind in own and (kind == "cgroup2" or "memory" in options.split(",")):
            yield kind, root / fields[4].lstrip("/"), fields[3], own[kind]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []  # no such thing on this system


def _number(file: Path) -> int | None:
    """A whole number; None where there is no such file, or no limit (``max``)."""
    text = "".join(_lines(file)[:1]).strip()
    return int(text) if text.isdecimal() else None


def _inactive_file(file: Path, key: str) -> int:
    values = dict(line.partition(" ")[::2] for line in _lines(file))
    text = values.get(key, "")
    return int(text) if text.isdecimal() else 0
