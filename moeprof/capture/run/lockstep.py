"""Can a workload's lock-step and ladder be run? Told before anything is loaded, from configs and schedules alone.

The parent's side of lock-step and ladder: what is measured, in which process, and how it went. No torch.

They run after the rounds of a launch, in a process of their own, so that the rounds stay runs alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from moeprof.capture.devices.process import STORAGE_FULL
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS, TOP_K_KEYS
from moeprof.capture.protocol import (
    OFFLINE,
    LanePlan,
    LockstepPart,
    OnReport,
    Order,
    WorkerPlan,
    wanted_requests,
)
from moeprof.capture.routing.recorded import check_same_requests
from moeprof.capture.run.schedules import Scheduled
from moeprof.capture.run.status import RunStatus
from moeprof.capture.worker.process import WATCHDOG_S, Worker, WorkerFailedError
from moeprof.core.errors import StorageError, WorkloadError
from moeprof.core.files import write_text
from moeprof.core.record.experiment import StudyHeader
from moeprof.core.signals import SignalWatch
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import ours
from moeprof.core.workload.models import ModelSpec, RoutingPolicy
from moeprof.core.workload.workload import Workload

if TYPE_CHECKING:
    from moeprof.capture.run.context import ProgressListener, Setup

FREE = "a request may end early under `outputs: free`, so steps have no equal batches; use forced or forced_length"
SESSIONS = (
    "sessions are closed in an open arrival process: when a turn comes depends on how fast the model before answered, "
    "so steps have no equal batches; set traffic.trace.sessions: open, or traffic.arrivals.pattern: concurrency or "
    "offline, or run the models in turn"
)


def check_sessions(key: str, measured: Schedule) -> None:
    """Lanes that are stepped in turn have the same batches, which turns that wait under open arrivals do not give.

    Raises:
        WorkloadError: this schedule has such turns.
    """
    if measured.waits and measured.pattern == "open":
        raise WorkloadError(f"{key}: {SESSIONS} (leave {key} out)")


def check_workload(workload: Workload, configs: dict[str, dict[str, Any]], schedules: dict[str, Scheduled]) -> Workload:
    """The workload with the ladder's model chosen, checked.

    Raises:
        WorkloadError: no MoE for the ladder, more requests in flight than there are, outputs that are not forced, or
            recorded picks of other requests.
    """
    for spec in workload.models:
        if spec.routing.policy == "replay":
            if workload.sweep is not None:
                raise WorkloadError(
                    f"sweep: model {spec.name} replays the picks of recorded requests, and a sweep sends others; leave "
                    "sweep or routing out"
                )
            if schedules[spec.name].measured.own_answers:
                raise WorkloadError(
                    f"model {spec.name}: routing.policy replay needs the prompts that were recorded, and under "
                    "outputs: free later turns hold the model's own answers; use outputs: forced_length, or sessions: "
                    "open"
                )
            check_same_requests(Path(str(spec.routing.path)), schedules[spec.name].measured)
    if workload.lockstep is not None:
        check_sessions("lockstep", schedules[workload.models[0].name].measured)
        available = len(schedules[workload.models[0].name].measured)
        _check_enough("lockstep", workload.lockstep.concurrency, workload.lockstep.num_requests, available)
    if workload.ladder is None:
        return workload
    if workload.outputs == "free":
        raise WorkloadError(f"ladder: {FREE}")
    model = choose_moe(workload, configs)
    check_sessions("ladder", schedules[model.name].measured)
    _check_distinct(workload.ladder.distinct, configs[model.name])
    available = len(schedules[model.name].measured)
    _check_enough("ladder", workload.ladder.concurrency, workload.ladder.num_requests, available)
    return replace(workload, ladder=replace(workload.ladder, model=model.name))


def choose_moe(workload: Workload, configs: dict[str, dict[str, Any]]) -> ModelSpec:
    """The MoE of the ladder: the named one, or the first of the workload.

    Raises:
        WorkloadError: no such model, a twin, or no model with routed experts.
    """
    assert workload.ladder is not None
    moes = [spec for spec in workload.models if spec.twin_of is None and _has_experts(configs[spec.name])]
    requested, names = workload.ladder.model, ", ".join(spec.name for spec in moes) or "none"
    if requested is None and not moes:
        listed = ", ".join(spec.name for spec in workload.models)
        raise WorkloadError(f"ladder: no model of this workload has routed experts (found {listed}); add an MoE")
    found = moes[0] if requested is None else next((spec for spec in workload.models if spec.name == requested), None)
    if found is None:
        raise WorkloadError(
            f"ladder.model: no model named {requested!r} in this workload; models with experts: {names}"
        )
    if found not in moes:
        raise WorkloadError(f"ladder.model: {found.name} has no routed experts; models with experts: {names}")
    return found


def ladder_twins(workload: Workload, moe: ModelSpec) -> tuple[ModelSpec, ModelSpec]:
    """The active-matched and the total-matched twin: the workload's own, or new ones with random weights."""
    return _twin(workload, moe, "active"), _twin(workload, moe, "total")


def _twin(workload: Workload, moe: ModelSpec, match: str) -> ModelSpec:
    own = (spec for spec in workload.models if spec.twin_of == moe.name and spec.match == match)
    new = ModelSpec(name=f"{moe.name[: 63 - len(match)]}-{match}", twin_of=moe.name, match=match, dtype=moe.dtype)
    return next(own, new)


def _has_experts(config: dict[str, Any]) -> bool:
    """Does a config.json, or a part of it, name more than one expert?"""
    for key, value in config.items():
        if key in EXPERT_COUNT_KEYS and isinstance(value, int) and value > 1:
            return True
        if isinstance(value, dict) and _has_experts(value):
            return True
    return False


def _check_distinct(distinct: tuple[int, ...], config: dict[str, Any]) -> None:
    """A step cannot touch fewer experts than one token takes, or more than there are."""
    least, most = _number(config, ("top_k", *TOP_K_KEYS)), _number(config, EXPERT_COUNT_KEYS)
    for wanted in distinct:
        if (least is not None and wanted < least) or (most is not None and wanted > most):
            raise WorkloadError(
                f"ladder.distinct: found {wanted}; {least or 1} (what one token takes) to "
                f"{most or 'all experts'} is allowed"
            )


def _number(config: dict[str, Any], keys: Collection[str]) -> int | None:
    """The largest number under one of these keys, in a config.json or a part of it."""
    found = [value for key, value in config.items() if key in keys and type(value) is int]
    found += [n for value in config.values() if isinstance(value, dict) and (n := _number(value, keys)) is not None]
    return max(found, default=None)


def _check_enough(key: str, concurrency: tuple[int, ...], num_requests: int | None, available: int) -> None:
    for wanted in concurrency:
        found = wanted_requests(num_requests, wanted, available)
        if wanted > found:
            raise WorkloadError(
                f"{key}.concurrency: {wanted} in flight, but only {found} requests are sent; lower it, or give more "
                f"requests ({key}.num_requests, traffic.num_requests)"
            )


# -- plans -------------------------------------------------------------------------------------------------------------


def lockstep_plan(setup: Setup, launch: int, failed: Collection[str]) -> WorkerPlan | str:
    """All models of the workload in one process, or why not."""
    workload = setup.workload
    assert workload.lockstep is not None
    if not setup.together:
        return "the models do not fit into memory together"
    if workload.outputs == "free":
        return FREE
    chosen = workload.lockstep.models or [spec.name for spec in workload.models]
    models = [spec for spec in workload.models if spec.name in chosen and spec.name not in failed]
    if len(models) < 2:
        return "fewer than two models are there to compare"
    first = setup.schedules[models[0].name]
    if any(setup.schedules[spec.name].tokenizer_hash != first.tokenizer_hash for spec in models):
        return "the models have different tokenizers, so their steps have no equal batches"
    measured = first.measured
    own = measured.concurrency if measured.pattern == "closed" and measured.concurrency else OFFLINE
    lanes = tuple(LanePlan(name=spec.name, model=spec, base=_base(workload, spec)) for spec in models)
    settings = workload.lockstep
    return _plan(setup, "lockstep", launch, models[0], lanes, settings.concurrency or (own,))


def ladder_plan(setup: Setup, launch: int, *, facts_folder: Path | None = None) -> WorkerPlan:
    """The rungs of one MoE, between its twins."""
    workload = setup.workload
    assert workload.ladder is not None
    moe = next(spec for spec in workload.models if spec.name == workload.ladder.model)
    moe = replace(moe, routing=RoutingPolicy())
    active, total = ladder_twins(workload, moe)
    # The MoE is loaded first: what room is left then decides about its twins.
    lanes = [LanePlan(name="native", model=moe, rung="native")]
    lanes.append(LanePlan(name=active.name, model=active, base=moe, rung="dense", optional=True))
    lanes += [LanePlan(name=rung, model=moe, rung=rung) for rung in ("concentrated", "balanced", "recorded")]
    lanes.append(LanePlan(name=total.name, model=total, base=moe, rung="dense", optional=True))
    for number in workload.ladder.distinct:
        lanes.append(LanePlan(name=f"distinct-{number}", model=moe, rung="distinct", distinct=number))
    plan = _plan(setup, "ladder", launch, moe, tuple(lanes), workload.ladder.concurrency)
    return replace(plan, facts_folder=facts_folder)


def _base(workload: Workload, spec: ModelSpec) -> ModelSpec | None:
    return next((other for other in workload.models if other.name == spec.twin_of), None)


def _plan(
    setup: Setup,
    kind: Literal["lockstep", "ladder"],
    launch: int,
    model: ModelSpec,
    lanes: tuple[LanePlan, ...],
    concurrency: tuple[int, ...],
) -> WorkerPlan:
    workload, scheduled = setup.workload, setup.schedules[model.name]
    settings = workload.lockstep if kind == "lockstep" else workload.ladder
    assert settings is not None
    return WorkerPlan(
        kind=kind,
        lanes=lanes,
        engine=ours(workload.engine),
        device=setup.device,
        threads=workload.threads,
        folder=setup.folder / kind / f"launch-{launch}",
        schedule_file=setup.private / scheduled.file_name,
        warmup_file=setup.private / f"warmup-{scheduled.file_name}",
        tokenizer_hash=scheduled.tokenizer_hash,
        lockstep=LockstepPart(
            concurrency=tuple(dict.fromkeys(concurrency)),
            num_requests=settings.num_requests,
            max_seconds=settings.max_seconds,
        ),
    )


# -- running -----------------------------------------------------------------------------------------------------------


def in_one_process(
    plan: WorkerPlan,
    on_report: OnReport,
    should_stop: Callable[[], bool],
    deadline_s: float | None = None,
    *,
    watchdog_s: float = WATCHDOG_S,
) -> Mapping[str, str]:
    """All lanes of a plan in one fresh process; returns the status of each load.

    Raises:
        WorkerFailedError: a model failed, or the process died.
    """
    worker, measured = Worker(plan, watchdog_s), dict[str, str]()
    try:
        for order in (Order(command="prepare"), Order(command="lockstep", deadline_s=deadline_s)):
            if not should_stop():
                measured = worker.do(order, on_report, should_stop).get("measured", {})
        worker.close(on_report)
    finally:
        worker.kill()
    return measured


@dataclass(slots=True)
class LockstepRun:
    """Runs the lock-step and the ladder of each launch; a failure of theirs is no failure of a model.

    Attributes:
        setup, run_status, listener, signals: those of the experiment.
        failures: what failed: ``lockstep`` or ``ladder`` -> the error.
    """

    setup: Setup
    run_status: RunStatus
    listener: ProgressListener
    signals: SignalWatch
    failures: dict[str, WorkerFailedError] = field(default_factory=dict)

    def measure(self, launch: int, failed: Collection[str]) -> None:
        """What the workload asks for, after the rounds of a launch."""
        workload, deadline = self.setup.workload, self.setup.deadline_s
        if deadline is not None and time.perf_counter() >= deadline:
            for kind, requested in (("lockstep", workload.lockstep), ("ladder", workload.ladder)):
                if requested is not None:
                    self._left_out(kind, f"max_minutes was over in launch {launch}")
            return
        if workload.lockstep is not None and not self.signals.number:
            plan = lockstep_plan(self.setup, launch, failed)
            if isinstance(plan, WorkerPlan):
                self.carry_out(plan)
            else:
                self._left_out("lockstep", plan)
        if workload.ladder is not None and not self.signals.number:
            if workload.ladder.model in failed:
                self._left_out("ladder", f"{workload.ladder.model} failed")
            else:
                self.carry_out(ladder_plan(self.setup, launch))

    def carry_out(self, plan: WorkerPlan) -> None:
        """One launch of one kind, in a fresh process; what an interrupted run has measured already is left alone."""
        resume = self.setup.resume
        if resume is not None:
            missing = tuple(c for c in plan.in_turn.concurrency if not resume.is_finished(plan.folder / f"c{c}"))
            if not missing:
                self.run_status.put(**{plan.kind: StudyHeader(status="done")})
                return
            plan = replace(plan, lockstep=replace(plan.in_turn, concurrency=missing))

        try:
            measured = in_one_process(
                plan,
                lambda report: self.listener.on_event(plan.label, report.event, report.data),
                lambda: bool(self.signals.number),
                self.setup.deadline_s,
                watchdog_s=self.setup.workload.watchdog_s,
            )
        except WorkerFailedError as error:
            if error.reason == STORAGE_FULL:
                raise StorageError(str(error)) from error
            if not self.signals.number:
                self._failed(plan, error)
        else:
            if plan.kind not in self.failures:
                whole = len(measured) == len(plan.in_turn.concurrency) and set(measured.values()) == {"done"}
                status = "interrupted" if self.signals.number else "done" if whole else "cut"
                self.run_status.put(**{plan.kind: StudyHeader(status=status)})

    def _failed(self, plan: WorkerPlan, error: WorkerFailedError) -> None:
        self.failures[plan.kind] = error
        self.run_status.put(**{plan.kind: StudyHeader(status="failed", error=str(error), reason=error.reason)})
        if error.details:
            plan.folder.mkdir(parents=True, exist_ok=True)
            write_text(plan.folder / "failure.txt", error.details)
        self.listener.on_event(plan.label, "failed", {"error": str(error)})

    def _left_out(self, kind: str, reason: str) -> None:
        label = "lock-step" if kind == "lockstep" else "ladder"
        self.run_status.put(**{kind: StudyHeader(status="left out", error=reason)})
        self.run_status.note(f"{label} left out: {reason}")
        self.listener.on_event(label, "progress", {"doing": f"left out: {reason}"})


def run_ladder_only(setup: Setup, run_status: RunStatus, listener: ProgressListener, signals: SignalWatch) -> str:
    """``moeprof ladder``: nothing but the ladder; returns ``done``, ``failed`` or ``interrupted``."""
    assert setup.workload.ladder is not None
    moe, status, failed = str(setup.workload.ladder.model), "interrupted", set[str]()
    try:
        run = LockstepRun(setup, run_status, listener, signals)
        for launch in range(setup.workload.launches):
            if not signals.number and not run.failures:
                run.carry_out(ladder_plan(setup, launch, facts_folder=setup.folder))
        if "ladder" in run.failures:
            error = run.failures["ladder"]
            run_status.model_failed(moe, str(error), error.details, error.exit_code, error.reason)
            failed.add(moe)
        status = "interrupted" if signals.number else "failed" if failed else "done"
    finally:
        run_status.finish(status, failed=failed)
    return status
