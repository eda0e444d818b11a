"""Worker processes that are forks of one that has imported torch and transformers: without four seconds each.

Every run that a test makes through ``main`` in its own process starts one process to examine models, and one for each
model and launch. They stay processes of their own, with their own memory, pipes, signals and exit codes; only their
imports are done already. How workers start for a user (``spawn``) is held by tests that start ``python -m moeprof run``
(test_run_stopped.py), and by those that ask for the fixture ``spawned_workers``.

The process they are forked from imports this file, and does first what each of them would do.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext, ForkServerContext, ForkServerProcess
from typing import Any

import pytest

STARTERS = ("moeprof.capture.worker.process", "moeprof.capture.run.examine", "moeprof.capture.run.ranks")


class WarmProcess(ForkServerProcess):
    """A fork that has the environment of its starter, as a spawned process has."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        os.environ.clear()
        os.environ.update(self._environment)
        super().run()


class WarmContext(ForkServerContext):
    """Like ``spawn``'s: same arguments are pickled, same file descriptors are closed."""

    Process = WarmProcess


class WarmStart:
    """Stands in for the module ``multiprocessing`` where workers are started."""

    def get_context(self, method: str) -> BaseContext:
        """What stands in for ``spawn``."""
        assert method == "spawn"
        return WarmContext()


@contextmanager
def started_by(start: Any) -> Iterator[None]:
    """Workers start as ``start`` says: :class:`WarmStart`, or the module ``multiprocessing`` for a user's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in STARTERS:
            patch.setattr(f"{name}.multiprocessing", start)
        yield


@contextmanager
def warm_workers() -> Iterator[None]:
    """Workers are forks of a warm process, as long as this holds. It starts with the first worker."""
    multiprocessing.set_forkserver_preload(["tests.helpers.warm_imports"])
    with started_by(WarmStart()):
        yield
