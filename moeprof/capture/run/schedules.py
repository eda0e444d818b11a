"""The schedules of an experiment: one per tokenizer, made once, saved, hashed, given to every model that shares it.

The first model's tokenizer is the reference: text is cut to token counts under it. Models with the same tokenizer hash
get the same ids; others get the same text in their own ids, and are compared per character and per request only. A
model without a tokenizer uses the bundled one if its vocabulary is large enough.

The requests of each point of a sweep: one schedule per point and tokenizer, drawn from the workload's own traffic.

- concurrency: the first requests of the schedule as a closed loop of that many.
- request rate: the first requests, at the schedule's own arrivals with times rescaled (so bursts stay bursts), or at
  Poisson arrivals of the workload's seed where it has none. Gaps are the same at every rate, only scaled.
- input tokens: the traffic built again with prompts of that length; text and continuations stay real.
- batch tokens: a setting of the engine; the requests stay.

All models of one tokenizer get the same requests at a point.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.models.find import ModelSource
from moeprof.capture.models.shapes import text_values
from moeprof.core.errors import ModelError, WorkloadError
from moeprof.core.record.experiment import PointHeader, ScheduleNote
from moeprof.core.record.headers import part_of
from moeprof.core.scratch import Scratch, sweep
from moeprof.core.trace import FloatArray, Note, Schedule, first_requests
from moeprof.core.workload.models import ModelSpec
from moeprof.core.workload.studies import Sweep, SweepPoint
from moeprof.core.workload.traffic import Arrivals
from moeprof.core.workload.workload import Workload
from moeprof.sources.schedule import BuiltSchedule, build_schedule
from moeprof.sources.synthetic import draw_arrivals, streams
from moeprof.sources.tokenizer import TextTokenizer, bundled_tokenizer, load_tokenizer

MIN_REQUESTS = 16
REQUESTS_PER_PLACE = 4  # of a closed loop: fewer, and filling and draining the batch is most of the pass
PACED_SHARE = 0.5  # of ``max_seconds`` that arrivals may take, so that the last ones can be answered
Build = Callable[[int | None], BuiltSchedule]


@dataclass(frozen=True, slots=True, kw_only=True)
class PointSchedule:
    """The requests of one point for one tokenizer.

    Attributes:
        index: of the point, in ``Sweep.points``.
        point: the setting.
        measured: the schedule.
        file_name: where it lies in the record.
    """

    index: int
    point: SweepPoint
    measured: Schedule
    file_name: str

    def header(self) -> PointHeader:
        """For experiment.json."""
        return PointHeader(
            file=self.file_name,
            sha256=self.measured.sha256(),
            num_requests=len(self.measured),
            pattern=self.measured.pattern,
            notes=tuple(part_of(ScheduleNote, note) for note in self.measured.notes),
        )


def point_schedules(sweep: Sweep, build: Build, *, seed: int, suffix: str = "") -> tuple[PointSchedule, ...]:
    """The schedules of all points under one tokenizer.

    Args:
        sweep: the points.
        build: the workload's traffic with prompts of a given length (None: its own).
        seed: of Poisson arrivals.
        suffix: tells file names of several tokenizers apart.
    """
    by_length: dict[int | None, Schedule] = {}
    found = []
    for index, point in enumerate(sweep.points):
        if point.input_tokens not in by_length:
            by_length[point.input_tokens] = build(point.input_tokens).measured
        measured = at_load(by_length[point.input_tokens], point, sweep, seed=seed)
        found.append(
            PointSchedule(index=index, point=point, measured=measured, file_name=f"sweep-{index}{suffix}.parquet")
        )
    return tuple(found)


def at_load(schedule: Schedule, point: SweepPoint, sweep: Sweep, *, seed: int) -> Schedule:
    """The first requests of ``schedule`` under the load of ``point``; as many as the SLO and the sweep ask for."""
    notes = list(schedule.notes)
    number = num_requests(schedule, point, sweep)
    part = first_requests(schedule, number)
    if point.concurrency is not None:
        if number < 2 * point.concurrency:
            text = (
                f"fewer requests than twice the concurrency of {point.concurrency}: the batch is full for moments only"
            )
            notes.append(Note(code="few_requests", count=number, text=text))
        zeros = np.zeros(number, dtype=np.float64)
        return replace(part, pattern="closed", concurrency=point.concurrency, arrival_s=zeros, notes=tuple(notes))
    if point.request_rate is not None:
        arrival_s, note = _arrivals(part, point.request_rate, seed)
        return replace(part, pattern="open", concurrency=None, arrival_s=arrival_s, notes=(*notes, note))
    return part


def _waiting_turns(part: Schedule, first_s: FloatArray) -> FloatArray:
    """Arrivals when conversations begin at ``first_s``: later turns follow as if answers took no time."""
    arrival_s = np.zeros(len(part), dtype=np.float64)
    arrival_s[part.is_first] = first_s
    if part.turns is not None:
        pause_s = np.maximum(part.turns.delay_s, part.turns.gap_s)
        for row in np.flatnonzero(~part.is_first).tolist():
            arrival_s[row] = arrival_s[part.turns.after[row]] + pause_s[row]
    return arrival_s


def num_requests(schedule: Schedule, point: SweepPoint, sweep: Sweep) -> int:
    """How many requests a point sends, at most the schedule's.

    ``sweep.num_requests`` where it is given. Else four per place of a closed loop, at least 16; of an open loop as
    many as arrive in half of ``sweep.max_seconds``, at least 16.
    """
    if sweep.num_requests is not None:
        return min(sweep.num_requests, len(schedule))
    places = point.concurrency or (schedule.concurrency if point.request_rate is None else None)
    if places is not None:
        return min(max(MIN_REQUESTS, REQUESTS_PER_PLACE * places), len(schedule))
    if point.request_rate is not None:
        return min(max(MIN_REQUESTS, int(point.request_rate * sweep.max_seconds * PACED_SHARE)), len(schedule))
    return len(schedule)


def _arrivals(part: Schedule, rate: float, seed: int) -> tuple[FloatArray, Note]:
    """Times of requests at ``rate``, from 0, and what they are; of conversations it is the rate at which they begin."""
    own_s = part.arrival_s[part.is_first]
    number, span_s = len(own_s), float(own_s[-1] - own_s[0])
    what = "conversations" if part.waits else "requests"
    if part.pattern == "open" and span_s > 0:
        # N requests have N - 1 gaps between them: those take (N - 1) / rate seconds.
        first_s = (own_s - own_s[0]) * ((number - 1) / rate / span_s)
        note = Note(code="rate_scaled", count=number, text=f"times were scaled to {rate:g} {what}/s")
        return _waiting_turns(part, first_s), note
    first_s = draw_arrivals(streams(seed).arrivals, Arrivals(pattern="poisson", rate=rate), number)
    text = f"the traffic has no times of its own: Poisson arrivals at {rate:g} {what}/s, seed {seed}"
    return _waiting_turns(part, first_s), Note(code="poisson_arrivals", count=number, text=text)


def all_schedules(measured: Schedule, points: tuple[PointSchedule, ...]) -> Iterator[Schedule]:
    """Everything that an engine of this tokenizer will be sent: its cache has to hold the largest."""
    yield measured
    yield from (point.measured for point in points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """The schedules of one tokenizer.

    Attributes:
        tokenizer_hash: sha256 of tokenizer.json.
        bundled: True when it is moeprof's own, for models that have none.
        measured: the schedule of every pass.
        warmup: other prompts, for warm-up and calibration.
        file_name: where the measured schedule lies in the record.
        points: of the sweep.
        output_text: text of the forced outputs; None where the prompts are random ids.
    """

    tokenizer_hash: str
    bundled: bool
    measured: Schedule
    warmup: Schedule
    file_name: str
    points: tuple[PointSchedule, ...] = ()
    output_text: tuple[str | None, ...] | None = None

    def output_bytes(self, number: int) -> list[int | None]:
        """Bytes (UTF-8) of the first forced outputs; None where an output is no whole text.

        A window can begin or end inside a character, which then decodes to U+FFFD.
        """
        texts = (self.output_text or ())[:number]
        return [None if text is None or "\ufffd" in text else len(text.encode("utf-8")) for text in texts]


@contextmanager
def private_schedules(schedules: Mapping[str, Scheduled], *, content_kept: bool) -> Iterator[Path]:
    """A folder outside of any record with every schedule and its content, for the workers; gone afterwards.

    Args:
        schedules: by model.
        content_kept: whether the record holds the content too. Else no disk does (where the system has files in
            memory): the folder has links to memory of this process, which is gone with it however it ends.
    """
    sweep()
    with Scratch() as scratch, ExitStack() as files:
        private = scratch.path
        in_memory = not content_kept and hasattr(os, "memfd_create")
        if in_memory:
            for scheduled in schedules.values():
                points = [point.file_name for point in scheduled.points]
                for name in (scheduled.file_name, f"warmup-{scheduled.file_name}", *points):
                    _link_to_memory(private / name, files)
        save_schedules(schedules, private, with_content=True, through_link=in_memory)
        for scheduled in schedules.values():
            scheduled.warmup.save(private / f"warmup-{scheduled.file_name}", through_link=in_memory)
        yield private


def _link_to_memory(path: Path, files: ExitStack) -> None:
    """Make a link to a new empty file in memory, which lives until ``files`` closes; one link for each name."""
    if path.is_symlink():
        return  # models share a tokenizer, and so a schedule
    file = os.memfd_create(path.name)
    files.callback(os.close, file)
    path.symlink_to(f"/proc/{os.getpid()}/fd/{file}")


def save_schedules(
    schedules: Mapping[str, Scheduled], folder: Path, *, with_content: bool, through_link: bool = False
) -> None:
    """Write the requests of the rounds and of every point of a sweep, once per tokenizer."""
    for scheduled in {s.tokenizer_hash: s for s in schedules.values()}.values():
        scheduled.measured.save(folder / scheduled.file_name, with_content=with_content, through_link=through_link)
        for point in scheduled.points:
            point.measured.save(folder / point.file_name, with_content=with_content, through_link=through_link)


def make_schedules(workload: Workload, sources: dict[str, ModelSource]) -> dict[str, Scheduled]:
    """The schedules by model name.

    Raises:
        TraceError, WorkloadError: see the traffic.
        ModelError: a vocabulary is too small for the bundled tokenizer.
    """
    by_hash: dict[str, Scheduled] = {}
    by_model: dict[str, Scheduled] = {}
    reference: TextTokenizer | None = None
    built: dict[int | None, BuiltSchedule] = {}  # by the prompt length that a sweep asks for

    def build(input_tokens: int | None) -> BuiltSchedule:
        assert reference is not None
        if input_tokens not in built:
            built[input_tokens] = build_schedule(
                workload.traffic,
                tokenizer=reference,
                seed=workload.seed,
                outputs=workload.outputs,
                num_warmups=workload.warmup.num_requests,
                input_tokens=input_tokens,
            )
        return built[input_tokens]

    for spec in workload.models:
        file, bundled = _tokenizer(sources[spec.name])
        tokenizer = load_tokenizer(file)
        reference = reference or tokenizer
        if tokenizer.sha256 not in by_hash:
            by_hash[tokenizer.sha256] = _scheduled(workload, build, tokenizer, reference, bundled)
        by_model[spec.name] = by_hash[tokenizer.sha256]
        _check_vocabulary(spec, sources[spec.name].config, by_model[spec.name].measured)
        _check_positions(spec, sources[spec.name].config, by_model[spec.name].points)
    return by_model


def _scheduled(
    workload: Workload, build: Build, tokenizer: TextTokenizer, reference: TextTokenizer, bundled: bool
) -> Scheduled:
    """The schedules of one tokenizer: the reference's own, or its text in other ids."""
    suffix = "" if tokenizer is reference else f"-{tokenizer.sha256[:8]}"

    def own(input_tokens: int | None) -> BuiltSchedule:
        return build(input_tokens) if tokenizer is reference else build(input_tokens).for_tokenizer(tokenizer)

    base, sweep = own(None), workload.sweep
    return Scheduled(
        tokenizer_hash=tokenizer.sha256,
        bundled=bundled,
        measured=base.measured,
        warmup=base.warmup,
        file_name=f"schedule{suffix}.parquet",
        points=() if sweep is None else point_schedules(sweep, own, seed=workload.seed, suffix=suffix),
        output_text=None if base.text is None else base.text.outputs,
    )


def _tokenizer(source: ModelSource) -> tuple[Path, bool]:
    if source.tokenizer_file is not None:
        return source.tokenizer_file, False
    return bundled_tokenizer(), True


def _check_vocabulary(spec: ModelSpec, config: dict[str, Any], schedule: Schedule) -> None:
    vocabulary = config.get("vocab_size") or text_values(config).get("vocab_size")
    largest = max((int(ids.max()) for ids in schedule.input_ids if len(ids)), default=0)
    if vocabulary is not None and largest >= vocabulary:
        raise ModelError(
            f"model {spec.name}: its vocabulary has {vocabulary} entries, the tokenizer made id {largest}; "
            "give the model a folder with its own tokenizer.json"
        )


def _check_positions(spec: ModelSpec, config: dict[str, Any], points: tuple[PointSchedule, ...]) -> None:
    """A point of which the model would refuse every request is a mistake in the workload."""
    limit = config.get("max_position_embeddings") or text_values(config).get("max_position_embeddings")
    for point in points:
        shortest = int((point.measured.input_tokens + point.measured.output_tokens).min())
        if isinstance(limit, int) and shortest > limit:
            raise WorkloadError(
                f"sweep.input_tokens: found {point.point.input_tokens}; with its output every request is over the "
                f"{limit} tokens of model {spec.name}; give shorter prompts"
            )
