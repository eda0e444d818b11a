"""What takes long to make and is only read: made by whichever test process needs it first, for all of them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.tiny_run import Ran


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Ran]) -> tuple[Path, Ran]:
    """The folder of that name, which ``make`` fills, and what it returned.

    pytest-xdist gives each of its processes a folder of its own, all of them in one.
    """
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder, said = shared / name / name, shared / f"{name}.json"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.exists():
            folder.parent.mkdir(exist_ok=True)
            said.write_text(json.dumps(asdict(make(folder))), encoding="utf-8")
    return folder, Ran(**json.loads(said.read_text(encoding="utf-8")))
