"""A launch pair in two processes, for sides that no single environment serves: another torch, transformers, moeprof.

Each process holds one lane and steps on order (worker/server.py). They take turns of TURN_STEPS steps, strictly one
after the other, so that each finds its caches equally cold. Why a turn has four steps, and what that leaves of the
noise, is measured in docs/regress.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from moeprof.capture.lockstep.loop import (
    Limits,
    LockstepResult,
    Status,
    check_alike,
    measure_turns,
    warm_up_turns,
)
from moeprof.capture.lockstep.protocol import plan_to_json
from moeprof.capture.protocol import OnReport, Report, WorkerPlan
from moeprof.capture.run.remote_lane import RemoteLane, StopRequestedError
from moeprof.core.record.headers import header_of, write_header
from moeprof.core.record.lanes import LanePassHeader, LanesHeader

TURN_STEPS = 4
WARM_UP_SHARE = 0.25  # of the measurement's seconds, at most
BEAT_EVERY_S = 10.0
ALIKE = ("pattern", "num_requests", "outputs", "schedule_sha256", "kv_tokens", "max_batch_tokens", "batching")


def run_process_pair(
    plan: WorkerPlan,
    pythons: Mapping[str, Path],
    on_report: OnReport,
    should_stop: Callable[[], bool],
    deadline_s: float | None,
    *,
    turn_steps: int = TURN_STEPS,
) -> dict[str, Any]:
    """One launch pair, each lane in a process of its own; writes launch.json and the measurements of ``plan.folder``.

    Args:
        plan: two lanes. Which is loaded first alternates with the launch that ``plan.folder`` names.
        pythons: lane -> interpreter of its environment; lanes that are not named have this one.
        on_report: gets every report.
        should_stop: called between turns.
        deadline_s: ``perf_counter`` time after which to cut, or None.
        turn_steps: steps of one side before the other's turn.

    Returns:
        ``{"measured": {"c4": "done"}}``: status by load.

    Raises:
        InputError: a Python is missing, or its moeprof is missing or speaks another protocol.
        WorkerFailedError: a model failed, or a process died.
        EngineError: the two sides' engines or steps differ.
    """
    assert len(plan.lanes) == 2, plan.lanes
    assert turn_steps >= 1, turn_steps
    plan.folder.mkdir(parents=True, exist_ok=True)
    with started(plan, pythons, on_report, should_stop) as lanes:
        pair, measured = ProcessPair(plan, lanes, on_report, should_stop, turn_steps), dict[str, str]()
        try:
            pair.load()
            for concurrency in plan.in_turn.concurrency:
                if should_stop() or (deadline_s is not None and time.perf_counter() >= deadline_s):
                    break
                measured[f"c{concurrency}"] = pair.measure(concurrency, deadline_s)
            for lane in lanes:
                lane.close()
        except StopRequestedError:
            pass  # before a measurement, so nothing is half written; the processes end below
        finally:
            pair.write_launch()
    return {"measured": measured}


@contextmanager
def started(
    plan: WorkerPlan, pythons: Mapping[str, Path], on_report: OnReport, should_stop: Callable[[], bool]
) -> Iterator[list[RemoteLane]]:
    """Both processes, in the order of the plan's lanes; none is left behind."""
    lanes = list[RemoteLane]()
    try:
        for name in (lane.name for lane in plan.lanes):
            python = pythons.get(name)
            lanes.append(RemoteLane(name, python, plan.threads, on_report=on_report, stop_requested=should_stop))
        yield lanes
    finally:
        for lane in lanes:
            lane.kill()


class ProcessPair:
    """Two processes, and what is known of their launch.

    Args:
        plan, on_report, should_stop, turn_steps: see :func:`run_process_pair`.
        lanes: in the order of the plan.
    """

    def __init__(
        self, plan: WorkerPlan, lanes: list[RemoteLane], on_report: OnReport, should_stop: Callable[[], bool],
        turn_steps: int = TURN_STEPS,
    ) -> None:  # fmt: skip
        self.plan, self.lanes, self.turn_steps = plan, lanes, turn_steps
        self._on_report, self._should_stop = on_report, should_stop
        self._launch: dict[str, Any] = {
            "kind": plan.kind, "lanes": {}, "models": {}, "notes": [], "environments": {}
        }  # fmt: skip
        self._together: dict[str, Any] = {}  # what holds for both sides because one of them needs it
        self._next_beat_s = 0.0

    def load(self) -> None:
        """Greet both, then load one after the other."""
        launch = self._launch
        for lane in self.lanes:
            launch["environments"][lane.name] = lane.greet()
        loaded = []
        for i in self._by_name(odd=self._launch_number % 2 == 1):
            plan = replace(self.plan, lanes=(self.plan.lanes[i],))
            loaded.append(found := self.lanes[i].request("prepare", plan=plan_to_json(plan)))
            launch["models"] |= found["launch"]["models"]
            launch["notes"] += found["launch"]["notes"]
            launch["threads"] = found["launch"]["threads"]
        positions = [found["positions"] for found in loaded if found["positions"] is not None]
        static = any(found["static"] for found in loaded)
        self._together = {"static": static, "positions": min(positions, default=None)}
        self.write_launch()

    def measure(self, concurrency: int, deadline_s: float | None) -> Status:
        """One load: engines, warm-up, measurement."""
        result: LockstepResult | None = None
        folder, seconds = self.plan.folder / f"c{concurrency}", self.plan.in_turn.max_seconds
        folder.mkdir(exist_ok=True)
        begun = {lane.name: lane.request("begin", concurrency=concurrency, **self._together) for lane in self.lanes}
        infos = {name: found["info"] for name, found in begun.items()}
        check_alike(infos, ALIKE)
        self._launch["lanes"] = {name: found["facts"] for name, found in begun.items()}
        info = infos[self.lanes[0].name] | {
            "lanes": [lane for each in infos.values() for lane in each["lanes"]],
            "turn_steps": self.turn_steps,
            "notes": self._launch["notes"] + [note for found in begun.values() for note in found["notes"]],
        }
        file = folder / "pass.json"
        write_header(file, header_of(LanePassHeader, info, file))  # a side may be of another version
        name = f"{concurrency} in flight" if concurrency else "offline"
        try:
            limits = self._limits(WARM_UP_SHARE * seconds, deadline_s, f"{name}: warming up")
            warm_up_turns(self.lanes, limits, self._order, self.turn_steps)
            before = self._reference()
            limits = self._limits(seconds, deadline_s, f"{name}: measuring 2 lanes")
            result = measure_turns(self.lanes, folder, limits, self._order, self.turn_steps)
            after = self._reference()
            info["reference_kernel_s"] = {lane: [before[lane], after[lane]] for lane in before}
            for lane in self.lanes:
                lane.request("end")
        except StopRequestedError:
            if result is None:
                result = LockstepResult(status="stopped", cycles=0, steps=0, duration_s=0.0)
        write_header(file, header_of(LanePassHeader, info | asdict(result), file))
        return result.status

    def write_launch(self) -> None:
        """Write launch.json as far as it is known."""
        file = self.plan.folder / "launch.json"
        write_header(file, header_of(LanesHeader, self._launch, file))

    def _reference(self) -> dict[str, float]:
        return {lane.name: lane.request("reference")["seconds"] for lane in self.lanes}

    @property
    def _launch_number(self) -> int:
        number = self.plan.folder.name.rpartition("-")[2]
        return int(number) if number.isdecimal() else 0

    def _by_name(self, *, odd: bool) -> list[int]:
        """The plan's own order changes with the launch too, and both changes together would be none: so by name."""
        return sorted(range(len(self.lanes)), key=lambda i: self.lanes[i].name, reverse=odd)

    def _order(self, cycle: int, turn: int) -> list[int]:
        """Strictly in turn, so that each side finds its caches equally cold; who begins changes with the cycle."""
        return self._by_name(odd=(cycle + self._launch_number) % 2 == 1)

    def _limits(self, max_seconds: float, deadline_s: float | None, doing: str) -> Limits:
        def beat(cycle: int, step: int) -> None:
            now = time.monotonic()
            if now >= self._next_beat_s:
                self._next_beat_s = now + BEAT_EVERY_S
                report = Report(event="progress", data={"doing": f"{doing}, cycle {cycle}, step {step}"})
                self._on_report(report)

        return Limits(max_seconds=max_seconds, deadline_s=deadline_s, should_stop=self._should_stop, beat=beat)
