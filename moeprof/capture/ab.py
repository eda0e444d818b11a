"""Before against after: which models are paired, what must be equal, and the plan of each launch pair. No torch.

Two workloads that differ in a checkpoint, a dtype, a kernel or a router (or one workload under two environments) are
measured twice over: each side once alone, by the ordinary run, for everything that is no time; and in launch pairs, in
which both sides are stepped in turn on one schedule (DESIGN section 9), for the times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moeprof.capture.lockstep_checks import FREE
from moeprof.capture.lockstep_plan import OFFLINE, LanePlan, LockstepPlan, Slowdown
from moeprof.capture.run import Prepared
from moeprof.core.errors import WorkloadError
from moeprof.core.modelspec import ModelSpec
from moeprof.core.record_pairs import BASE, NEW
from moeprof.core.workload import Workload

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
    if any(side.workload.engine.parallel is not None for side in (base, new)):
        raise WorkloadError(
            "--ab: two models step in turn in one process, ranks hold one each; leave engine.parallel out"
        )
    settings, measured = new.workload.lockstep, new.schedules[next(iter(models))].measured
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
    found = []
    engines = base.workload.engine, new.workload.engine
    pairs = {
        "device": (base.device, new.device),
        "threads": (base.workload.threads, new.workload.threads),
        "outputs": (base.workload.outputs, new.workload.outputs),
        **{f"engine.{key}": (getattr(engines[0], key), getattr(engines[1], key)) for key in ("max_batch_tokens",)},
    }
    found += [f"{key} is {old} in base and {now} in new" for key, (old, now) in pairs.items() if old != now]
    for name, old_name in models.items():
        old, now = base.schedules[old_name], new.schedules[name]
        if old.measured.sha256() != now.measured.sha256():
            why = "tokenizers differ" if old.tokenizer_hash != now.tokenizer_hash else "traffic or seed differ"
            found.append(f"the schedules of {name} differ ({why})")
    return found


def lone_workload(workload: Workload) -> Workload:
    """One launch, one round, nothing that only times: what is needed beside the launch pairs."""
    instruments = replace(workload.instruments, peaks=False, overhead=False, capacity=False)
    return replace(
        workload, launches=1, rounds=1, instruments=instruments, lockstep=None, ladder=None, sweep=None, claim=None
    )


def pair_plan(pairing: Pairing, model: str, launch: int, folder: Path, private: Path) -> LockstepPlan:
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
    return LockstepPlan(
        kind="pairs",
        lanes=tuple(sides if launch % 2 == 0 else reversed(sides)),
        engine=pairing.new.workload.engine,
        device=pairing.new.device,
        threads=pairing.new.workload.threads,
        folder=folder,
        schedule_file=private / scheduled.file_name,
        warmup_file=private / f"warmup-{scheduled.file_name}",
        tokenizer_hash=scheduled.tokenizer_hash,
        concurrency=pairing.concurrency,
        num_requests=pairing.num_requests,
        max_seconds=pairing.max_seconds,
    )


def _lane(side: str, workload: Workload, model: str, slowdown: Slowdown | None) -> LanePlan:
    spec = next(spec for spec in workload.models if spec.name == model)
    base = next((other for other in workload.models if other.name == spec.twin_of), None)
    return LanePlan(name=side, model=_called(spec, side), base=base, engine=workload.engine, slowdown=slowdown)


def _called(spec: ModelSpec, side: str) -> ModelSpec:
    """Both sides' models may have one name; in the launch pair they are called what they are."""
    return replace(spec, name=side)
