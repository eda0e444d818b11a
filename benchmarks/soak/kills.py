"""Runs ended at random moments by every signal: what is left is read, nothing goes on, nothing stays behind."""

from __future__ import annotations

import random
import signal
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.soak.ledger import Ledger
from benchmarks.soak.runs import Run, command, write_workload

WHILE_LOADING_S, IN_A_PASS_S, ORPHANS_S, LOST_S = 5.0, 30.0, 10.0, 3.0
STALE_S = 11.0  # then a heartbeat counts as silence
PHASES = ("start", "begun", "loads", "measures", "measures", "late")
# Signal -> exit codes that are right; KILL leaves none to choose.
SIGNALS = {"KILL": -9, "TERM": 143, "INT": 130, "HUP": 129}
RESUMED_EVERY = 6


def kills(number: int, seed: int, until_s: float) -> Ledger:
    """``number`` runs, each ended in some phase by some signal; some are stopped and go on, some are resumed."""
    ledger, rng = Ledger(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        for index in range(number):
            if time.monotonic() > until_s:
                break
            place = Path(scratch) / str(index)
            place.mkdir()
            if index % 15 == 14:
                _stop_and_go(ledger, place)
                continue
            name = list(SIGNALS)[index % len(SIGNALS)]
            phase = PHASES[index // len(SIGNALS) % len(PHASES)]
            _one(ledger, place, name, phase, rng, resume=index % RESUMED_EVERY == RESUMED_EVERY - 1)
    return ledger


def _one(ledger: Ledger, place: Path, name: str, phase: str, rng: random.Random, *, resume: bool) -> None:
    content = rng.random() < 0.5
    workload = write_workload(place)
    run = Run.start(workload, place / "run", *([] if content else ["--no-content"]))
    told = f"{name} in {phase}"
    try:
        if not _wait_for(run, phase, rng):
            ledger.note("runs get to where they are ended", False, f"{told}: {run.end()[2][-200:]}")
            return
        run.look()
        loading, streams = run.loads() or not run.has_begun(), _last_written(run)
        at = time.monotonic()
        run.send(getattr(signal, f"SIG{name}"), group=rng.random() < 0.5 and name != "KILL")
        code, _, err = run.end()
        took = time.monotonic() - at
        _judge_end(ledger, run, name, told, code, err)
        if name != "KILL":
            promise = f"ends within {WHILE_LOADING_S:g} s before anything is measured" if loading else "ends in a pass"
            bound = WHILE_LOADING_S if loading else IN_A_PASS_S
            ledger.note(promise, took <= bound, f"{told}: {took:.1f} s", figure=took)
        elif streams is not None:
            ledger.note(f"KILL in a pass loses at most {LOST_S:g} s of steps", streams <= LOST_S,
                        f"{told}: {streams:.1f} s", figure=streams)  # fmt: skip
        left, seconds = run.orphans_after(ORPHANS_S)
        ledger.note(f"no process is left after {ORPHANS_S:g} s", not left, f"{told}: {left}", figure=seconds)
        _judge_record(ledger, run, told)
        _judge_temporary(ledger, run, told, content=content, killed=name == "KILL")
        if resume and run.has_begun():
            _judge_resume(ledger, run, workload, told)
    finally:
        run.kill()


def _wait_for(run: Run, phase: str, rng: random.Random) -> bool:
    if phase == "start":
        time.sleep(0.3 + 3 * rng.random())  # before 0.3 s it is Python that starts
        return run.process.poll() is None
    reached = {"begun": run.has_begun, "loads": run.loads}.get(phase, run.measures)
    found = run.until(reached)
    time.sleep(rng.random() * (4 if phase == "late" else 0.5))
    return found


def _last_written(run: Run) -> float | None:
    """Seconds since steps went to disk, in a pass."""
    file = run.folder / "moe" / "launch-0" / "round-0" / "steps.arrows"
    try:
        return max(0.0, time.time() - file.stat().st_mtime)
    except FileNotFoundError:
        return None


def _judge_end(ledger: Ledger, run: Run, name: str, told: str, code: int | None, err: str) -> None:
    ledger.note("no traceback on stderr", "Traceback" not in err, f"{told}: {err.strip()[-300:]}")
    ended_first = code == 0 and "late" in told
    ledger.note(
        f"{name}: exit {SIGNALS[name]}", code == SIGNALS[name] or ended_first, f"{told}: exit {code}, {err[-200:]}"
    )
    if name != "KILL" and run.has_begun() and not ended_first:
        status = run.header()["status"]
        ledger.note("the record says that it was interrupted", status in ("interrupted", "done"), f"{told}: {status}")


def _judge_record(ledger: Ledger, run: Run, told: str) -> None:
    found = command("report", run.folder, "--format", "json")
    right = 0 if run.has_begun() else 2
    ledger.note("what was begun is read", found.returncode == right and "Traceback" not in found.stderr,
                f"{told}: exit {found.returncode}, {found.stderr[-200:]}")  # fmt: skip


def _judge_temporary(ledger: Ledger, run: Run, told: str, *, content: bool, killed: bool) -> None:
    left = run.left_in_temporary()
    if not killed:
        ledger.note("TERM, INT and HUP leave no temporary folder", not left, f"{told}: {left}")
        return
    if not content:
        held = [path for folder in left for path in folder.rglob("*.parquet") if path.is_file()]
        ledger.note("no content stays on disk under --no-content", not held, f"{told}: {held}")
    from moeprof.core import scratch

    before, scratch.tempfile.tempdir = scratch.tempfile.tempdir, str(run.temporary)
    try:
        scratch.sweep()
    finally:
        scratch.tempfile.tempdir = before
    left = run.left_in_temporary()
    ledger.note("the next start sweeps what a killed run left", not left, f"{told}: {left}")


def _judge_resume(ledger: Ledger, run: Run, workload: Path, told: str) -> None:
    time.sleep(STALE_S)
    again = Run.start(workload, run.folder, resume=True)
    code, _, err = again.end()
    table = run.folder / "moe" / "launch-0" / "round-0" / "requests.parquet"
    whole = code == 0 and table.exists()
    if whole:
        rows = pq.read_table(table, columns=["request", "status"]).to_pydict()
        whole = sorted(rows["request"]) == list(range(len(rows["request"]))) and set(rows["status"]) == {"done"}
    ledger.note("--resume makes it whole: each request once", whole and run.header()["status"] == "done",
                f"{told}: exit {code}, {err[-200:]}")  # fmt: skip
    again.kill()


def _stop_and_go(ledger: Ledger, place: Path) -> None:
    """Ctrl-Z for some seconds in a pass, then on: it ends well."""
    run = Run.start(write_workload(place), place / "run")
    try:
        if run.until(run.measures):
            run.send(signal.SIGSTOP, group=True)
            time.sleep(3)
            run.send(signal.SIGCONT, group=True)
        code, _, err = run.end()
        ledger.note("STOP and CONT: it goes on to its end", code == 0, f"exit {code}, {err[-200:]}")
    finally:
        run.kill()


def signal_twice(ledger: Ledger, place: Path) -> None:
    """A second signal ends a pass at once."""
    run = Run.start(write_workload(place, 20_000), place / "run")
    try:
        run.until(run.measures)
        run.send(signal.SIGINT, group=False)
        time.sleep(0.2)
        at = time.monotonic()
        run.send(signal.SIGINT, group=False)
        code, _, _ = run.end()
        took = time.monotonic() - at
        kept, told = took <= WHILE_LOADING_S and code == 130, f"exit {code}, {took:.1f} s"
        ledger.note("a second signal ends it at once", kept, told, figure=took)
    finally:
        run.kill()


def nohup(ledger: Ledger, place: Path) -> None:
    """HUP is no end where it was ignored at the start."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    run = Run.start(write_workload(place, 50), place / "run", before=ignore)
    try:
        run.until(run.loads)
        run.send(signal.SIGHUP, group=True)
        code, _, err = run.end()
        ledger.note("under nohup HUP ends nothing", code == 0, f"exit {code}, {err[-200:]}")
    finally:
        run.kill()
