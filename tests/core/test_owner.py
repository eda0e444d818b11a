"""One process writes into a record, and one that finds another owner writes no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moeprof.capture.recorders.stream import TableStream
from moeprof.core.errors import InputError
from moeprof.core.record import owner
from moeprof.core.record.layout import HEARTBEAT_STALE_S, beats
from moeprof.core.record.owner import HEARTBEAT, LOCK, LostRecordError, Witness, take

RUN = """
import sys, time
from pathlib import Path
from moeprof.core.record.owner import take
take(Path(sys.argv[1])).has_begun = True
print("taken", flush=True)
time.sleep(60)
(Path(sys.argv[1]) / "written").touch()
"""


def silent(folder: Path) -> None:
    """As after ten seconds without a beat."""
    (folder / HEARTBEAT).write_text("1.0")


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that owns the record."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    yield process
    process.kill()
    process.communicate()


def test_a_record_of_a_living_process_is_not_taken(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    with pytest.raises(InputError, match="is still running"):
        take(tmp_path)


def test_a_stopped_process_that_finds_another_owner_ends_without_writing(
    tmp_path: Path, other: subprocess.Popen[str]
) -> None:
    before = Witness.of(tmp_path)
    os.kill(other.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, other.pid, os.WSTOPPED)
    silent(tmp_path)
    mine = take(tmp_path)
    token = (tmp_path / LOCK).read_text()
    os.kill(other.pid, signal.SIGCONT)
    _, said = other.communicate(timeout=60)
    assert other.returncode == 1
    assert (
        said == f"moeprof: {tmp_path}: another process has gone on with this record; nothing more was written into it\n"
    )
    assert (tmp_path / LOCK).read_text() == token
    assert not (tmp_path / "written").exists()
    mine.check()
    with pytest.raises(LostRecordError):
        before.check()
    mine.release()
    assert not (tmp_path / LOCK).exists()


def test_a_worker_does_not_flush_into_a_record_that_is_another_ones(tmp_path: Path) -> None:
    mine, folder = take(tmp_path), tmp_path / "moe" / "launch-0" / "round-0"
    folder.mkdir(parents=True)
    stream = TableStream(folder, "steps")
    stream.append({"step": 0})
    stream.flush()
    mine._done.set()  # this process must not end at its next beat
    mine._thread.join()
    (tmp_path / LOCK).write_text("another")
    stream.append({"step": 1})
    size = (folder / "steps.arrows").stat().st_size
    for write in (stream.flush, stream.close, mine.check):
        with pytest.raises(LostRecordError):
            write()
    assert (folder / "steps.arrows").stat().st_size == size
    assert not (folder / "steps.parquet").exists()
    stream._file.close()
    mine.release()
    assert (tmp_path / LOCK).read_text() == "another"


def test_of_many_that_take_a_record_at_once_one_gets_it(tmp_path: Path) -> None:
    code = RUN.replace("time.sleep(60)", "time.sleep(2)")
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=-1, stderr=-1) for _ in range(4)]
    said = [process.communicate()[0] for process in started]
    assert sorted(said) == [b"", b"", b"", b"taken\n"]


def test_a_run_that_never_began_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    silent(tmp_path)
    mine = take(tmp_path)
    assert take(tmp_path) is mine
    assert beats(tmp_path)
    mine.release()
    assert not beats(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_only_an_empty_folder_becomes_a_new_record(tmp_path: Path) -> None:
    take(tmp_path, empty=True).release()
    silent(tmp_path)
    (tmp_path / LOCK).write_text("of a process that was killed before it measured anything")
    take(tmp_path, empty=True)
    with pytest.raises(InputError, match="is still running"):
        take(tmp_path, empty=True)
    owner._HELD[tmp_path.resolve()].release()
    (tmp_path / "experiment.json").touch()
    with pytest.raises(InputError, match="is not empty"):
        take(tmp_path, empty=True)


@pytest.mark.parametrize(
    ("beat", "alive"),
    [("{now}", True), ("{past}", False), ("{ahead}", False), ("1e400", False), ("nan", False), ("x" * 100, False)],
)
def test_a_heartbeat_is_life_only_around_now(tmp_path: Path, beat: str, alive: bool) -> None:
    now, far = time.time(), HEARTBEAT_STALE_S + 50
    (tmp_path / HEARTBEAT).write_text(beat.format(now=now, past=now - far, ahead=now + far))
    assert beats(tmp_path) is alive
