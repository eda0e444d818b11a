"""From a workload to a finished record: find models, build schedules, predict memory, run, write the run status.

Settings that cannot work, refused before a folder is made or a worker starts. No torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import structs

from moeprof.capture.devices.environment import compiler, environment
from moeprof.capture.devices.gpu import Gpu
from moeprof.capture.devices.meters import device_at_end, device_at_start, open_meters
from moeprof.capture.engines import ENGINES, named, settled
from moeprof.capture.engines.end_ids import end_ids
from moeprof.capture.engines.settled import Settled, needs_own_module
from moeprof.capture.measure import check_skipped
from moeprof.capture.memory import predict as fitting
from moeprof.capture.memory.predict import estimate_weights_bytes
from moeprof.capture.memory.shape import DeviceMemory
from moeprof.capture.models.find import ModelSource, find_model
from moeprof.capture.protocol import Slowdown
from moeprof.capture.routing.popularity import load_popularity, read_counts
from moeprof.capture.run.context import ProgressListener, Setup
from moeprof.capture.run.examine import Answer, Examination, Examined, Question
from moeprof.capture.run.experiment import Experiment
from moeprof.capture.run.lockstep import check_workload, run_ladder_only
from moeprof.capture.run.ranks import check_parallel, choose_devices, memory_of_all
from moeprof.capture.run.resume import Resume
from moeprof.capture.run.schedules import (
    Scheduled,
    all_schedules,
    make_schedules,
    private_schedules,
    save_schedules,
)
from moeprof.capture.run.status import RunStatus, now_utc
from moeprof.core.errors import InputError, ModelError, WorkloadError
from moeprof.core.files import made_anew
from moeprof.core.pricing import Pricing, resolve_pricing, served_pricing
from moeprof.core.record.experiment import (
    EnvironmentHeader,
    ExperimentHeader,
    ModelHeader,
    ScheduleHeader,
    ScheduleNote,
    SessionsHeader,
)
from moeprof.core.record.headers import part_of
from moeprof.core.record.owner import take
from moeprof.core.signals import SignalWatch
from moeprof.core.trace import Schedule
from moeprof.core.turns import NONE, roots
from moeprof.core.workload.engine import TransformersSettings, ours
from moeprof.core.workload.workload import Workload


def check_early(workload: Workload, device: str) -> None:
    """Refuse engine settings that the device or the kind of batching cannot have, and routing files that are not there.

    Args:
        workload: as read.
        device: ``cpu`` or ``cuda:N``.

    Raises:
        WorkloadError: one of them; the key, what was found, and what to do.
    """
    check_skipped(workload.instruments)
    if workload.engine.in_worker:
        _check_engine(ours(workload.engine), device)
    else:
        _check_elsewhere(workload)
        look = ENGINES[workload.engine.kind].check
        if look is not None:
            named(look)(workload)
    for spec in workload.models:
        policy = spec.routing
        if policy.path is None or policy.policy not in ("profile", "replay"):
            continue
        if not Path(policy.path).exists():
            raise WorkloadError(f"model {spec.name}: routing.path: {policy.path} is not there; give a file or a record")
        if policy.policy == "profile":
            with _named(spec.name):
                read_counts(Path(policy.path), policy.select)


def check_examined(workload: Workload, answers: Mapping[str, Answer]) -> None:
    """Refuse models that no worker could run, and routing that does not fit the layers they have.

    Raises:
        ModelError: a model, and why.
        WorkloadError: counts of a routing file that are not of this model.
    """
    refused = next((answer.refusal for answer in answers.values() if answer.refusal is not None), None)
    if refused is not None:
        raise ModelError(refused)
    for spec in workload.models:
        shapes = answers.get(spec.name, Answer()).shapes
        if spec.routing.policy == "profile" and shapes:
            with _named(spec.name):
                load_popularity(spec.routing, shapes)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which model a wrong setting belongs to."""
    try:
        yield
    except WorkloadError as error:
        raise WorkloadError(f"model {name}: {error}") from error


def _check_engine(engine: TransformersSettings, device: str) -> None:
    if engine.decode_graphs == "on" and not device.startswith("cuda"):
        raise WorkloadError(f"engine.decode_graphs: on needs a CUDA device, this is {device}; set auto or off")
    if engine.decode_attention not in ("auto", "torch") and not device.startswith("cuda"):
        raise WorkloadError(
            f"engine.decode_attention: {engine.decode_attention} needs a CUDA device, this is {device}; "
            "set auto or torch"
        )
    if engine.cpu_kernels != "off" and device == "cpu" and compiler() is None:
        raise WorkloadError(
            f"engine.cpu_kernels: {engine.cpu_kernels} needs a C++ compiler (g++, or the one that CXX names); "
            "install one, or set it to off"
        )
    if engine.prefix_cache and engine.batching == "static":
        raise WorkloadError(
            "engine.prefix_cache: static batches share no prefixes; set batching to auto, or prefix_cache to false"
        )


def _check_elsewhere(workload: Workload) -> None:
    """Refuse what needs a model in the worker's own process."""
    found = needs_own_module(workload)
    if found is not None:
        raise WorkloadError(
            f"{found}: needs a model in moeprof's own process, and engine.kind {workload.engine.kind} runs it "
            "elsewhere; leave it out, or set engine.kind to transformers"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A workload checked against this machine; nothing has been loaded yet.

    Attributes:
        workload: with device and KV space resolved.
        sources: model name -> where it is.
        schedules: model name -> its schedules.
        fit: the memory prediction.
        environment: what machine this is.
        gpu: the GPU, or None.
        device: ``cpu`` or ``cuda:N``.
        device_why: why this device, where there was something to choose from.
        engine_why: why this kind of engine, where there was something to choose from.
        other_gpus: of rank 1 and up, where ranks share a model.
        pricing: what the devices cost.
    """

    workload: Workload
    sources: dict[str, ModelSource]
    schedules: dict[str, Scheduled]
    fit: fitting.Fit
    environment: EnvironmentHeader
    gpu: Gpu | None
    device: str
    pricing: Pricing
    device_why: str | None = None
    engine_why: str | None = None
    other_gpus: tuple[Gpu, ...] = ()


def prepare(workload: Workload, *, must_fit: bool = True) -> Prepared:
    """Everything that can be known before weights load.

    Args:
        workload: the experiment.
        must_fit: False tells a model that does not fit in ``fit.refusal`` instead of raising.

    Raises:
        InputError: a model, trace, price, or the memory is wrong; see the callees.
    """
    engine = settled(workload)
    workload = replace(workload, engine=engine.settings)
    workload.engine.check_models(workload.models)
    _refuse_silent_warmup(workload)
    check_parallel(workload)
    by_name = {spec.name: spec for spec in workload.models}
    sources = {spec.name: find_model(spec, by_name.get(spec.twin_of or "")) for spec in workload.models}
    examination = Examination(_questions(workload, sources, weights=not must_fit), workload.threads)
    try:
        return _prepared(workload, engine, sources, examination, must_fit=must_fit)
    finally:
        examination.close()


def _questions(workload: Workload, sources: dict[str, ModelSource], *, weights: bool = False) -> list[Question]:
    """One a model that a worker will load; none where they run elsewhere."""
    if not workload.engine.in_worker:
        return []
    by_name, settings = {spec.name: spec for spec in workload.models}, ours(workload.engine)
    return [
        Question(
            spec=spec,
            base=by_name.get(spec.twin_of or ""),
            source=sources[spec.name],
            settings=settings,
            weights=weights,
        )
        for spec in workload.models
    ]


def _prepared(
    workload: Workload,
    engine: Settled,
    sources: dict[str, ModelSource],
    examination: Examination,
    *,
    must_fit: bool,
) -> Prepared:
    schedules = make_schedules(workload, sources)
    workload = check_workload(workload, {name: source.config for name, source in sources.items()}, schedules)
    choice, other_gpus = choose_devices(workload, has_cuda_build=engine.has_cuda_build)
    gpu, device = choice.gpu, choice.device
    check_early(workload, device)
    if workload.outputs == "free" and workload.engine.in_worker:
        for question in _questions(workload, sources):
            end_ids(question.base or question.spec, question.source)  # a damaged file would stop the run
    examined = examination.result()
    check_examined(workload, examined.answers)
    memory = memory_of_all(fitting.device_memory(device, gpu), other_gpus)
    fit = _fit(workload, sources, schedules, memory, examined)
    if must_fit:
        fit.require()
    if workload.engine.in_worker:
        workload = replace(workload, engine=replace(ours(workload.engine), kv_tokens=fit.kv_tokens))
    else:
        workload = replace(workload, engine=workload.engine.sized(fit.wanted_kv_tokens, device))
    workload = workload.with_rounds(device, _round_s(workload, schedules), reloads=not fit.together)
    num_devices = max(1 + len(other_gpus), workload.engine.num_devices if gpu is not None else 1)
    machine = environment(gpu, device, workload.threads, num_devices=num_devices, packages=engine.packages)
    return Prepared(
        workload=replace(workload, device=device),
        sources=sources,
        schedules=schedules,
        fit=fit,
        environment=machine,
        pricing=_pricing(workload, machine, device),
        gpu=gpu,
        device=device,
        device_why=choice.why,
        engine_why=engine.why,
        other_gpus=other_gpus,
    )


def _pricing(workload: Workload, machine: EnvironmentHeader, device: str) -> Pricing:
    if not workload.engine.is_local:
        return served_pricing(workload.prices, workload.engine.devices)
    return resolve_pricing(
        workload.prices.for_device(device),
        str(machine.device_name),
        num_devices=machine.num_devices,
        num_vcpus=machine.cpu_cores,
    )


def _fit(
    workload: Workload,
    sources: dict[str, ModelSource],
    schedules: dict[str, Scheduled],
    memory: DeviceMemory,
    examined: Examined,
) -> fitting.Fit:
    """The memory prediction; of models that run elsewhere there is none."""
    every = [s for scheduled in schedules.values() for s in all_schedules(scheduled.measured, scheduled.points)]
    if not workload.engine.in_worker:
        together = memory.is_host or len(workload.models) == 1  # an engine of its own fills a GPU
        return fitting.elsewhere(memory, every, together=together)
    settings = ours(workload.engine)
    params = {name: answer.params for name, answer in examined.answers.items()}
    weights = estimate_weights_bytes(workload.models, sources, settings, params, is_host=memory.is_host)
    fit = fitting.predict(
        workload.models,
        sources,
        every,
        settings=settings,
        memory=memory,
        weights_bytes=weights,
        host_base_bytes=examined.base_bytes,
        profiles=workload.instruments.wants("gap"),
    )
    if workload.lockstep is not None:
        fit = fitting.in_one_process(fit, workload.lockstep.models or [s.name for s in workload.models], "lockstep")
    return fit


def _round_s(workload: Workload, schedules: dict[str, Scheduled]) -> float | None:
    """What a round of all models lasts by its arrivals, capacity pass included; None where no clock paces it."""
    spans = [s.measured.arrival_s.max() for s in schedules.values() if s.measured.pattern == "open" and s.measured]
    if len(spans) < len(schedules):
        return None
    return float(sum(spans)) * (2 if workload.instruments.capacity else 1) * workload.launches


def _refuse_silent_warmup(workload: Workload) -> None:
    popular = next((spec.name for spec in workload.models if spec.initialise == "popular_experts"), None)
    if popular is not None and workload.warmup.num_requests == 0:
        raise WorkloadError(
            f"warmup.num_requests: found 0, but model {popular} is made of the experts that are popular on the warm-up "
            "text; give 1 or more, or say `initialise: random`"
        )


def check_output_dir(folder: Path) -> None:
    """Refuse a folder that a record cannot go to; makes nothing.

    Raises:
        InputError: it is there already and has something in it, or it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: is there already and is not empty; nothing is overwritten, choose another folder")
    nearest = next(part for part in (folder, *folder.absolute().parents) if part.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "Permission denied" if nearest.is_dir() else "Not a directory"
        raise InputError(f"{folder}: cannot be written ({why}); choose another --output-dir")


def new_run_folder(workload: Workload, output_dir: Path | None, root: Path) -> Path:
    """A fresh folder for the record, which this process owns; never one that has something in it.

    Raises:
        InputError: it is there already, or cannot be written.
    """
    folder = output_dir or root / f"{datetime.now().astimezone():%Y%m%d-%H%M%S}-{workload.name}"
    if output_dir is not None:
        check_output_dir(folder)
    try:
        if output_dir is None:
            folder = made_anew(folder)
        else:
            folder.mkdir(parents=True, exist_ok=True)
        take(folder, empty=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another --output-dir") from error
    return folder


def execute(
    prepared: Prepared,
    folder: Path,
    listener: ProgressListener,
    signals: SignalWatch,
    *,
    workload_text: str,
    keep_content: bool = True,
    only_ladder: bool = False,
    resume: Resume | None = None,
    slowdown: Slowdown | None = None,
) -> str:
    """Run it, or its sparsity ladder alone, or what ``resume`` lacks. Returns ``done``, ``failed`` or ``interrupted``.

    Raises:
        InputError: ``resume`` is a run of something else.
    """
    workload = prepared.workload
    has_meters = workload.instruments.power and workload.engine.is_local
    meters = open_meters(prepared.gpu, prepared.other_gpus) if has_meters else []
    deadline = None if workload.max_minutes is None else time.perf_counter() + 60 * workload.max_minutes
    experiment = structs.replace(
        _experiment(prepared),
        run=folder.name,
        workload_text=workload_text,
        pricing=prepared.pricing,
        content_kept=keep_content,
    )
    if resume is not None:
        resume.check_same(experiment)
        if resume.is_done:
            return "done"  # nothing is written: what is finished cannot become unfinished
        experiment = resume.begin(experiment)
        keep_content = bool(experiment.content_kept)
    run_status = RunStatus(folder, experiment)
    save_schedules(prepared.schedules, folder, with_content=keep_content)
    with private_schedules(prepared.schedules, content_kept=keep_content) as private:
        setup = Setup(
            workload=workload,
            folder=folder,
            private=private,
            schedules=prepared.schedules,
            device=prepared.device,
            together=prepared.fit.together,
            meters=meters,
            deadline_s=deadline,
            resume=resume,
            slowdown=slowdown,
        )
        try:
            if only_ladder:
                return run_ladder_only(setup, run_status, listener, signals)
            return Experiment(setup, run_status, listener, signals).run()
        finally:
            run_status.put(device_at_end=device_at_end(prepared.gpu, meters))
            run_status.close()


def _experiment(prepared: Prepared) -> ExperimentHeader:
    """What is known before the run: the GPU is looked at here."""
    at_start, workload = device_at_start(prepared.gpu), prepared.workload
    return ExperimentHeader(
        started_at=now_utc(),
        workload=without_machine_paths(workload.to_json()),
        environment=prepared.environment,
        schedules={name: _schedule_header(scheduled) for name, scheduled in prepared.schedules.items()},
        fit=prepared.fit.header(),
        device_why=prepared.device_why,
        engine_why=prepared.engine_why,
        device_at_start=at_start,
        idle_power_w=None if at_start is None else at_start.idle_power_w,
        models=tuple(ModelHeader(name=spec.name, folder=spec.name) for spec in workload.models),
    )


def without_machine_paths(value: Any) -> Any:
    """The same JSON with absolute paths cut to their last part: a record may be published."""
    if isinstance(value, dict):
        return {key: without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_machine_paths(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def _sessions_header(measured: Schedule) -> SessionsHeader | None:
    turns = measured.turns
    if turns is None:
        return None
    later = turns.after != NONE
    return SessionsHeader(
        sessions="closed" if turns.is_closed else "open",
        num_conversations=len(set(roots(turns.after)[later].tolist())),
        num_later_turns=int(later.sum()),
        prompts="added" if turns.context_tokens.any() else "whole",
        own_answers=measured.own_answers,
    )


def _schedule_header(scheduled: Scheduled) -> ScheduleHeader:
    measured = scheduled.measured
    return ScheduleHeader(
        file=scheduled.file_name,
        sha256=measured.sha256(),
        tokenizer_hash=scheduled.tokenizer_hash,
        bundled_tokenizer=scheduled.bundled,
        num_requests=len(measured),
        pattern=measured.pattern,
        concurrency=measured.concurrency,
        outputs=measured.outputs,
        realism=measured.realism,
        input_tokens=int(measured.input_tokens.sum()),
        output_tokens=int(measured.output_tokens.sum()),
        span_s=float(measured.arrival_s.max()) if len(measured) else 0.0,
        classes=tuple(measured.classes),
        sessions=_sessions_header(measured),
        notes=tuple(part_of(ScheduleNote, note) for note in measured.notes),
        sweep=tuple(point.header() for point in scheduled.points),
    )
