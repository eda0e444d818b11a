"""What only torch can tell of models before they load, asked of one short-lived process: the parent stays without it.

A run and a dry run ask the same, so that what a worker would refuse is refused here: a config or a class that
transformers cannot build, a layer that cannot be measured, routing or batching that a layer does not allow, a folder
whose tensors are not the class's. What only the device can tell (kernels, memory that others take meanwhile) is found
when a worker loads, and so are wrong tensors of quantised, shared and hub checkpoints and of those over READ_BYTES.

The process imports what a worker imports and uses each library once, so it also tells what a worker takes beside its
model.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from moeprof.capture.models.find import ModelSource
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS, LayerShape
from moeprof.core.errors import MoeprofError
from moeprof.core.signals import held_back
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

PATIENCE_S = 180.0
READ_BYTES = 4 * 2**30  # of a checkpoint; larger ones would take a dry run more than seconds to go through
MANY_EXPERTS = 1024  # code that keeps each expert as its own module takes tens of seconds to build that many


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A model to look at.

    Attributes:
        spec: the model.
        base: for a twin, the spec of its MoE.
        source: where it is; that of the MoE for a twin.
        settings: of the engine that will run it.
        weights: look at the names and shapes of tensors in its files too; a run leaves that to whoever loads them.
    """

    spec: ModelSpec
    base: ModelSpec | None
    source: ModelSource
    settings: TransformersSettings
    weights: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was seen of a model without weights.

    Attributes:
        params: of the whole; None where that was not counted.
        shapes: of its MoE layers.
        refusal: why a worker could not run it, or None.
    """

    params: int | None = None
    shapes: tuple[LayerShape, ...] = ()
    refusal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """The answers.

    Attributes:
        answers: by model; empty where the process died, which loading will explain.
        base_bytes: resident set of a process that has imported and used what a worker does; None where it died.
    """

    answers: dict[str, Answer]
    base_bytes: int | None = None


class Examination:
    """The process, from the start on; ask for :meth:`result` later, and do something else meanwhile."""

    def __init__(self, questions: Sequence[Question], threads: int | None = None) -> None:
        self._names = [question.spec.name for question in questions]
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_answer_all, args=(list(questions), threads, theirs), daemon=True)
        with held_back():
            self._process.start()
        theirs.close()

    def result(self) -> Examined:
        """Wait for the answers."""
        try:
            found = self._ours.recv() if self._ours.poll(PATIENCE_S) else None
        except EOFError:
            found = None
        finally:
            self.close()
        if found is None:
            return Examined(answers={})
        base_bytes, answers = found
        return Examined(answers=dict(zip(self._names, answers, strict=True)), base_bytes=base_bytes)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _answer_all(questions: list[Question], threads: int | None, connection: Connection) -> None:
    import os
    import sys

    from moeprof.capture.devices.process import end_with_parent, set_up_process

    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - what libraries print here is not the user's; refusals are sent
    end_with_parent(0)  # it began deaf to signals, and stays so: the parent ends it
    set_up_process(threads)
    answers = [answer(question) for question in questions]
    connection.send((_warm_bytes(threads) if questions else None, answers))


def _warm_bytes(threads: int | None) -> int:
    """Resident set once everything that a worker needs is imported, and has run once."""
    import os

    import pandas  # noqa: F401 - what tables are read with
    import psutil
    import pyarrow.parquet  # noqa: F401
    import torch
    from torch.profiler import ProfilerActivity, profile

    import moeprof.capture.engines.hf
    import moeprof.capture.measure.breakdown
    import moeprof.capture.measure.overhead
    import moeprof.capture.measure.quality
    import moeprof.capture.measure.teacher_forced
    import moeprof.capture.worker.lanes
    import moeprof.capture.worker.solo  # noqa: F401

    if threads is not None:
        torch.set_num_threads(threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library talks on stderr
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for dtype in (torch.float32, torch.bfloat16):
            square, heads = torch.ones(256, 256, dtype=dtype), torch.ones(1, 4, 64, 64, dtype=dtype)
            (square @ square).softmax(dim=-1)
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    profiler.key_averages()
    return int(psutil.Process().memory_info().rss)


def answer(question: Question) -> Answer:
    """Look at one model, in this process."""
    try:
        return _seen(question)
    except MoeprofError as error:
        said, name = str(error), question.spec.name
        return Answer(refusal=said if f"model {name}" in said else f"model {name}: {said}")


def _seen(question: Question) -> Answer:
    from moeprof.capture.engines.hf import refuse_batching
    from moeprof.capture.models.language_model import leave_out_other_parts
    from moeprof.capture.models.load import outline_of, read_config_object
    from moeprof.capture.models.moe_layers import find_moe_layers, layer_shapes
    from moeprof.capture.models.twins import check_unquantised, read_layers, replace_experts

    spec, base, settings = question.spec, question.base, question.settings
    if (base or spec).trust_remote_code:
        return Answer()  # a stranger's code is run once, where the model is measured
    config = read_config_object(base or spec, question.source)
    if _has_many_experts(config):
        return Answer()
    if base is not None:
        check_unquantised(config, spec)
    model: Any = outline_of(base or spec, config, settings)
    leave_out_other_parts(model)
    if base is not None:
        replace_experts(model, read_layers(model, spec), spec)
    refuse_batching(model, settings)
    layers = find_moe_layers(model)
    if layers and spec.routing.policy != "native":
        from moeprof.capture.routing.override import check_overridable

        check_overridable(layers, f"routing policy {spec.routing.policy}")
    if base is None and question.weights:
        _check_weights(question)
    params = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    return Answer(params=params, shapes=tuple(layer_shapes(layers)))


def _check_weights(question: Question) -> None:
    """Load a checkpoint's folder as a worker does, onto no device: names and shapes must be the class's."""
    import torch

    from moeprof.capture.models.load import load_model, read_blueprint

    spec, source, settings = question.spec, question.source, question.settings
    if spec.weights == "random" or source.folder is None or settings.parallel is not None:
        return
    if source.config.get("quantization_config") is not None:
        return  # what unpacks the tensors needs the device
    if sum(file.stat().st_size for file in source.folder.glob("*.safetensors")) > READ_BYTES:
        return
    nowhere = torch.device("meta")
    load_model(spec, source, read_blueprint(spec, source, settings, torch.device("cpu")), settings, nowhere)


def _has_many_experts(config: Any) -> bool:
    counts = [getattr(config.get_text_config(), key, None) for key in EXPERT_COUNT_KEYS]
    return any(isinstance(count, int) and count >= MANY_EXPERTS for count in counts)
