"""Temporary folders that do not outlive their process for long: what a killed one left, the next start removes.

A folder belongs to the process that holds the lock on its mark; the kernel lets go of it however that process ends. No
clock and no process id is asked, and a folder without a mark is nobody's to remove.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Self

PREFIX = "moeprof-"
MARK = ".moeprof-scratch"


class Scratch:
    """A new temporary folder, until :meth:`close`."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        making = self.path / "mark.tmp"
        self._mark = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(self._mark, fcntl.LOCK_EX)
            making.rename(self.path / MARK)  # only now: a mark without its lock says that the owner is dead

    def close(self) -> None:
        """Remove it; what cannot be removed is swept later."""
        if self._mark >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._mark)
            self._mark = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def sweep() -> None:
    """Remove the folders of processes that are gone. Only the user's own, and no links."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            info = folder.lstat()
            if stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    mark = os.open(folder / MARK, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(mark)
    return True
