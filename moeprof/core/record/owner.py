"""Who may write into a record: one process, until it ends, or until it has been silent and another one goes on.

The owner's token stands in ``<run>/lock`` as long as the run lives, and its heartbeat beside it says that it does. Who
takes a record does so alone (a lock on the folder itself, held for milliseconds), and only where nobody beats. A
process that was stopped for long (Ctrl-Z, ``docker pause``) may find another token when it wakes: it and its workers
end without writing. Workers look too, before each flush: they wake at the same moment as their parent.
"""

from __future__ import annotations

import atexit
import fcntl
import multiprocessing
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from moeprof.core.errors import EngineError, InputError, RecordError
from moeprof.core.files import UnreadableError, read_json, read_text, write_text
from moeprof.core.record.layout import HEARTBEAT_STALE_S, beats

LOCK, HEARTBEAT, EXPERIMENT = "lock", "heartbeat", "experiment.json"
ENDS = ("done", "failed", "interrupted")
OWN = {LOCK, HEARTBEAT, f"{HEARTBEAT}.tmp", f"{LOCK}.tmp"}  # of a folder in which nothing was measured yet
BEAT_EVERY_S = 1.0
MOST_TOKEN_BYTES = 256
WAIT_S = 5.0
_HELD: dict[Path, Owner] = {}


class LostRecordError(EngineError):
    """Another process has gone on with this record, so this one writes no more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder}: another process has gone on with this record; nothing more was written into it")


@dataclass(frozen=True, slots=True)
class Witness:
    """What a worker remembers of the owner of the record that it writes into; of a folder without one nothing."""

    folder: Path
    token: str | None

    @staticmethod
    def of(folder: Path) -> Witness:
        """Of the record that a pass belongs to."""
        found = next((above for above in (folder, *folder.absolute().parents[:4]) if (above / LOCK).is_file()), folder)
        return Witness(found, _token(found))

    def check(self) -> None:
        """Nothing has changed.

        Raises:
            LostRecordError: the record has another owner now.
        """
        if self.token is not None and _token(self.folder) != self.token:
            raise LostRecordError(self.folder)


class Owner:
    """This process, as the one that writes into a record. A thread beats once a second."""

    def __init__(self, folder: Path) -> None:
        self.has_begun = False  # to write the record; until then an end leaves it as it was
        self._folder, self._process = folder, os.getpid()
        write_text(folder / LOCK, f"{secrets.token_hex(8)} process {self._process}\n")
        self._witness = Witness(folder, _token(folder))
        self._beat()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """This process may write.

        Raises:
            LostRecordError: another one has gone on with the record.
        """
        self._witness.check()

    def release(self) -> None:
        """The run has ended, or never began."""
        self._done.set()
        self._thread.join()
        _HELD.pop(self._folder.resolve(), None)
        with suppress(OSError, LostRecordError):
            self.check()
            (self._folder / LOCK).unlink(missing_ok=True)
            if not self.has_begun:
                (self._folder / HEARTBEAT).unlink(missing_ok=True)

    def _beat(self) -> None:
        """Write the time; a reader that came in the middle of it would take an empty file for silence."""
        write_text(self._folder / HEARTBEAT, f"{time.time():.1f}\n")

    def _run(self) -> None:
        while not self._done.wait(BEAT_EVERY_S):
            try:
                self.check()
                self._beat()
            except LostRecordError as error:
                _end_at_once(error)
            except OSError:
                pass  # no space now may be space in a second; the run itself says what it cannot write


def _end_at_once(error: LostRecordError) -> None:
    """Without a word to the workers: whatever they still had to write does not belong there any more."""
    for child in multiprocessing.active_children():
        child.kill()
    print(f"moeprof: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def take(folder: Path, *, empty: bool = False) -> Owner:
    """Become the owner of a record; the same one where this process is it already.

    Args:
        folder: of the record, which is there.
        empty: only a folder in which nothing is.

    Raises:
        InputError: another process writes into it, or is just taking it; or it is not empty.
        OSError: it cannot be written.
    """
    held = _HELD.get(folder.resolve())
    if held is not None and not empty:
        return held
    with _alone(folder):
        if beats(folder) and not _has_ended(folder):
            raise InputError(
                f"{folder}: is still running (or died within the last {HEARTBEAT_STALE_S:g} s); wait until it ends"
            )
        if empty and {path.name for path in folder.iterdir()} - OWN:
            raise InputError(
                f"{folder}: is there already and is not empty; nothing is overwritten, choose another folder"
            )
        owner = Owner(folder)
    _HELD[folder.resolve()] = owner
    return owner


def _has_ended(folder: Path) -> bool:
    """Its owner said so, and took the lock away: what still beats is the last beat of a run that is over."""
    try:
        return not (folder / LOCK).exists() and read_json(folder / EXPERIMENT).get("status") in ENDS
    except RecordError:
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    until = time.monotonic() + WAIT_S
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise InputError(f"{folder}: another process is just taking it; wait until it ends") from None
                time.sleep(0.05)
            except OSError:
                break  # a file system without locks: the heartbeat alone must do
        yield
    finally:
        os.close(descriptor)


def _token(folder: Path) -> str | None:
    try:
        return read_text(folder / LOCK, MOST_TOKEN_BYTES)
    except UnreadableError:
        return None


@atexit.register
def _release_all() -> None:
    for owner in list(_HELD.values()):
        owner.release()
