"""A worker under another interpreter: the same process and the same messages, other libraries.

An engine that pins its own torch lives in an environment of its own. The worker there runs *this* moeprof: a folder
with nothing but a link to the package is put on its path, because the folder that the package lies in may hold this
environment's torch as well. Beside the link stands what tells vLLM of our plugin, which has to be in every process of
its own too. The pipe is inherited, the plan goes over it as the first message.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from moeprof.capture.protocol import WorkerPlan
from moeprof.capture.worker.main import worker_main
from moeprof.core import VERSION

MODULE = "moeprof.capture.worker.elsewhere"
PLUGINS = "[vllm.general_plugins]\nmoeprof = moeprof.capture.engines.vllm.plugin:register\n"


class OtherProcess:
    """A process under another interpreter, with what ``multiprocessing.Process`` says of one."""

    def __init__(self, python: Path, plan: WorkerPlan, stacks: Path, scratch: Path) -> None:
        self._errors = scratch / "errors.txt"
        self.connection, theirs = Pipe()
        command = [str(python), "-m", MODULE, str(theirs.fileno()), str(stacks)]
        with self._errors.open("wb") as errors:  # its libraries talk there; results are ours alone to print
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, pass_fds=(theirs.fileno(),),
                env=environment_of(os.environ, path_with(scratch / "path")),
            )  # fmt: skip
        theirs.close()
        with contextlib.suppress(OSError):  # it died at once: the first order finds that out
            self.connection.send(plan)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        """None while it runs; the negative number of the signal that ended it."""
        return self._process.poll()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def last_words(self) -> str | None:
        """The last line that it or its libraries wrote."""
        try:
            lines = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return None
        return lines[-1].strip() if lines else None


def path_with(folder: Path) -> Path:
    """A folder for ``PYTHONPATH``: this package and the entry point of its plugin, nothing else."""
    folder.mkdir()
    (folder / "moeprof").symlink_to(Path(__file__).resolve().parents[2], target_is_directory=True)
    told = folder / f"moeprof_plugin-{VERSION}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: moeprof-plugin\nVersion: {VERSION}\n", encoding="utf-8"
    )
    (told / "entry_points.txt").write_text(PLUGINS, encoding="utf-8")
    return folder


def environment_of(ours: Mapping[str, str], path: Path) -> dict[str, str]:
    """Environment variables of the process: what steers this Python is left out."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    found = {key: value for key, value in ours.items() if key not in left_out}
    return found | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}


def main() -> None:
    """Entry point of the process: the number of the pipe, and the file for stacks."""
    connection = Connection(int(sys.argv[1]))
    plan: WorkerPlan = connection.recv()
    worker_main(plan, connection, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
