"""A process of a launch pair as its parent sees it: it is started, takes orders, and its death is noticed. No torch.

What goes wrong before the greeting is the user's to mend (no such Python, no moeprof in it, another protocol) and is an
InputError of one line. What goes wrong later is a failure of the lane.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moeprof.capture.devices.process import THREADS, tied
from moeprof.capture.lockstep.loop import Turn
from moeprof.capture.lockstep.protocol import PROTOCOL, decode, encode
from moeprof.capture.protocol import OnReport, Report
from moeprof.capture.worker.process import SILENCE_S, WorkerFailedError
from moeprof.capture.worker.watch import STOP_GRACE_S
from moeprof.core import VERSION
from moeprof.core.errors import EngineError, InputError

GREETING_S = 60.0  # nothing heavy is imported before it
LISTEN_S = 0.2
# A thread that spins while the other process has its turn would take that turn's processor.
IDLE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}
MODULE = "moeprof.capture.worker.server"


class StopRequestedError(Exception):
    """Someone requested a stop while a process was busy with something that takes long."""


class RemoteLane:
    """A lane whose engine is in another process (see :class:`moeprof.capture.lockstep.loop.Lane`), and that process."""

    def __init__(
        self,
        name: str,
        python: Path | None,
        threads: int | None = None,
        *,
        on_report: OnReport = lambda report: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start it; ``greet`` comes next.

        Args:
            name: of the lane.
            python: the interpreter of its environment; None: this one.
            threads: CPU threads, or None for torch's default.
            on_report: gets every report.
            stop_requested: called while an answer is waited for.

        Raises:
            InputError: there is no such Python.
        """
        self._name, self._on_report, self._stop_requested = name, on_report, stop_requested
        self.python = Path(sys.executable) if python is None else find_python(name, python)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill; a pipe that nobody reads could fill up
        self._buffer = b""
        try:
            self._process = subprocess.Popen(
                tied([str(self.python), "-m", MODULE], signal.SIGKILL),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
                bufsize=0, env=child_environment(os.environ, self.python, threads),
            )  # fmt: skip
        except OSError as error:
            self._stderr.close()
            raise InputError(f"{_option(name)}: {self.python} cannot be started ({error.strerror})") from error
        assert self._process.stdout is not None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def greet(self) -> dict[str, Any]:
        """Its greeting: protocol, and versions of moeprof, python, torch and transformers.

        Raises:
            InputError: it has no moeprof, one that speaks another protocol, no torch, or it says nothing.
        """
        until = time.monotonic() + GREETING_S
        while (line := self._line()) is None or not line.startswith(b"{"):  # what a start-up file of its Python prints
            if line == b"":
                raise self._no_greeting()
            if time.monotonic() > until:
                raise InputError(f"{_option(self._name)}: {self.python} said nothing for {GREETING_S:.0f} s")
        message = decode(line)
        if message.get("protocol") != PROTOCOL:
            raise InputError(
                f"{_option(self._name)}: moeprof {message.get('moeprof')} of {self.python} speaks protocol "
                f"{message.get('protocol')} of two processes, this one (moeprof {VERSION}) {PROTOCOL}; "
                "install versions of moeprof that speak the same one"
            )
        if message.get("torch") is None or message.get("transformers") is None:
            raise InputError(
                f"{_option(self._name)}: {self.python} has no torch or no transformers; there: "
                f"{self.python} -m pip install 'moeprof[run]'"
            )
        return message

    @property
    def name(self) -> str:
        """Of the lane."""
        return self._name

    def restart(self) -> None:
        """The next step is the schedule's first."""
        self.request("restart")

    def take(self, number: int) -> Turn:
        """The next steps."""
        answer = self.request("steps", number=number)
        return Turn(rows=answer["rows"], held=lambda: answer["batches"], is_last=answer["is_last"])

    def request(self, do: str, **more: Any) -> dict[str, Any]:
        """Give an order and wait until it is done.

        Raises:
            StopRequestedError: a stop was requested; a turn of steps is waited for, anything else is not.
            WorkerFailedError: it reported an error, died, fell silent, or wrote something that is no message.
        """
        self._write({"do": do, **more})
        last_s, requested_s = time.monotonic(), None
        while True:
            line = self._line()
            now = time.monotonic()
            if line == b"":
                raise self._death()
            if line is not None:
                last_s, report = now, self._report(line)
                if report.event == "done":
                    return report.data
                self._on_report(report)
            elif self._stop_requested():
                requested_s = now if requested_s is None else requested_s
                if do != "steps" or now - requested_s > STOP_GRACE_S:
                    raise StopRequestedError
            if now - last_s > SILENCE_S:
                raise WorkerFailedError(f"{self._label}: no step ended for {now - last_s:.0f} s")

    def close(self) -> None:
        """Let it end, and see to it that it does."""
        try:
            if self._process.poll() is None:
                self._write({"do": "close"})
                self._process.wait(STOP_GRACE_S)
        except (WorkerFailedError, subprocess.TimeoutExpired):
            pass  # it is killed below
        self.kill()

    def kill(self) -> None:
        """End it now."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._selector.close()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            assert pipe is not None
            pipe.close()

    # -- lines -----------------------------------------------------------------------------------------------------

    def _line(self) -> bytes | None:
        """The next line; None: nothing came for a while; empty: it is gone."""
        assert self._process.stdout is not None
        if b"\n" not in self._buffer:
            if not self._selector.select(LISTEN_S):
                return None
            more = os.read(self._process.stdout.fileno(), 1 << 20)
            if not more:
                return b""
            self._buffer += more
            if b"\n" not in more:
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line or None

    def _write(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        left = memoryview(encode(message))
        try:
            while left:
                left = left[self._process.stdin.write(left) :]
        except OSError as error:
            raise self._death() from error

    def _report(self, line: bytes) -> Report:
        try:
            message = decode(line)
        except EngineError as error:
            raise WorkerFailedError(f"{self._label}: {error}") from error
        event, data = message.get("event"), message.get("data")
        if event not in ("progress", "done", "failed") or not isinstance(data, dict):
            raise WorkerFailedError(f"{self._label}: no report but {line[:80]!r}")
        if event == "failed":
            text = f"{self._label}: {data.get('error')}"
            raise WorkerFailedError(text, int(data.get("exit_code", 1)), data.get("traceback"))
        return Report(event=event, data=data)

    # -- what went wrong -------------------------------------------------------------------------------------------

    @property
    def _label(self) -> str:
        return f"launch pair, {self._name}"

    def _death(self) -> WorkerFailedError:
        try:
            code: int | str = self._process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            code = "unknown, it closed its output"
        hint = "; the system may have killed it for memory" if code == -9 else ""
        return WorkerFailedError(f"{self._label}: its process died (exit code {code}){hint}", 1, self._errors() or None)

    def _no_greeting(self) -> InputError:
        self._process.wait()
        text = self._errors()
        last = text.splitlines()[-1] if text else "it wrote nothing"
        missing = re.search(r"No module named '?([\w.]+)", last)
        if missing is None:
            return InputError(
                f"{_option(self._name)}: {self.python} ended with code {self._process.returncode}: {last}"
            )
        name = missing[1]
        what = "no moeprof" if name == "moeprof" else f"a moeprof whose library {name} is missing"
        if name.startswith("moeprof."):
            what = "a moeprof that cannot be stepped from outside"
        return InputError(
            f"{_option(self._name)}: {self.python} has {what}; install moeprof {VERSION} or later with its "
            "libraries into that environment"
        )

    def _errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode("utf-8", errors="replace").strip()


def find_python(lane: str, python: Path) -> Path:
    """The interpreter: a file, or a name to look up as a shell does. Links stay: they tell the environment.

    Raises:
        InputError: there is none.
    """
    found = shutil.which(str(python))
    if found is None:
        inside = python / "bin" / "python"
        what = f"is a folder; give {inside}" if inside.exists() else "no such Python; give the path of an interpreter"
        raise InputError(f"{_option(lane)}: {python}: {what}")
    return Path(os.path.abspath(found))


def child_environment(ours: Mapping[str, str], python: Path, threads: int | None) -> dict[str, str]:
    """Environment variables of a child: idle threads sleep, and each Python finds its own moeprof.

    Another environment's Python must not find this moeprof on PYTHONPATH or in the current folder; this one's must.
    """
    found, own = {**ours, **IDLE, "PYTHONSAFEPATH": "1"}, Path(__file__).resolve().parents[3]
    if threads is not None:
        found |= dict.fromkeys(THREADS, str(threads))
    paths = [path for path in ours.get("PYTHONPATH", "").split(os.pathsep) if path and Path(path).resolve() != own]
    if python == Path(os.path.abspath(sys.executable)):
        paths.insert(0, str(own))
    else:
        found.pop("PYTHONHOME", None)
    return found | {"PYTHONPATH": os.pathsep.join(paths)}


def check_python(python: Path, lane: str = "base") -> dict[str, Any]:
    """Start it, read its greeting, end it: to find a mistake before anything is measured.

    Raises:
        InputError: see :meth:`RemoteLane.greet`.
    """
    started = RemoteLane(lane, python)
    try:
        return started.greet()
    finally:
        started.kill()


def _option(lane: str) -> str:
    return f"--{lane}-python"
