"""The schedules of an experiment: one per tokenizer, made once, saved, hashed, given to every model that shares it.

The first model's tokenizer is the reference: text is cut to token counts under it. Models with the same tokenizer hash
get the same ids; others get the same text in their own ids, and are compared per character and per request only. A
model without a tokenizer uses the bundled one if its vocabulary is large enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from moeprof.capture.model_source import ModelSource
from moeprof.capture.sweep_schedules import Build, PointSchedule, point_schedules
from moeprof.core.errors import ModelError, WorkloadError
from moeprof.core.trace import Schedule
from moeprof.core.workload import ModelSpec, Workload
from moeprof.sources.schedule import BuiltSchedule, build_schedule
from moeprof.sources.tokenizer import TextTokenizer, load_tokenizer


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
    return Path(str(resources.files("moeprof").joinpath("data/tokenizer/tokenizer.json"))), True


def _check_vocabulary(spec: ModelSpec, config: dict[str, Any], schedule: Schedule) -> None:
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    largest = max((int(ids.max()) for ids in schedule.input_ids if len(ids)), default=0)
    if vocabulary is not None and largest >= vocabulary:
        raise ModelError(
            f"model {spec.name}: its vocabulary has {vocabulary} entries, the tokenizer made id {largest}; "
            "give the model a folder with its own tokenizer.json"
        )


def _check_positions(spec: ModelSpec, config: dict[str, Any], points: tuple[PointSchedule, ...]) -> None:
    """A point of which the model would refuse every request is a mistake in the workload."""
    limit = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings")
    for point in points:
        shortest = int((point.measured.input_tokens + point.measured.output_tokens).min())
        if isinstance(limit, int) and shortest > limit:
            raise WorkloadError(
                f"sweep.input_tokens: found {point.point.input_tokens}; with its output every request is over the "
                f"{limit} tokens of model {spec.name}; give shorter prompts"
            )
