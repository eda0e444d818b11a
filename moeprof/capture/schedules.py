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
from moeprof.core.errors import ModelError
from moeprof.core.trace import Schedule
from moeprof.core.workload import ModelSpec, Workload
from moeprof.sources.schedule import BuiltSchedule, build_schedule
from moeprof.sources.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """The schedules of one tokenizer.

    Attributes:
        tokenizer_hash: sha256 of tokenizer.json.
        bundled: True when it is moeprof's own, for models that have none.
        measured: the schedule of every pass.
        warmup: other prompts, for warm-up and calibration.
        file_name: where the measured schedule lies in the record.
    """

    tokenizer_hash: str
    bundled: bool
    measured: Schedule
    warmup: Schedule
    file_name: str


def make_schedules(workload: Workload, sources: dict[str, ModelSource]) -> dict[str, Scheduled]:
    """The schedules by model name.

    Raises:
        TraceError, WorkloadError: see the traffic.
        ModelError: a vocabulary is too small for the bundled tokenizer.
    """
    by_hash: dict[str, Scheduled] = {}
    by_model: dict[str, Scheduled] = {}
    reference: BuiltSchedule | None = None
    for spec in workload.models:
        file, bundled = _tokenizer(sources[spec.name])
        tokenizer = load_tokenizer(file)
        if tokenizer.sha256 not in by_hash:
            if reference is None:
                built = reference = build_schedule(
                    workload.traffic,
                    tokenizer=tokenizer,
                    seed=workload.seed,
                    outputs=workload.outputs,
                    num_warmups=workload.warmup.num_requests,
                )
                name = "schedule.parquet"
            else:
                built = reference.for_tokenizer(tokenizer)
                name = f"schedule-{tokenizer.sha256[:8]}.parquet"
            by_hash[tokenizer.sha256] = Scheduled(
                tokenizer_hash=tokenizer.sha256,
                bundled=bundled,
                measured=built.measured,
                warmup=built.warmup,
                file_name=name,
            )
        by_model[spec.name] = by_hash[tokenizer.sha256]
        _check_vocabulary(spec, sources[spec.name].config, by_model[spec.name].measured)
    return by_model


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
