"""The error tree. A user's mistake is a MoeprofError with an exit code; ours is an AssertionError.

MoeprofError (1: something failed)
 |- InputError (2: bad input or usage: where, what was found, what is allowed, what to do)
 |   |- WorkloadError       a workload file or option
 |   |- TraceError          a trace, prompts file or schedule
 |   |- ModelError          a model that cannot be found, read or built
 |   |   `- UnsupportedModelError   an architecture that moeprof refuses by name
 |   |- RecordError         a record that is missing, damaged, or from a newer format
 |   |- IncomparableError   runs whose facts forbid what was asked; one line per fact
 |   |- PriceError          a device without a price
 |   `- MissingExtraError   a library that only an extra of the package installs
 |- StorageError (1: the record cannot be written any more: no space, read-only, a limit)
 |- EngineError (1: a model failed while running)
 |   `- OutOfMemoryError    what was needed, what was there, which setting to change
 |- RegressionFoundError (3)
 |- UndecidedError (4: cannot tell)
 `- InterruptedRunError (130 SIGINT, 143 SIGTERM, 129 SIGHUP)

One boundary, ``moeprof.cli.main.main``, turns these into one line on stderr and the exit code; into several where an
error says several things of equal weight (``lines``).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence


class MoeprofError(Exception):
    """Something failed that the user should read about in one line.

    Attributes:
        lines: where several things must be said, one line each; else empty, and the message is the line.
    """

    exit_code = 1
    lines: tuple[str, ...] = ()


class InputError(MoeprofError):
    """Bad input or usage."""

    exit_code = 2


class WorkloadError(InputError):
    """A workload file, key, or command-line option is wrong."""


class TraceError(InputError):
    """A trace, prompts file or schedule is wrong."""


class ModelError(InputError):
    """A model cannot be found, read or built."""


class UnsupportedModelError(ModelError):
    """The architecture is known not to be measurable here; the message says why."""


class RecordError(InputError):
    """A record is missing, damaged, or written by a newer moeprof."""


class IncomparableError(InputError):
    """Facts differ that forbid what was asked of two runs."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


class PriceError(InputError):
    """No price is known for this device."""


class MissingExtraError(InputError):
    """The command needs a library that this installation was made without."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed, and this command needs it: pip install 'moeprof[{extra}]'")


# What a file system or a limit says that takes nothing more.
STORAGE = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than is allowed (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the device reports an input/output error",
    errno.EMFILE: "too many files are open (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENOMEM: "not enough memory",
}


def storage_sentence(error: BaseException) -> str | None:
    """Why nothing more can be written, of an error that says so; None of any other."""
    return STORAGE.get(error.errno or 0) if isinstance(error, OSError) else None


class StorageError(MoeprofError):
    """A record cannot be written any more; what was measured is kept."""


class EngineError(MoeprofError):
    """A model failed while running."""


class OutOfMemoryError(EngineError):
    """The device has too little memory; the message says how much was needed and what to change."""


class RegressionFoundError(MoeprofError):
    """A gate found a regression."""

    exit_code = 3


class UndecidedError(MoeprofError):
    """The sample cannot decide the question."""

    exit_code = 4


class InterruptedRunError(MoeprofError):
    """The run was stopped by a signal; what was measured is kept."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
