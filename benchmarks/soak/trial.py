"""One input given to one reader: read, refused in one line, or neither; how long it took and how much memory.

Trials that may hang or fill memory run in a process of their own, which is ended when it takes too long. It has a bound
on its memory, so that a bomb cannot take the machine along.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

LIMIT_S = 60.0  # then it hangs
MOST_BYTES = 6 * 2**30
WELL = (0, 2, 3, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a trial.

    Attributes:
        kind: ``read``, ``refused`` or ``failed``.
        text: the refusal, or the last line of the failure.
        cpu_s: processor time; the time until it was ended where it hung.
        peak_mib: what it took on top of what the process had; None where the system does not tell.
    """

    kind: str
    text: str
    cpu_s: float
    peak_mib: float | None = None


def attempt(read: Callable[[Path], object], folder: Path) -> Outcome:
    """Run one reader in this process. A number that it returns is an exit code."""
    from moeprof.core.errors import MoeprofError

    before, started = _reset_peak(), time.process_time()
    out, err = io.StringIO(), io.StringIO()
    kind, text = "read", ""
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = read(folder)
        said = err.getvalue().strip()
        if isinstance(code, int) and code:
            kind, text = ("refused", said) if code in WELL else ("failed", f"exit {code}: {said}")
        if "Traceback" in said:
            kind, text = "failed", said.splitlines()[-1]
    except MoeprofError as error:
        kind, text = "refused", str(error)
        if error.exit_code not in WELL:
            kind = "failed"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind, text = (
            "failed",
            f"{type(error).__name__}: {str(error)[:120]} ({Path(place.filename).name}:{place.lineno})",
        )
    peak = _peak_mib()
    taken = None if peak is None or before is None else peak - before
    return Outcome(kind=kind, text=text[:300], cpu_s=time.process_time() - started, peak_mib=taken)


class Trials:
    """A process that makes trials, one after the other; a new one where the last one hung or died."""

    def __init__(self, read: Callable[[str, Path], object]) -> None:
        """``read(name, folder)`` is a function of a module, as processes are told it by name."""
        self._read = read
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection | None = None

    def run(self, name: str, folder: Path, limit_s: float = LIMIT_S) -> Outcome:
        """One trial."""
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self._pipe is not None
        started = time.monotonic()
        try:
            self._pipe.send((name, folder))
            if self._pipe.poll(limit_s):
                found: Outcome = self._pipe.recv()
                return found
            text = f"hangs: over {limit_s:.0f} s"
        except (EOFError, OSError):
            text = "its process died"
        self.close()
        return Outcome(kind="failed", text=text, cpu_s=time.monotonic() - started)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self._read, theirs), daemon=True)
        self._process.start()
        theirs.close()


def _serve(read: Callable[[str, Path], object], pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    while True:
        try:
            name, folder = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(lambda path, name=name: read(name, path), folder))


def _reset_peak() -> float | None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak_mib()


def _peak_mib() -> float | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
