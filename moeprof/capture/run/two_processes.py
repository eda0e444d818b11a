"""A launch pair in two processes, for sides that no single environment serves: another torch, transformers, moeprof.

Each process holds one lane and steps when told to (server.py). Both replay one schedule with forced lengths, so
step i has the same batch on both sides, and this is checked. They take turns of TURN_STEPS steps. What is written is
what one process writes (core/record/lanes.py), with ``turn_steps`` and ``reference_kernel_s`` beside it in pass.json.
The order within a turn is always that of the cycle, so ``place`` says which side began.

Each side wakes cold after the other's turn; they follow each other strictly, so that both are equally cold. Why a turn
has four steps, and what that leaves of the noise, is measured in docs/regress.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from moeprof.capture.lockstep.loop import Limits, LockstepResult, Status
from moeprof.capture.lockstep.protocol import plan_to_json
from moeprof.capture.protocol import LockstepPlan, Report
from moeprof.capture.recorders.stream import TableStream
from moeprof.capture.run.step_child import StepChild, StopAskedError
from moeprof.capture.worker.process import WorkerFailedError
from moeprof.core.record.headers import header_of, write_header
from moeprof.core.record.lanes import LanePassHeader, LanesHeader

TURN_STEPS = 4
WARM_UP_SHARE = 0.25  # of the measurement's seconds, at most
BEAT_EVERY_S = 10.0
ALIKE = ("pattern", "num_requests", "outputs", "schedule_sha256", "kv_tokens", "max_batch_tokens", "batching")

Hear = Callable[[Report], None]


def run_process_pair(
    plan: LockstepPlan,
    pythons: Mapping[str, Path],
    hear: Hear,
    should_stop: Callable[[], bool],
    deadline_s: float | None,
    *,
    turn_steps: int = TURN_STEPS,
) -> dict[str, Any]:
    """One launch pair, each lane in a process of its own; writes launch.json and the measurements of ``plan.folder``.

    Args:
        plan: two lanes. Which is loaded first alternates with the launch that ``plan.folder`` names.
        pythons: lane -> interpreter of its environment; lanes that are not named have this one.
        hear: told what happens.
        should_stop: asked between turns.
        deadline_s: ``perf_counter`` time after which to cut, or None.
        turn_steps: steps of one side before the other's turn.

    Returns:
        ``{"measured": {"c4": "done"}}``: status by load.

    Raises:
        InputError: a Python is missing, or its moeprof is missing or speaks another protocol.
        WorkerFailedError: a model failed, a process died, or the two sides' steps differ.
    """
    assert len(plan.lanes) == 2, plan.lanes
    assert turn_steps >= 1, turn_steps
    plan.folder.mkdir(parents=True, exist_ok=True)
    with started(plan, pythons) as children:
        pair = ProcessPair(plan=plan, children=children, hear=hear, should_stop=should_stop, turn_steps=turn_steps)
        measured = dict[str, str]()
        try:
            pair.load()
            for concurrency in plan.concurrency:
                if should_stop() or (deadline_s is not None and time.perf_counter() >= deadline_s):
                    break
                measured[f"c{concurrency}"] = pair.measure(concurrency, deadline_s)
            for child in children:
                child.close()
        except StopAskedError:
            pass  # before a measurement, so nothing is half written; the processes end below
        finally:
            pair.write_launch()
    return {"measured": measured}


@contextmanager
def started(plan: LockstepPlan, pythons: Mapping[str, Path]) -> Iterator[list[StepChild]]:
    """Both processes, in the order of the plan's lanes; none is left behind."""
    children = list[StepChild]()
    try:
        for lane in plan.lanes:
            children.append(StepChild(lane.name, pythons.get(lane.name), plan.threads))
        yield children
    finally:
        for child in children:
            child.kill()


@dataclass(slots=True, kw_only=True)
class ProcessPair:
    """Two processes, and what is known of their launch.

    Attributes:
        plan, hear, should_stop, turn_steps: see :func:`run_process_pair`.
        children: one per lane, in the order of the plan.
        launch: what launch.json says.
        together: what holds for both sides because one of them needs it.
        next_beat_s: when the next report of progress is due.
    """

    plan: LockstepPlan
    children: list[StepChild]
    hear: Hear
    should_stop: Callable[[], bool]
    turn_steps: int = TURN_STEPS
    launch: dict[str, Any] = field(init=False)
    together: dict[str, Any] = field(init=False)
    next_beat_s: float = 0.0

    def __post_init__(self) -> None:
        self.launch = {"kind": self.plan.kind, "lanes": {}, "models": {}, "notes": [], "environments": {}}

    def load(self) -> None:
        """Greet both, then load one after the other."""
        for child in self.children:
            self.launch["environments"][child.lane] = child.greet()
        loaded = {}
        for i in self._loading_order():
            child, lane = self.children[i], self.plan.lanes[i]
            order = {"do": "prepare", "plan": plan_to_json(replace(self.plan, lanes=(lane,)))}
            loaded[child.lane] = found = child.ask(order, self.hear, self.should_stop)
            self.launch["models"] |= found["launch"]["models"]
            self.launch["notes"] += found["launch"]["notes"]
            self.launch["threads"] = found["launch"]["threads"]
        positions = [found["positions"] for found in loaded.values() if found["positions"] is not None]
        self.together = {
            "static": any(found["static"] for found in loaded.values()),
            "positions": min(positions, default=None),
        }
        self.write_launch()

    @property
    def _launch_number(self) -> int:
        number = self.plan.folder.name.rpartition("-")[2]
        return int(number) if number.isdecimal() else 0

    def _loading_order(self) -> list[int]:
        """By name in even launches and the other way round in odd ones, whatever the order of the plan."""
        return self._by_name(odd=self._launch_number % 2 == 1)

    def _by_name(self, *, odd: bool) -> list[int]:
        return sorted(range(len(self.children)), key=lambda i: self.children[i].lane, reverse=odd)

    def write_launch(self) -> None:
        """What is known."""
        file = self.plan.folder / "launch.json"
        write_header(file, header_of(LanesHeader, self.launch, file))

    # -- one measurement -------------------------------------------------------------------------------------------

    def measure(self, concurrency: int, deadline_s: float | None) -> Status:
        """One load: engines, warm-up, measurement."""
        result: LockstepResult | None = None
        folder = self.plan.folder / f"c{concurrency}"
        folder.mkdir(exist_ok=True)
        begun = self.ask_all({"do": "begin", "concurrency": concurrency, **self.together})
        infos = [found["info"] for found in begun]
        self._check_alike(infos)
        self.launch["lanes"] = {child.lane: found["facts"] for child, found in zip(self.children, begun, strict=True)}
        info = infos[0] | {
            "lanes": [lane for each in infos for lane in each["lanes"]],
            "turn_steps": self.turn_steps,
            "notes": self.launch["notes"] + [note for found in begun for note in found["notes"]],
        }
        file = folder / "pass.json"
        write_header(file, header_of(LanePassHeader, info, file))  # a side may be of another version
        name = f"{concurrency} in flight" if concurrency else "offline"
        try:
            self._warm_up(self._limits(WARM_UP_SHARE * self.plan.max_seconds, deadline_s, f"{name}: warming up"))
            before = self._reference()
            result = self._steps(folder, self._limits(self.plan.max_seconds, deadline_s, f"{name}: measuring 2 lanes"))
            after = self._reference()
            info["reference_kernel_s"] = {lane: [before[lane], after[lane]] for lane in before}
            self.ask_all({"do": "end"})
        except StopAskedError:
            if result is None:
                result = LockstepResult(status="stopped", cycles=0, steps=0, duration_s=0.0)
        write_header(file, header_of(LanePassHeader, info | asdict(result), file))
        return result.status

    def ask_all(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The same order to one process after the other; their answers in the order of the lanes."""
        return [child.ask(order, self.hear, self.should_stop) for child in self.children]

    def _reference(self) -> dict[str, float]:
        found = self.ask_all({"do": "reference"})
        return {child.lane: answer["seconds"] for child, answer in zip(self.children, found, strict=True)}

    def _check_alike(self, infos: Sequence[Mapping[str, Any]]) -> None:
        for fact in ALIKE:
            first, other = (info[fact] for info in infos)
            if first != other:
                raise WorkerFailedError(
                    f"lane {self.children[1].lane}: {fact} is {other}, {first} in lane {self.children[0].lane}; lanes "
                    "in lock-step need equal engines"
                )

    def _warm_up(self, limits: Limits) -> None:
        """One cycle, or what there is time for, whose times nobody keeps."""
        limits.start()
        for step, (_, is_last) in enumerate(self._turns(0)):
            limits.beat(0, step * self.turn_steps)
            if is_last or limits.over():
                break
        self.ask_all({"do": "restart"})

    def _steps(self, folder: Path, limits: Limits) -> LockstepResult:
        stream = TableStream(folder, "lanes")
        cycles, steps = 0, 0
        try:
            limits.start()
            while not limits.over():
                step = 0
                for rows, is_last in self._turns(cycles):
                    for both in rows:
                        for row in both:
                            stream.append({"cycle": cycles, "step": step} | row)
                        step += 1
                    stream.flush_if_due()
                    limits.beat(cycles, step)
                    steps, cycles = steps + len(rows), cycles + is_last
                    if is_last or limits.over():
                        break
        finally:
            stream.close()
        status: Status = "stopped" if self.should_stop() else "done" if cycles else "cut"
        return LockstepResult(status=status, cycles=cycles, steps=steps, duration_s=limits.clock() - limits.started_s)

    def _turns(self, cycle: int) -> Iterator[tuple[list[list[dict[str, Any]]], bool]]:
        """Turns of a cycle: per step the rows of both lanes, in the order of the turn; and whether it was the last."""
        # Strictly in turn, so that each finds its caches equally cold; who begins changes with cycle and launch, by
        # name: the plan's own order changes with the launch too, and both changes together would be none.
        turn, order = 0, self._by_name(odd=(cycle + self._launch_number) % 2 == 1)
        while True:
            answers = dict[int, dict[str, Any]]()
            for i in order:
                do = {"do": "steps", "number": self.turn_steps}
                answers[i] = self.children[i].ask(do, self.hear, self.should_stop)
            self._check_same_batches(answers[0], answers[1], turn * self.turn_steps)
            rows = [
                [{"lane": self.children[i].lane} | answers[i]["rows"][s] | {"place": p} for p, i in enumerate(order)]
                for s in range(len(answers[0]["rows"]))
            ]
            yield rows, answers[0]["is_last"]
            turn += 1

    def _check_same_batches(self, first: Mapping[str, Any], other: Mapping[str, Any], start: int) -> None:
        if (first["batches"], first["is_last"]) == (other["batches"], other["is_last"]):
            return
        both = zip(first["batches"], other["batches"], strict=False)
        number = next((i for i, (mine, theirs) in enumerate(both) if mine != theirs), None)
        base, new = self.children[0].lane, self.children[1].lane
        if number is None:
            counts = len(first["rows"]), len(other["rows"])
            raise WorkerFailedError(
                f"lane {new}: the schedule ends after {counts[1]} of {self.turn_steps} steps from step {start} on, in "
                f"lane {base} after {counts[0]}; lanes in lock-step need equal batches"
            )
        raise WorkerFailedError(
            f"lane {new}: step {start + number} is {_batch(other, number)}, in lane {base} {_batch(first, number)}; "
            "lanes in lock-step need equal batches"
        )

    def _limits(self, max_seconds: float, deadline_s: float | None, doing: str) -> Limits:
        def beat(cycle: int, step: int) -> None:
            now = time.monotonic()
            if now >= self.next_beat_s:
                self.next_beat_s = now + BEAT_EVERY_S
                self.hear(Report(event="progress", data={"doing": f"{doing}, cycle {cycle}, step {step}"}))

        return Limits(max_seconds=max_seconds, deadline_s=deadline_s, should_stop=self.should_stop, beat=beat)


def _batch(answer: Mapping[str, Any], number: int) -> str:
    row, (sequences, _) = answer["rows"][number], answer["batches"][number]
    return f"{row['phase']} of {len(sequences)} requests and {sum(s[1] for s in sequences)} tokens"
