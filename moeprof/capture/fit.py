"""Will it fit? Memory predicted before anything is loaded, and the KV space that the schedule needs.

What a model needs: libraries, weights, KV cache, activations of a step, room for captured steps. What may be used: the
free memory less a margin (``engine.memory_margin_ratio`` of all). The KV space is equal for all models: enough for all
requests that can be in flight, bounded by what the tightest model leaves. Loading one model after the other is chosen
where side by side would leave less than half of that space.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import psutil

from moeprof.capture.fit_words import refusal
from moeprof.capture.gpu import Gpu
from moeprof.capture.model_memory import DeviceMemory, ModelMemory, is_paged, model_memory
from moeprof.capture.model_source import ModelSource
from moeprof.core.errors import ModelError
from moeprof.core.trace import Schedule
from moeprof.core.units import num_bytes
from moeprof.core.workload import EngineSettings, ModelSpec

PAGE_TOKENS = 16
SPARE_PAGES = 8
MIN_KV_TOKENS = 256
HEADROOM = 0.9  # of the free memory is counted on where a model joins others in one process
HOST_KV_SHARE = 0.5  # of what is left; the rest of a host's memory is shared with everything else
SIDE_BY_SIDE_SHARE = 0.5  # of the KV space that one model alone would get


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The prediction.

    Attributes:
        memory: of the device.
        margin_bytes: stays free.
        models: by name.
        kv_tokens: KV slots that every model gets.
        wanted_kv_tokens: slots that would hold all requests that can be in flight at once.
        together: True when all models fit at once.
        refusal: why a model cannot run, with what to change; None when all fit.
    """

    memory: DeviceMemory
    margin_bytes: int
    models: dict[str, ModelMemory]
    kv_tokens: int
    wanted_kv_tokens: int
    together: bool
    refusal: str | None = None

    @property
    def free_bytes(self) -> int:
        """Free before the run."""
        return self.memory.free_bytes

    @property
    def usable_bytes(self) -> int:
        """Free less the margin."""
        return max(0, self.memory.free_bytes - self.margin_bytes)

    def needed_bytes(self, name: str) -> int | None:
        """What one model needs; None when its weights are unknown."""
        return self.models[name].needed_bytes(self.kv_tokens)

    def fits(self, name: str) -> bool | None:
        """Whether one model fits by itself; None when its weights are unknown."""
        needed = self.needed_bytes(name)
        return None if needed is None else needed <= self.usable_bytes

    def require(self) -> None:
        """Stop before anything loads.

        Raises:
            ModelError: a model does not fit.
        """
        if self.refusal is not None:
            raise ModelError(self.refusal)

    def to_json(self) -> dict[str, Any]:
        """For the record: what was predicted."""
        facts = {"together": self.together, "kv_tokens": self.kv_tokens, "wanted_kv_tokens": self.wanted_kv_tokens}
        facts |= {"free_bytes": self.free_bytes, "total_bytes": self.memory.total_bytes}
        models = {n: asdict(m) | {"needed_bytes": self.needed_bytes(n)} for n, m in self.models.items()}
        return facts | {"margin_bytes": self.margin_bytes, "models": models}


def predict(
    specs: Iterable[ModelSpec],
    sources: dict[str, ModelSource],
    schedules: Iterable[Schedule],
    *,
    settings: EngineSettings,
    memory: DeviceMemory,
    weights_bytes: dict[str, int | None],
) -> Fit:
    """Predict memory and choose the KV space. Nothing is raised: see :meth:`Fit.require`."""
    chosen = list(specs)
    by_name = {spec.name: spec for spec in chosen}
    models = {
        spec.name: model_memory(
            spec, sources[spec.name].config, weights_bytes[spec.name], settings,
            is_host=memory.is_host, base=by_name.get(spec.twin_of or ""),
        )
        for spec in chosen
    }  # fmt: skip
    most = settings.max_sequences if is_paged(settings, is_host=memory.is_host) else None
    wanted = max((all_at_once_tokens(schedule, most=most) for schedule in schedules), default=MIN_KV_TOKENS)
    margin = int(memory.total_bytes * settings.memory_margin_ratio)
    usable = max(0, memory.free_bytes - margin)
    kv_tokens = settings.kv_tokens or _kv_tokens(list(models.values()), usable, wanted, is_host=memory.is_host)
    known = all(model.weights_bytes is not None for model in models.values())
    side_by_side = sum(m.fixed_bytes + m.kv_bytes(kv_tokens) for m in models.values())
    side_by_side += max((m.load_extra_bytes for m in models.values()), default=0)
    fit = Fit(
        memory=memory,
        margin_bytes=margin,
        models=models,
        kv_tokens=kv_tokens,
        wanted_kv_tokens=wanted,
        together=len(models) == 1 or (known and side_by_side <= usable),
    )
    tight = next((spec for spec in chosen if fit.fits(spec.name) is False), None)
    if tight is None:
        return fit
    return replace(fit, refusal=refusal(tight.name, models[tight.name], fit, settings))


def in_one_process(fit: Fit, names: Sequence[str], what: str) -> Fit:
    """The same prediction, refused where models that are stepped in turn in one process do not fit at once.

    Args:
        fit: the prediction of each alone.
        names: models that are loaded at once.
        what: key of the workload that asks for it, for the message.
    """
    models = [fit.models[name] for name in names]
    if fit.refusal is not None or any(model.weights_bytes is None for model in models):
        return fit
    weights = sum(model.weights_bytes or 0 for model in models)
    beside = max(m.base_bytes + m.activation_bytes + m.workspace_bytes + m.load_extra_bytes for m in models)
    if weights + beside <= fit.usable_bytes:
        return fit
    each = ", ".join(f"{name} {num_bytes(fit.models[name].weights_bytes or 0)}" for name in names)
    said = (
        f"{what}: {len(names)} models are stepped in turn in one process and need {num_bytes(weights + beside)} at "
        f"once (weights: {each}), {num_bytes(fit.usable_bytes)} may be used; name fewer in {what}.models, or leave "
        f"{what} out"
    )
    return replace(fit, refusal=said)


def device_memory(device: str, gpu: Gpu | None) -> DeviceMemory:
    """Memory of the device as NVML tells it, or of the host where it cannot be asked."""
    free = free_memory_bytes(device, gpu)
    reading = gpu.read() if gpu is not None and device != "cpu" else None
    if reading is not None and reading.memory_total_bytes and reading.memory_used_bytes is not None:
        return DeviceMemory(total_bytes=reading.memory_total_bytes, free_bytes=free, is_host=False)
    total = int(psutil.virtual_memory().total)
    return DeviceMemory(total_bytes=total, free_bytes=free, is_host=device == "cpu")


def free_memory_bytes(device: str, gpu: Gpu | None) -> int:
    """Free memory of the device, or of the host for a CPU run."""
    reading = gpu.read() if gpu is not None and device != "cpu" else None
    if reading is not None and reading.memory_total_bytes and reading.memory_used_bytes is not None:
        return reading.memory_total_bytes - reading.memory_used_bytes
    return int(psutil.virtual_memory().available)


def _kv_tokens(models: list[ModelMemory], usable: int, wanted: int, *, is_host: bool) -> int:
    """The most that every model can have, side by side unless that costs half of it."""
    share = HOST_KV_SHARE if is_host else 1.0

    def room(left: int, per_token: int) -> int:
        return int(max(0, left) * share // per_token) // PAGE_TOKENS * PAGE_TOKENS

    alone = min([wanted, *(room(usable - m.fixed_bytes, m.kv_bytes_per_token) for m in models if m.kv_bytes_per_token)])
    left = usable - sum(m.fixed_bytes for m in models) - max((m.load_extra_bytes for m in models), default=0)
    per_token = sum(m.kv_bytes_per_token or 0 for m in models)
    shared = min(wanted, room(left, per_token)) if per_token else wanted
    return max(MIN_KV_TOKENS, shared if shared >= SIDE_BY_SIDE_SHARE * alone else alone)


def all_at_once_tokens(schedule: Schedule, *, most: int | None = None) -> int:
    """KV slots for as many requests as can be in flight at once (the longest ones), in whole pages, and some spare.

    Args:
        schedule: the requests.
        most: sequences that the engine takes at once, or None.
    """
    bounds = [bound for bound in (schedule.concurrency, most) if bound is not None]
    lengths = np.sort(schedule.input_tokens + schedule.output_tokens)[::-1][: min(bounds, default=None)]
    pages = int(((lengths + PAGE_TOKENS - 1) // PAGE_TOKENS + 1).sum()) + SPARE_PAGES
    # The scheduler keeps a share of the cache free before it admits prompts; without this it would hold some back.
    return int(pages * PAGE_TOKENS * 1.2)
