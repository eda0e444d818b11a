"""Who competes for replay throughput: our engine as a run drives it, and the two ways of transformers, tuned.

All get the same weights, dtype, threads and prompts, and produce the same number of tokens per request. Ours is fed the
very tokens that ``generate`` chose (a model left to itself repeats itself, and that touches fewer experts), and is
driven by ``replay`` with the tap on and all recorders writing, as in a pass; the others only produce tokens.
What they choose once (engine, manager) is made before the clock starts, and every contender is called once to warm up.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.recorders.requests import RequestRecorder
from moeprof.capture.recorders.routing import PicksWriter, RoutingRecorder
from moeprof.capture.recorders.steps import StepRecorder
from moeprof.capture.replay import Recorder, replay
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.trace import Schedule
from moeprof.core.workload.engine import TransformersSettings

Ids = npt.NDArray[np.int32]
PAD_ID = 0
WINDOW_STEPS = 16
STEP_COUNTS_CAP_BYTES = 64 * 2**20


class Contender(Protocol):
    """Produces the output of a whole schedule."""

    name: str

    def run(self) -> tuple[float, int]:
        """Seconds taken and output tokens produced."""

    def close(self) -> None:
        """Give memory back and leave the model as it was."""


class Watched:
    """A tap and recorders on a model, as a pass has them."""

    def __init__(self, model: Any, schedule: Schedule, listeners: ListenerSet, *, save_detailed: bool = False) -> None:
        self._layers = find_moe_layers(model)
        self._listeners, self._save_detailed = listeners, save_detailed
        self._tap = RoutingTap(model, self._layers, schedule.classes, save_picks=save_detailed)
        self._tap.disable()

    @contextmanager
    def on(self) -> Iterator[None]:
        """Hooks are on the model inside."""
        self._tap.enable()
        self._listeners.listeners.append(self._tap)
        try:
            yield
        finally:
            self._listeners.listeners.remove(self._tap)
            self._tap.disable()

    def recorders(self, folder: Path) -> list[Recorder]:
        """Every recorder of a pass, writing into ``folder``."""
        routing = RoutingRecorder(
            folder,
            self._tap,
            window_steps=WINDOW_STEPS,
            step_counts_cap_bytes=STEP_COUNTS_CAP_BYTES,
            picks=PicksWriter(folder) if self._save_detailed else None,
        )
        return [RequestRecorder(folder), StepRecorder(folder), routing]

    def close(self) -> None:
        """Take the hooks off for good."""
        self._tap.close()


class Ours:
    """The engine of a run under ``replay``, tap and recorders on."""

    def __init__(self, model: Any, schedule: Schedule, *, settings: Mapping[str, Any]) -> None:
        self.name = "moeprof " + " ".join(f"{key}={value}" for key, value in settings.items())
        self._schedule = schedule
        listeners = ListenerSet()
        self._engine = build_engine(
            model, TransformersSettings(kv_tokens=kv_tokens(schedule), **settings), listeners=listeners
        )
        self._watched = Watched(model, schedule, listeners)

    def run(self) -> tuple[float, int]:
        """The pass's duration as a record states it: to the end of the last step; parquet is written after."""
        with tempfile.TemporaryDirectory() as folder, self._watched.on(), collector_asleep():
            result = replay(self._engine, self._schedule, self._watched.recorders(Path(folder)))
        self._engine.reset()
        assert result.finished == len(self._schedule)
        return result.end_s - result.origin_s, int(self._schedule.output_tokens.sum())

    def close(self) -> None:
        """Release the cache and the hooks."""
        self._watched.close()
        self._engine.close()


class Generate:
    """``generate`` on left-padded batches; prompts sorted by length, so that padding is least."""

    def __init__(self, model: Any, schedule: Schedule, *, batch: int, attn: str) -> None:
        self.name = f"generate batch={batch} {attn}"
        self._model, self._attn = model, attn
        self._config = GenerationConfig(
            do_sample=False, eos_token_id=None, pad_token_id=PAD_ID, max_new_tokens=output_tokens(schedule)
        )
        prompts = [ids.tolist() for ids in schedule.input_ids]
        self._order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        chunks = [self._order[i : i + batch] for i in range(0, len(prompts), batch)]
        self._batches = [_left_padded([prompts[row] for row in chunk]) for chunk in chunks]
        self._produced: list[torch.Tensor] = []

    def run(self) -> tuple[float, int]:
        """All batches, one after the other."""
        self._model.set_attn_implementation(self._attn)
        with collector_asleep(), torch.inference_mode():
            start_s = time.perf_counter()
            self._produced = [
                self._model.generate(ids, attention_mask=mask, generation_config=self._config)[:, ids.shape[1] :]
                for ids, mask in self._batches
            ]
            taken_s = time.perf_counter() - start_s
        return taken_s, sum(out.numel() for out in self._produced)

    def outputs(self) -> tuple[Ids, ...]:
        """What the last run produced, in the order of the schedule."""
        rows = [ids for out in self._produced for ids in out.numpy().astype(np.int32)]
        return tuple(ids for _, ids in sorted(zip(self._order, rows, strict=True), key=lambda pair: pair[0]))

    def close(self) -> None:
        """Nothing is held."""


class GenerateBatch:
    """``generate_batch`` with its manager kept between calls, so that only the second call is timed."""

    def __init__(self, model: Any, schedule: Schedule, *, page: int, max_batch_tokens: int, attn: str) -> None:
        self.name = f"generate_batch page={page} max_batch_tokens={max_batch_tokens} {attn}"
        self._model, self._attn = model, attn
        self._prompts = [ids.tolist() for ids in schedule.input_ids]
        self._new_tokens = output_tokens(schedule)
        blocks = sum(-(-(len(ids) + self._new_tokens) // page) + 1 for ids in self._prompts)
        self._generation = GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=PAD_ID, max_new_tokens=self._new_tokens
        )
        self._settings = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=blocks,
            max_batch_tokens=max_batch_tokens,
            allow_block_sharing=False,
            auto_switch_to_flash=False,
        )

    def run(self) -> tuple[float, int]:
        """One call with all prompts."""
        self._model.set_attn_implementation(self._attn)
        with collector_asleep():
            start_s = time.perf_counter()
            out = self._model.generate_batch(
                self._prompts,
                generation_config=self._generation,
                continuous_batching_config=self._settings,
                persistent_manager=True,
            )
            taken_s = time.perf_counter() - start_s
        return taken_s, sum(len(one.generated_tokens) for one in out.values())

    def close(self) -> None:
        """Destroy the manager that transformers keeps on the model."""
        manager = getattr(self._model, "_cached_continuous_batching_manager", None)
        if manager is not None:
            manager.destroy()
            self._model._cached_continuous_batching_manager = None


def kv_tokens(schedule: Schedule) -> int:
    """Cache slots in which all requests fit at once, with a page to spare for each."""
    return int(schedule.input_tokens.sum() + schedule.output_tokens.sum() + 32 * len(schedule))


def output_tokens(schedule: Schedule) -> int:
    """The one output length of all requests (``generate`` gains nothing by a request that ends early)."""
    lengths = set(schedule.output_tokens.tolist())
    assert len(lengths) == 1, "a fair schedule has one output length"
    return int(lengths.pop())


@contextmanager
def collector_asleep() -> Iterator[None]:
    """No garbage collection inside, for every contender alike."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _left_padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[PAD_ID] * (width - len(one)) + one for one in prompts])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in prompts])
    return ids, mask
