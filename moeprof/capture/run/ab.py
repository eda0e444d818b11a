"""Before against after: what ``regress --ab`` pairs, what must be equal, and what it runs. No torch.

Two workloads that differ in a checkpoint, a dtype, a kernel or a router (or one workload under two environments) are
measured twice over: each side once alone, by the ordinary run, for everything that is no time; and in launch pairs, in
which both sides are stepped in turn on one schedule, for the times, until there are enough (core/record/pairs.py). A
base side of another environment runs alone under its own Python, by the command line; the record on disk is the
contract between the two, and one of a newer format is refused when it is read.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from msgspec import structs

from moeprof.capture.devices.process import STORAGE_FULL, tied
from moeprof.capture.protocol import (
    OFFLINE,
    LanePlan,
    LockstepPart,
    OnReport,
    Slowdown,
    WorkerPlan,
)
from moeprof.capture.run.context import ProgressListener
from moeprof.capture.run.lockstep import FREE, check_sessions, in_one_process
from moeprof.capture.run.prepare import Prepared, execute
from moeprof.capture.run.remote_lane import child_environment, find_python
from moeprof.capture.run.schedules import private_schedules
from moeprof.capture.run.status import now_utc
from moeprof.capture.run.two_processes import run_process_pair
from moeprof.capture.worker.process import WorkerFailedError
from moeprof.core.errors import EngineError, InputError, StorageError, WorkloadError
from moeprof.core.record.headers import write_header
from moeprof.core.record.pairs import BASE, NEW, PairsHeader
from moeprof.core.record.whole import list_files
from moeprof.core.signals import SignalWatch
from moeprof.core.workload.engine import ours
from moeprof.core.workload.workload import Workload

MAX_SECONDS = 5.0  # of one launch pair, where the workload has no `lockstep` of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """What is set against what.

    Attributes:
        base, new: both sides, checked against this machine.
        models: name of the new side's model -> name of the base's.
        concurrency: requests in flight, or OFFLINE.
        max_seconds: bound on each launch pair.
        num_requests: the first so many requests of the schedule; None: as lock-step chooses.
        slowdown: a test hook on the new side.
    """

    base: Prepared
    new: Prepared
    models: Mapping[str, str]
    concurrency: tuple[int, ...]
    max_seconds: float
    num_requests: int | None
    slowdown: Slowdown | None = None


def pair_up(
    base: Prepared, new: Prepared, *, max_seconds: float | None = None, slowdown: Slowdown | None = None
) -> Pairing:
    """Pair the models of two workloads by name; a single model on each side needs no equal name.

    Raises:
        WorkloadError: no model in common, or traffic, batches, device or threads differ, so that step i of one side is
            not step i of the other; one line that names each difference.
    """
    names = {side: [spec.name for spec in side_of.workload.models] for side, side_of in ((BASE, base), (NEW, new))}
    single = len(names[BASE]) == len(names[NEW]) == 1
    models = {names[NEW][0]: names[BASE][0]} if single else {n: n for n in names[NEW] if n in names[BASE]}
    if not models:
        raise WorkloadError(
            f"--ab: the workloads have no model in common (base: {', '.join(names[BASE])}; new: "
            f"{', '.join(names[NEW])}); give what is the same model before and after the same name"
        )
    found = _differences(base, new, models)
    if found:
        raise WorkloadError(f"--ab: both sides must do the same steps, but {'; '.join(found)}")
    if new.workload.outputs == "free":
        raise WorkloadError(f"--ab: {FREE}")
    elsewhere = [side.workload.engine.kind for side in (base, new) if not side.workload.engine.in_worker]
    if elsewhere:
        raise WorkloadError(f"--ab: two models step in turn in one process, engine.kind {elsewhere[0]} runs elsewhere")
    if any(side.workload.engine.parallel is not None for side in (base, new)):
        raise WorkloadError(
            "--ab: two models step in turn in one process, ranks hold one each; leave engine.parallel out"
        )
    settings, measured = new.workload.lockstep, new.schedules[next(iter(models))].measured
    check_sessions("--ab", measured)
    own = measured.concurrency if measured.pattern == "closed" and measured.concurrency else OFFLINE
    seconds = max_seconds or (settings.max_seconds if settings is not None else MAX_SECONDS)
    return Pairing(
        base=base,
        new=new,
        models=models,
        concurrency=tuple(dict.fromkeys((settings.concurrency if settings is not None else ()) or (own,))),
        max_seconds=seconds,
        num_requests=None if settings is None else settings.num_requests,
        slowdown=slowdown,
    )


def _differences(base: Prepared, new: Prepared, models: Mapping[str, str]) -> list[str]:
    """What keeps step i of one side from being step i of the other."""
    engines = base.workload.engine, new.workload.engine
    pairs = {
        "device": (base.device, new.device),
        "threads": (base.workload.threads, new.workload.threads),
        "outputs": (base.workload.outputs, new.workload.outputs),
        "engine.max_batch_tokens": tuple(getattr(engine, "max_batch_tokens", None) for engine in engines),
    }
    found = [f"{key} is {old} in base and {now} in new" for key, (old, now) in pairs.items() if old != now]
    for name, old_name in models.items():
        old, now = base.schedules[old_name], new.schedules[name]
        if old.measured.sha256() != now.measured.sha256():
            why = "tokenizers differ" if old.tokenizer_hash != now.tokenizer_hash else "traffic or seed differ"
            found.append(f"the schedules of {name} differ ({why})")
    return found


def solo_workload(workload: Workload) -> Workload:
    """One launch, one round, nothing that only times: what is needed beside the launch pairs."""
    instruments = replace(workload.instruments, peaks=False, overhead=False, capacity=False)
    return replace(
        workload, launches=1, rounds=1, instruments=instruments, lockstep=None, ladder=None, sweep=None, claim=None
    )


def pair_plan(pairing: Pairing, model: str, launch: int, folder: Path, private: Path) -> WorkerPlan:
    """One launch pair of one model. Which side is loaded first alternates, as memory favours one of them.

    Args:
        pairing: both sides.
        model: its name in the new workload.
        launch: number of the pair.
        folder: ``<folder>/pairs/<model>/launch-<l>``.
        private: where the schedules with content are.
    """
    sides = [
        _lane(BASE, pairing.base.workload, pairing.models[model], None),
        _lane(NEW, pairing.new.workload, model, pairing.slowdown),
    ]
    scheduled = pairing.new.schedules[model]
    return WorkerPlan(
        kind="pairs",
        lanes=tuple(sides if launch % 2 == 0 else reversed(sides)),
        engine=ours(pairing.new.workload.engine),
        device=pairing.new.device,
        threads=pairing.new.workload.threads,
        folder=folder,
        schedule_file=private / scheduled.file_name,
        warmup_file=private / f"warmup-{scheduled.file_name}",
        tokenizer_hash=scheduled.tokenizer_hash,
        lockstep=LockstepPart(
            concurrency=pairing.concurrency, num_requests=pairing.num_requests, max_seconds=pairing.max_seconds
        ),
    )


def _lane(side: str, workload: Workload, model: str, slowdown: Slowdown | None) -> LanePlan:
    spec = next(spec for spec in workload.models if spec.name == model)
    base = next((other for other in workload.models if other.name == spec.twin_of), None)
    named = replace(spec, name=side)  # both sides' models may have one name
    return LanePlan(name=side, model=named, base=base, engine=ours(workload.engine), slowdown=slowdown)


Measure = Callable[[WorkerPlan, OnReport, Callable[[], bool]], Mapping[str, str]]


def in_two_processes(base_python: Path) -> Measure:
    """One launch pair, the base side under its own interpreter."""
    pythons = {BASE: base_python, NEW: Path(sys.executable)}

    def measure(plan: WorkerPlan, on_report: OnReport, should_stop: Callable[[], bool]) -> Mapping[str, str]:
        return dict(run_process_pair(plan, pythons, on_report, should_stop, None).get("measured", {}))

    return measure


class AbRun:
    """A folder of ``regress --ab`` while it is being made."""

    def __init__(
        self,
        pairing: Pairing,
        folder: Path,
        listener: ProgressListener,
        signals: SignalWatch,
        *,
        mode: Literal["pairs", "processes"] = "pairs",
        measure: Measure = in_one_process,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Write ab.json.

        Args:
            pairing: both sides.
            folder: new.
            listener: of progress.
            signals: Ctrl-C ends the current measurement after its step.
            mode: how many processes a launch pair has.
            measure: measures one launch pair.
            settings: what the user requested, for the record.
        """
        self._pairing, self._folder, self._listener, self._signals = pairing, folder, listener, signals
        self._measure = measure
        self._info = PairsHeader(
            mode=mode,
            models=tuple(pairing.models),
            base_models=dict(pairing.models),
            base={"workload": pairing.base.workload.name},
            new={"workload": pairing.new.workload.name},
            settings={"max_seconds": pairing.max_seconds, **(settings or {})},
            started_at=now_utc(),
            status="started",
        )
        self._put()

    @property
    def stopped(self) -> bool:
        """Someone requested a stop."""
        return bool(self._signals.number)

    def whole(self, alone: Sequence[Callable[[], None]], more: Callable[[int], bool]) -> None:
        """Each side alone, then launch pairs until ``more(pairs so far)`` is False.

        Raises:
            EngineError: a model failed.
        """
        status = "failed"
        try:
            for measure in alone:
                if not self.stopped:
                    measure()
            self.pairs(more)
            status = "interrupted" if self.stopped else "done"
        finally:
            self.finish(status)

    def solo(self, side: str, *, workload_text: str) -> None:
        """One side alone, by the ordinary run.

        Raises:
            EngineError: a model failed; nothing can be compared then.
        """
        prepared: Prepared = self._pairing.base if side == BASE else self._pairing.new
        alone = replace(prepared, workload=solo_workload(prepared.workload))
        folder = self._folder / side
        folder.mkdir()
        status = execute(
            alone, folder, self._listener, self._signals, workload_text=workload_text, keep_content=False,
        )  # fmt: skip
        if status == "failed":
            raise EngineError(f"--ab: the single run of {side} failed; what it left is in {folder}")

    def pairs(self, more: Callable[[int], bool]) -> int:
        """Launch pairs of every model, until ``more(pairs so far)`` is False; returns how many there are.

        Raises:
            WorkerFailedError: a model failed.
        """
        with private_schedules(self._pairing.new.schedules, content_kept=False) as private:
            launch = 0
            while not self.stopped and more(launch):
                for model in self._pairing.models:
                    if not self.stopped:
                        self._pair(model, launch, private)
                launch += 0 if self.stopped else 1
                self._put(launches=launch)
        return launch

    def finish(self, status: str) -> None:
        """``done``, ``failed`` or ``interrupted``."""
        files = list_files(self._folder, ["pairs/**/*"]) if status == "done" else None
        self._put(status=status, finished_at=now_utc(), files=files)

    def _pair(self, model: str, launch: int, private: Path) -> None:
        folder = self._folder / "pairs" / model / f"launch-{launch}"
        folder.mkdir(parents=True)
        plan, label = pair_plan(self._pairing, model, launch, folder, private), f"{model}, launch pair {launch + 1}"
        self._listener.on_event(label, "launch", {"launch": launch})
        try:
            self._measure(
                plan, lambda report: self._listener.on_event(label, report.event, report.data), lambda: self.stopped
            )
        except WorkerFailedError as error:
            if error.reason == STORAGE_FULL:
                raise StorageError(str(error)) from error
            if not self.stopped:  # a process that was ended while it loaded failed at nothing
                raise

    def _put(self, **known: Any) -> None:
        self._info = structs.replace(self._info, **known)
        write_header(self._folder / "ab.json", self._info)


LOOK_EVERY_S = 0.2
STOP_GRACE_S = 30.0


def run_solo(python: Path, workload: Path, folder: Path, signals: SignalWatch, options: Sequence[str] = ()) -> None:
    """``moeprof run`` in the other environment: one launch, one round.

    Args:
        python: interpreter of the base side.
        workload: its file.
        folder: where the record goes.
        signals: Ctrl-C ends it after its step.
        options: more options of ``moeprof run``, such as the device that both sides use.

    Raises:
        EngineError: it failed; the message is the last line of its stderr.
        InputError: it found the workload bad.
    """
    python = find_python("base", python)
    command = [str(python), "-m", "moeprof", "run", str(workload), "--output-dir", str(folder)]
    command += ["--rounds", "1", "--launches", "1", "--no-content", "--quiet", "--write", "json"]
    command += options
    process = subprocess.Popen(
        tied(command, signal.SIGTERM),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=child_environment(os.environ, python, None),
    )
    text, terminated = "", False
    try:
        while True:
            try:
                text += process.communicate(timeout=LOOK_EVERY_S)[1] or ""
                break
            except subprocess.TimeoutExpired:
                if signals.number and not terminated:
                    terminated = True
                    process.terminate()  # it keeps what it measured and ends after its step
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_GRACE_S)
    if process.returncode and not signals.number:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1].removeprefix("moeprof: ")
        kind = InputError if process.returncode == InputError.exit_code else EngineError
        raise kind(f"--base-python {python}: the single run of base failed: {last}")
