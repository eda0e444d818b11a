"""Machines that refuse: no space, no writing, few descriptors, a container's limit, a reader that went away."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.soak.kills import STALE_S, nohup, signal_twice
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.readers import RECORD
from benchmarks.soak.runs import Run, command, write_workload

CGROUP = Path("/sys/fs/cgroup/memory")


def starved(until_s: float) -> Ledger:
    """All of them, as far as this user may arrange them."""
    ledger = Ledger()
    for case in (full_stdout, broken_pipe, few_descriptors, no_temporary_folder, nowhere_to_write, small_container,
                 file_limit, full_disk, signal_twice, nohup):  # fmt: skip
        if time.monotonic() > until_s:
            break
        with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as place:
            case(ledger, Path(place))
    return ledger


def _told(ledger: Ledger, promise: str, kept: bool, found: subprocess.CompletedProcess[str]) -> None:
    quiet = "Traceback" not in (found.stderr or "")
    ledger.note(promise, kept and quiet, f"exit {found.returncode}: {(found.stderr or '')[-300:]}")


def full_stdout(ledger: Ledger, place: Path) -> None:
    """``report > /dev/full``."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        found = command("report", RECORD, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    _told(ledger, "a full stdout is one line, exit 1", found.returncode == 1 and found.stderr.count("\n") == 1, found)


def broken_pipe(ledger: Ledger, place: Path) -> None:
    """``report | head -1``."""
    line = f"{sys.executable} -m moeprof report {RECORD} --format md | head -1; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    _told(ledger, "a reader that goes away is no error", found.returncode == 0 and not found.stderr, found)


def few_descriptors(ledger: Ledger, place: Path) -> None:
    """``ulimit -n``."""
    for number in (64, 16):
        found = command(
            "report", RECORD, before=lambda number=number: resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))
        )
        _told(ledger, "few descriptors: it works, or says so in one line", found.returncode in (0, 1, 2), found)


def no_temporary_folder(ledger: Ledger, place: Path) -> None:
    """TMPDIR that is not there: Python takes another one."""
    found = command("report", RECORD, env={**os.environ, "TMPDIR": str(place / "none")})
    _told(ledger, "without TMPDIR it works", found.returncode == 0, found)


def nowhere_to_write(ledger: Ledger, place: Path) -> None:
    """A file where the folder should be made; root may write everywhere else."""
    (place / "file").write_text("", encoding="utf-8")
    found = command("run", write_workload(place), "--quiet", "--output-dir", place / "file" / "run")
    _told(ledger, "a place that takes no folder is refused in one line", found.returncode == 2, found)


def small_container(ledger: Ledger, place: Path) -> None:
    """A control group of 300 MB, where this user may make one: refused before anything is loaded."""
    group = CGROUP / f"moeprof-soak-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(300 * 2**20), encoding="ascii")
    except OSError:
        return  # not this user's to arrange: tests/capture/devices/test_host_memory.py has made-up ones
    try:
        own = (CGROUP / _own_group()).resolve()

        def enter() -> None:
            (group / "tasks").write_text(str(os.getpid()), encoding="ascii")

        # What a dry run itself takes (torch, to look at the model) is more than 300 MB, so only forecasts are asked.
        code = "from moeprof.capture.devices.host_memory import host_room; print(host_room())"
        found = subprocess.run([sys.executable, "-c", code], preexec_fn=enter, capture_output=True, text=True)
        seen = "total_bytes=314572800" in found.stdout and "is_limited=True" in found.stdout
        _told(ledger, "the limit of a container is seen", seen, found)
        assert own
    finally:
        group.rmdir()


def _own_group() -> str:
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    return next((line.split(":", 2)[2].lstrip("/") for line in lines if ":memory:" in line), "")


def file_limit(ledger: Ledger, place: Path) -> None:
    """``ulimit -f``: a file may not grow any more."""
    for kib in (2, 24, 60):
        limit = kib * 1024
        run = Run.start(
            write_workload(place), place / f"run-{kib}",
            before=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )  # fmt: skip
        _full(ledger, run, f"ulimit -f {kib}")


def full_disk(ledger: Ledger, place: Path) -> None:
    """Small file systems in memory, where this user may mount one; then more room, and on."""
    for kib in (40, 100, 160):
        mounted = place / f"full-{kib}"
        mounted.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", mounted], capture_output=True
        ).returncode:
            return
        try:
            workload = write_workload(place)
            run = Run.start(workload, mounted / "run")
            # temporary files of the run are elsewhere, as on most machines
            _full(ledger, run, f"a disk of {kib} KiB")
            if run.has_begun():
                subprocess.run(["mount", "-o", "remount,size=64m", mounted], check=True)
                time.sleep(STALE_S)
                again = Run.start(workload, run.folder, resume=True)
                code, _, err = again.end()
                ledger.note(
                    "once there is room, --resume makes it whole", code == 0, f"{kib} KiB: exit {code}, {err[-200:]}"
                )
        finally:
            subprocess.run(["umount", mounted], check=False)


def _full(ledger: Ledger, run: Run, told: str) -> None:
    code, _, err = run.end()
    lines = err.strip().splitlines()
    ledger.note("no space is one line, exit 1", code == 1 and len(lines) == 1, f"{told}: exit {code}: {err[-400:]}")
    if run.has_begun():
        found = command("report", run.folder)
        read = found.returncode == 0 and "Traceback" not in found.stderr
        ledger.note(
            "what was measured until then is read", read, f"{told}: exit {found.returncode}: {found.stderr[-200:]}"
        )


Case = Callable[[Ledger, Path], None]
