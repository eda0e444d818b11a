"""Will it fit? Memory predicted before anything is loaded, and the KV space that the schedule needs.

What a model needs: libraries, weights (file sizes, or the parameters of the config counted without memory), KV cache,
activations of a step, room for captured steps. What may be used: the free memory less a margin
(``engine.memory_margin_ratio`` of all). The KV space is equal for all models: enough for all requests that can be in
flight, bounded by what the tightest model leaves. Loading one model after the other is chosen where side by side would
leave less than half of that space. A refusal is one line: what is needed, what is there, which setting to lower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from moeprof.capture.devices.gpu import Gpu
from moeprof.capture.devices.host_memory import host_room
from moeprof.capture.memory.shape import (
    HOST_BASE_BYTES,
    DeviceMemory,
    HostMemory,
    ModelMemory,
    dtype_bytes,
    is_paged,
    model_memory,
)
from moeprof.capture.models.find import ModelSource
from moeprof.capture.models.shapes import stored_bytes
from moeprof.core.errors import ModelError
from moeprof.core.record.experiment import FitHeader, ModelFit
from moeprof.core.record.headers import part_of
from moeprof.core.trace import Schedule
from moeprof.core.turns import most_at_once
from moeprof.core.units import num_bytes
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

PAGE_TOKENS = 16
SPARE_PAGES = 8
LEAST_KV_TOKENS = 256
LEAST_BATCH_TOKENS = 16


def refusal(name: str, model: ModelMemory, fit: Fit, settings: TransformersSettings) -> str:
    """One line for a model that does not fit."""
    needed = model.needed_bytes(fit.kv_tokens) or 0
    free, total = num_bytes(fit.memory.free_bytes), num_bytes(fit.memory.total_bytes)
    total += " (the limit of this container)" if fit.memory.is_limited else ""
    return (
        f"model {name}: needs about {num_bytes(needed)} ({parts(model, fit.kv_tokens)}), but {free} of {total} is "
        f"free and {num_bytes(fit.margin_bytes)} stays as margin (engine.memory_margin_ratio "
        f"{settings.memory_margin_ratio:g}); {remedy(model, fit.usable_bytes, fit.kv_tokens, settings)}"
    )


def parts(model: ModelMemory, kv_tokens: int) -> str:
    """What a model needs, part by part, the large ones only."""
    found = [
        (model.weights_bytes or 0, "weights"),
        (model.kv_bytes(kv_tokens), f"KV cache of {kv_tokens:,} tokens"),
        (model.activation_bytes, "activations"),
        (model.load_extra_bytes, "more while loading"),
        (model.workspace_bytes, "captured steps and libraries' workspace"),
        (model.base_bytes + model.kept_bytes, "for the process itself"),
        (model.instruments_bytes, "for instruments"),
    ]
    return ", ".join(f"{num_bytes(size)} {what}" for size, what in found if size)


def remedy(model: ModelMemory, usable_bytes: int, kv_tokens: int, settings: TransformersSettings) -> str:
    """Which setting to lower to which value, the mildest that helps."""
    left = usable_bytes - model.fixed_bytes
    if model.kv_bytes_per_token and left >= LEAST_KV_TOKENS * model.kv_bytes_per_token:
        fitting = left // model.kv_bytes_per_token // PAGE_TOKENS * PAGE_TOKENS
        if fitting < kv_tokens:
            return f"lower engine.kv_tokens from {kv_tokens} to {fitting}"
    without = model.fixed_bytes - model.activation_bytes + model.kv_bytes(LEAST_KV_TOKENS)
    ratio = (usable_bytes - without) / model.activation_bytes if model.activation_bytes else 0.0
    tokens = int(settings.max_batch_tokens * ratio) // PAGE_TOKENS * PAGE_TOKENS
    if LEAST_BATCH_TOKENS <= tokens < settings.max_batch_tokens:
        return (
            f"lower engine.max_batch_tokens from {settings.max_batch_tokens} to {tokens} "
            f"and engine.kv_tokens to {LEAST_KV_TOKENS}"
        )
    layers = int(model.layers_to_cut * (usable_bytes - without + (model.weights_bytes or 0) - model.activation_bytes)
                 // max(1, model.weights_bytes or 0))  # fmt: skip
    fewer = f", {layers} of {model.layers_to_cut} layers (override: {{num_hidden_layers: {layers}}})"
    return (
        "its weights leave no room for a step: choose a smaller model or dtype"
        f"{fewer if 0 < layers < model.layers_to_cut else ''}, or free memory"
    )


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

    def header(self) -> FitHeader:
        """For the record: what was predicted."""
        models = {n: asdict(m) | {"needed_bytes": self.needed_bytes(n)} for n, m in self.models.items()}
        return FitHeader(
            together=self.together,
            kv_tokens=self.kv_tokens,
            wanted_kv_tokens=self.wanted_kv_tokens,
            free_bytes=self.free_bytes,
            total_bytes=self.memory.total_bytes,
            margin_bytes=self.margin_bytes,
            models={name: part_of(ModelFit, facts) for name, facts in models.items()},
        )


def predict(
    specs: Iterable[ModelSpec],
    sources: dict[str, ModelSource],
    schedules: Iterable[Schedule],
    *,
    settings: TransformersSettings,
    memory: DeviceMemory,
    weights_bytes: dict[str, int | None],
    host_base_bytes: int | None = None,
    profiles: bool = False,
) -> Fit:
    """Predict memory and choose the KV space. Nothing is raised: see :meth:`Fit.require`.

    Args:
        specs: the models.
        sources: where they are.
        schedules: what will be sent.
        settings: of the engine.
        memory: of the device.
        weights_bytes: by model; None where only loading will tell.
        host_base_bytes: what a process of this machine takes before it loads anything; None where it was not measured.
        profiles: steps will be profiled after the rounds.
    """
    chosen = list(specs)
    by_name = {spec.name: spec for spec in chosen}
    models = {
        spec.name: model_memory(
            spec, sources[spec.name].config, weights_bytes[spec.name], settings,
            is_host=memory.is_host, base=by_name.get(spec.twin_of or ""),
            host=_host(sources[spec.name], spec, host_base_bytes, profiles=profiles),
        )
        for spec in chosen
    }  # fmt: skip
    most = settings.max_sequences if is_paged(settings, is_host=memory.is_host) else None
    wanted = max((all_at_once_tokens(schedule, most=most) for schedule in schedules), default=LEAST_KV_TOKENS)
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


def _host(source: ModelSource, spec: ModelSpec, base_bytes: int | None, *, profiles: bool) -> HostMemory:
    reads = source.twin is None or spec.initialise == "popular_experts"
    files = (source.weights_bytes or 0) if reads else 0
    return HostMemory(base_bytes=base_bytes or HOST_BASE_BYTES, file_bytes=files, profiles=profiles)


def elsewhere(memory: DeviceMemory, schedules: Iterable[Schedule], *, together: bool = True) -> Fit:
    """No prediction: the models are not in this process's memory, so nothing is refused for want of room."""
    wanted = max((all_at_once_tokens(schedule) for schedule in schedules), default=LEAST_KV_TOKENS)
    return Fit(memory=memory, margin_bytes=0, models={}, kv_tokens=wanted, wanted_kv_tokens=wanted, together=together)


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
    beside = max(m.beside_bytes + m.load_extra_bytes for m in models)
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
    room = host_room()
    return DeviceMemory(
        total_bytes=room.total_bytes, free_bytes=free, is_host=device == "cpu", is_limited=room.is_limited
    )


def free_memory_bytes(device: str, gpu: Gpu | None) -> int:
    """Free memory of the device, or of the host for a CPU run."""
    reading = gpu.read() if gpu is not None and device != "cpu" else None
    if reading is not None and reading.memory_total_bytes and reading.memory_used_bytes is not None:
        return reading.memory_total_bytes - reading.memory_used_bytes
    return host_room().free_bytes


def _kv_tokens(models: list[ModelMemory], usable: int, wanted: int, *, is_host: bool) -> int:
    """The most that every model can have, side by side unless that costs half of it."""
    share = HOST_KV_SHARE if is_host else 1.0

    def room(left: int, per_token: int) -> int:
        return int(max(0, left) * share // per_token) // PAGE_TOKENS * PAGE_TOKENS

    alone = min([wanted, *(room(usable - m.fixed_bytes, m.kv_bytes_per_token) for m in models if m.kv_bytes_per_token)])
    left = usable - sum(m.fixed_bytes for m in models) - max((m.load_extra_bytes for m in models), default=0)
    per_token = sum(m.kv_bytes_per_token or 0 for m in models)
    shared = min(wanted, room(left, per_token)) if per_token else wanted
    return max(LEAST_KV_TOKENS, shared if shared >= SIDE_BY_SIDE_SHARE * alone else alone)


def all_at_once_tokens(schedule: Schedule, *, most: int | None = None) -> int:
    """KV slots for as many requests as can be in flight at once (the longest ones), in whole pages, and some spare.

    Args:
        schedule: the requests.
        most: sequences that the engine takes at once, or None.
    """
    bounds = [bound for bound in (schedule.concurrency, most) if bound is not None]
    pages_N = (schedule.input_tokens + schedule.output_tokens + PAGE_TOKENS - 1) // PAGE_TOKENS + 1
    pages = int(np.sort(pages_N)[::-1][: min(bounds, default=None)].sum())
    if schedule.turns is not None and schedule.turns.is_closed:  # requests of a conversation mostly wait for each other
        pages = min(pages, int(most_at_once(pages_N, schedule.turns.after).sum()))
    pages += SPARE_PAGES
    # The scheduler keeps a share of the cache free before it admits prompts; without this it would hold some back.
    return int(pages * PAGE_TOKENS * 1.2)


def estimate_weights_bytes(
    models: Sequence[ModelSpec],
    sources: dict[str, ModelSource],
    settings: TransformersSettings,
    params: Mapping[str, int | None],
    *,
    is_host: bool = True,
) -> dict[str, int | None]:
    """Bytes on the device by model; None when only loading will tell.

    Files are as large as they are, and quantised weights are taken to be as large as their files; random weights, twins
    and what the hub has yet to send are ``params`` parameters.
    """
    by_name = {spec.name: spec for spec in models}
    found: dict[str, int | None] = {}
    for spec in models:
        source, base = sources[spec.name], by_name.get(spec.twin_of or "")
        stored = stored_bytes(source.config)
        width = dtype_bytes(spec, source.config, settings, is_host=is_host, base=base)
        count = params.get(spec.name)
        if source.weights_bytes is not None:
            width = stored if "quantization_config" in source.config else width
            found[spec.name] = source.weights_bytes * width // stored
        else:
            known = count is not None and ("quantization_config" not in source.config or spec.weights == "random")
            found[spec.name] = (count or 0) * width if known else None
    for spec in models:
        mine, moe = found[spec.name], found.get(spec.twin_of or "")
        if spec.initialise == "popular_experts" and mine is not None and moe is not None:
            found[spec.name] = max(mine, moe)  # the MoE is in memory until its experts have been looked at
    return found
