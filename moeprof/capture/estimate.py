"""Bytes of the models' weights before they load: file sizes, or the parameters of the config counted without memory."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from moeprof.capture.memory_shape import stored_bytes
from moeprof.capture.model_memory import dtype_bytes
from moeprof.capture.model_source import ModelSource
from moeprof.core.errors import ModelError, MoeprofError
from moeprof.core.workload import EngineSettings, ModelSpec

PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """What the counting process is asked: the parameters of a config, or of the dense twin of it."""

    spec: ModelSpec
    config_json: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """Parameters, or why there is no such twin, or neither: the architecture is unknown and loading will say so."""

    params: int | None = None
    refusal: str | None = None


def estimate_weights_bytes(
    models: Sequence[ModelSpec], sources: dict[str, ModelSource], settings: EngineSettings, *, is_host: bool = True
) -> dict[str, int | None]:
    """Bytes on the device by model; None when only loading will tell.

    Random weights and twins are counted in one short-lived process, because that needs torch and the parent stays
    without. Quantised weights are taken to be as large as their files.

    Raises:
        ModelError: a twin of a model that has no dense twin.
    """
    by_name = {spec.name: spec for spec in models}
    asked = [
        _Count(spec=spec, config_json=json.dumps(sources[spec.name].config))
        for spec in models
        if spec.twin_of is not None or (sources[spec.name].weights_bytes is None and spec.weights == "random")
    ]
    answers = dict(zip([count.spec.name for count in asked], _count_in_process(asked), strict=True))
    refused = next((answer.refusal for answer in answers.values() if answer.refusal is not None), None)
    if refused is not None:
        raise ModelError(refused)
    found: dict[str, int | None] = {}
    for spec in models:
        source, base = sources[spec.name], by_name.get(spec.twin_of or "")
        stored = stored_bytes(source.config)
        width = dtype_bytes(spec, source.config, settings, is_host=is_host, base=base)
        params = answers[spec.name].params if spec.name in answers else None
        if source.weights_bytes is not None:
            width = stored if "quantization_config" in source.config else width
            found[spec.name] = source.weights_bytes * width // stored
        else:
            found[spec.name] = None if params is None else params * width
    for spec in models:
        mine, moe = found[spec.name], found.get(spec.twin_of or "")
        if spec.initialise == "popular_experts" and mine is not None and moe is not None:
            found[spec.name] = max(mine, moe)  # the MoE is in memory until its experts have been looked at
    return found


def _count_in_process(asked: list[_Count]) -> list[_Answer]:
    if not asked:
        return []
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_count_all, args=(asked, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answers: list[_Answer] = ours.recv() if ours.poll(PATIENCE_S) else []
    except EOFError:
        answers = []  # the process died; loading will say why
    finally:
        process.kill()
        process.join()
    return answers or [_Answer() for _ in asked]


def _count_all(asked: list[_Count], connection: Connection) -> None:
    import os
    import sys

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - a failure here is told by silence, loading tells it in words
    connection.send([_count(count) for count in asked])


def _count(count: _Count) -> _Answer:
    from transformers import AutoConfig

    from moeprof.capture.meta_models import facts_from_config

    values: dict[str, Any] = json.loads(count.config_json)
    try:
        config = AutoConfig.for_model(values.pop("model_type"), **values)
        if count.spec.twin_of is None:
            return _Answer(params=facts_from_config(config, name="", source="").total_params)
    except (MoeprofError, ValueError, KeyError):
        return _Answer()
    return _count_twin(config, count.spec)


def _count_twin(config: Any, spec: ModelSpec) -> _Answer:
    from moeprof.capture.meta_models import build_on_meta
    from moeprof.capture.twins import check_unquantised, read_layers, replace_experts

    try:
        check_unquantised(config, spec)
        model = build_on_meta(config, name=spec.name)
        replace_experts(model, read_layers(model, spec), spec)
    except MoeprofError as error:
        return _Answer(refusal=str(error))
    return _Answer(params=sum(p.numel() for p in model.parameters()))
