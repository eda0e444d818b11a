"""Run what ``regress --ab`` needs: two lone runs, then launch pairs until there are enough (core/record_pairs.py)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from moeprof.capture.ab import Pairing, lone_workload, pair_plan
from moeprof.capture.experiment import Audience
from moeprof.capture.lockstep_plan import LockstepPlan
from moeprof.capture.plan import Order, Report
from moeprof.capture.run import Prepared, execute
from moeprof.capture.signals import SignalWatch
from moeprof.capture.workers import LockstepWorker
from moeprof.core.errors import EngineError
from moeprof.core.jsonfile import write_json
from moeprof.core.record_pairs import BASE, FORMAT_VERSION, NEW

Hear = Callable[[Report], None]
Measure = Callable[[LockstepPlan, Hear, Callable[[], bool]], Mapping[str, str]]


def in_one_process(plan: LockstepPlan, hear: Hear, should_stop: Callable[[], bool]) -> Mapping[str, str]:
    """One launch pair, both sides in one fresh process; returns the status of each load.

    Raises:
        WorkerFailedError: a model failed, or the process died.
    """
    worker, measured = LockstepWorker(plan), dict[str, str]()
    try:
        for order in (Order(command="prepare"), Order(command="measure")):
            if not should_stop():
                measured = worker.do(order, hear, should_stop).get("measured", {})
        worker.close(hear)
    finally:
        worker.kill()
    return measured


class AbRun:
    """A folder of ``regress --ab`` while it is being made."""

    def __init__(
        self,
        pairing: Pairing,
        folder: Path,
        audience: Audience,
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
            audience: told what happens.
            signals: Ctrl-C ends the current measurement after its step.
            mode: how many processes a launch pair has.
            measure: measures one launch pair.
            settings: what the user asked for, for the record.
        """
        self._pairing, self._folder, self._audience, self._signals = pairing, folder, audience, signals
        self._measure = measure
        self._info: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "mode": mode,
            "models": list(pairing.models),
            "base_models": dict(pairing.models),
            BASE: {"workload": pairing.base.workload.name},
            NEW: {"workload": pairing.new.workload.name},
            "settings": {"max_seconds": pairing.max_seconds, **(settings or {})},
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "launches": 0,
            "status": "started",
        }
        self._write()

    @property
    def stopped(self) -> bool:
        """Someone asked to stop."""
        return bool(self._signals.number)

    def lone(self, side: str, *, workload_text: str, pricing: dict[str, Any]) -> None:
        """One side alone, by the ordinary run.

        Raises:
            EngineError: a model failed; nothing can be compared then.
        """
        prepared: Prepared = self._pairing.base if side == BASE else self._pairing.new
        alone = replace(prepared, workload=lone_workload(prepared.workload))
        folder = self._folder / side
        folder.mkdir()
        status = execute(
            alone, folder, self._audience, self._signals, workload_text=workload_text, pricing=pricing,
            keep_content=False,
        )  # fmt: skip
        if status == "failed":
            raise EngineError(f"--ab: the lone run of {side} failed; what it left is in {folder}")

    def pairs(self, more: Callable[[int], bool]) -> int:
        """Launch pairs of every model, until ``more(pairs so far)`` is False; returns how many there are.

        Raises:
            WorkerFailedError: a model failed.
        """
        with self._private() as private:
            launch = 0
            while not self.stopped and more(launch):
                for model in self._pairing.models:
                    if not self.stopped:
                        self._pair(model, launch, private)
                launch += 0 if self.stopped else 1
                self._info["launches"] = launch
                self._write()
        return launch

    def finish(self, status: str) -> None:
        """``done``, ``failed`` or ``interrupted``."""
        self._info |= {"status": status, "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
        self._write()

    def _pair(self, model: str, launch: int, private: Path) -> None:
        folder = self._folder / "pairs" / model / f"launch-{launch}"
        folder.mkdir(parents=True)
        plan, label = pair_plan(self._pairing, model, launch, folder, private), f"{model}, launch pair {launch + 1}"
        self._audience.hear(label, "launch", {"launch": launch})
        self._measure(plan, lambda report: self._audience.hear(label, report.event, report.data), lambda: self.stopped)

    @contextmanager
    def _private(self) -> Iterator[Path]:
        """Schedules with content for the workers, outside of the folder; gone afterwards."""
        private = Path(tempfile.mkdtemp(prefix="moeprof-"))
        try:
            for scheduled in {s.tokenizer_hash: s for s in self._pairing.new.schedules.values()}.values():
                scheduled.measured.save(private / scheduled.file_name)
                scheduled.warmup.save(private / f"warmup-{scheduled.file_name}")
            yield private
        finally:
            shutil.rmtree(private, ignore_errors=True)

    def _write(self) -> None:
        write_json(self._folder / "ab.json", self._info)
