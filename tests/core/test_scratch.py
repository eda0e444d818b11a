"""Temporary folders: whose they are, and what the next start removes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from moeprof.core.scratch import MARK, Scratch, sweep


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_when_it_is_closed_and_stays_while_its_owner_lives(place: Path) -> None:
    with Scratch() as scratch:
        (scratch.path / "file").write_text("x")
        sweep()
        assert (scratch.path / "file").exists()
    scratch.close()
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_swept(place: Path) -> None:
    code = (
        f"import os, tempfile; tempfile.tempdir = {str(place)!r}\n"
        "from moeprof.core.scratch import Scratch\n"
        "(Scratch().path / 'schedule.parquet').write_text('x'); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(list(place.glob("moeprof-*/schedule.parquet"))) == 1
    sweep()
    assert list(place.iterdir()) == []


def test_nothing_else_is_swept(place: Path) -> None:
    own = place / "moeprof-results"  # somebody's own folder
    own.mkdir()
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / MARK).write_text("")
    (place / "moeprof-link").symlink_to(elsewhere)
    linked = place / "moeprof-linked-mark"
    linked.mkdir()
    (linked / MARK).symlink_to(elsewhere / MARK)
    sweep()
    assert own.exists()
    assert linked.exists()
    assert (elsewhere / MARK).exists()
