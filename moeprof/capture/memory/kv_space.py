"""The KV space is what weights and a measured activation peak leave, less a margin: checked before it is allocated.

The parent has predicted one size for all models, because a model with more cache than another would be compared
unfairly. So the worker lowers nothing: it measures, and where the predicted cache does not fit it stops with numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from moeprof.capture import compat
from moeprof.capture.devices.host_memory import host_room
from moeprof.capture.memory.predict import PAGE_TOKENS, remedy
from moeprof.capture.memory.shape import ModelMemory, dtype_bytes, is_paged, model_memory
from moeprof.capture.models.shapes import kv_bytes_per_token
from moeprof.core.errors import OutOfMemoryError
from moeprof.core.units import num_bytes
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

# Eager attention holds a matrix of scores per head; a long prompt in one piece would measure that and not the engine.
MOST_EAGER_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSpace:
    """The cache that is about to be allocated, and that it fits.

    Attributes:
        kv_tokens: slots; what the parent chose for all models.
        kv_bytes: of keys and values; None for caches of another kind.
        activation_peak_bytes: of one step.
        workspace_bytes: for captured steps and libraries.
        margin_bytes: stays free.
        free_bytes: free on the device with the weights loaded.
        most_kv_tokens: slots that would fit; None where bytes per token are unknown.
        reason: how the activation peak was found.
    """

    kv_tokens: int
    kv_bytes: int | None
    activation_peak_bytes: int
    workspace_bytes: int
    margin_bytes: int
    free_bytes: int
    most_kv_tokens: int | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        """For launch.json."""
        return asdict(self)


def kv_space(
    model: Any,
    spec: ModelSpec,
    config: dict[str, Any],
    settings: TransformersSettings,
    device: torch.device,
    *,
    base: ModelSpec | None = None,
    bytes_per_token: int | None = None,
    run: Callable[[], None] | None = None,
) -> KvSpace:
    """Measure and check, with the weights loaded and before the cache is allocated.

    Args:
        model: loaded.
        spec: its spec.
        config: the raw config.json (of the MoE for a twin), as ModelSource has it.
        settings: ``kv_tokens`` resolved.
        device: where the model is.
        base: for a twin, the spec of its MoE.
        bytes_per_token: of the engine's cache where it knows; else from the config.
        run: one step of ``max_batch_tokens`` tokens without a cache; the model's plain forward when left out.

    Raises:
        OutOfMemoryError: it does not fit; how much is there and which setting to lower to which value.
    """
    is_host = device.type != "cuda"
    weights = sum(t.numel() * t.element_size() for t in {id(p): p for p in model.parameters()}.values())
    needs = model_memory(spec, config, weights, settings, is_host=is_host, base=base)
    rows = min(settings.max_batch_tokens, settings.max_sequences)
    step = run or plain_step(model, settings.max_batch_tokens, rows if is_paged(settings, is_host=is_host) else None)
    peak = activation_peak(device, step, estimate_bytes=needs.activation_bytes)
    if bytes_per_token is None:
        element = dtype_bytes(spec, config, settings, is_host=is_host, base=base)
        bytes_per_token = kv_bytes_per_token(config, width_bytes=element, paged=is_paged(settings, is_host=is_host))
    free, total = device_free_bytes(device)
    return fitting_space(
        spec.name, needs, settings, str(device), peak=peak, bytes_per_token=bytes_per_token, free_bytes=free,
        total_bytes=total,
    )  # fmt: skip


def fitting_space(
    name: str,
    needs: ModelMemory,
    settings: TransformersSettings,
    device: str,
    *,
    peak: tuple[int, str],
    bytes_per_token: int | None,
    free_bytes: int,
    total_bytes: int,
) -> KvSpace:
    """The space of ``settings.kv_tokens`` slots, if it fits: free less activations, workspace and margin.

    Raises:
        OutOfMemoryError: it does not.
    """
    (peak_bytes, how), kv_tokens = peak, settings.kv_tokens or 0
    margin = int(total_bytes * settings.memory_margin_ratio)
    taken = peak_bytes + needs.workspace_bytes + margin
    left = free_bytes - taken
    per_token = bytes_per_token or 0
    if left < kv_tokens * per_token:
        # The same words as the prediction's, with what was measured; weights and libraries lie in memory already.
        known = ModelMemory(
            weights_bytes=0, load_extra_bytes=0, kv_bytes_per_token=bytes_per_token, activation_bytes=peak_bytes,
            workspace_bytes=needs.workspace_bytes, base_bytes=0, layers_to_cut=0,
        )  # fmt: skip
        raise OutOfMemoryError(
            f"model {name}: the KV cache of {kv_tokens:,} tokens needs {num_bytes(kv_tokens * per_token)}, but "
            f"{num_bytes(max(0, left))} of {num_bytes(total_bytes)} is left on {device}: {num_bytes(free_bytes)} free "
            f"beside {num_bytes(needs.weights_bytes or 0)} of weights, less {num_bytes(peak_bytes)} of activations "
            f"({how}), {num_bytes(needs.workspace_bytes)} of workspace and {num_bytes(margin)} of margin; "
            f"{remedy(known, free_bytes - margin, kv_tokens, settings)}"
        )
    return KvSpace(
        kv_tokens=kv_tokens,
        kv_bytes=None if bytes_per_token is None else kv_tokens * bytes_per_token,
        activation_peak_bytes=peak_bytes,
        workspace_bytes=needs.workspace_bytes,
        margin_bytes=margin,
        free_bytes=free_bytes,
        most_kv_tokens=left // bytes_per_token // PAGE_TOKENS * PAGE_TOKENS if bytes_per_token else None,
        reason=f"activation peak {how}",
    )


def activation_peak(device: torch.device, run: Callable[[], None], *, estimate_bytes: int) -> tuple[int, str]:
    """What one step takes at its worst beside weights and cache, and how that was found: ``measured`` or ``estimated``.

    Measured by the allocator on a GPU; elsewhere, and where the step cannot run, the estimate with the reason.
    """
    if device.type != "cuda":
        return estimate_bytes, "estimated from the config: no allocator on a CPU"
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        run()
        torch.cuda.synchronize(device)
        measured = max(0, torch.cuda.max_memory_allocated(device) - before)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"a step of engine.max_batch_tokens tokens does not fit on {device} beside the weights "
            f"(about {num_bytes(estimate_bytes)} was expected): lower engine.max_batch_tokens ({error})"
        ) from error
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        said = (str(error).splitlines() or [""])[0][:100]
        return estimate_bytes, f"estimated from the config: a plain step failed ({type(error).__name__}: {said})"
    finally:
        torch.cuda.empty_cache()  # its blocks would not fit the cache, and would count as taken
    return measured, "measured in one step"


def plain_step(model: Any, num_tokens: int, logit_rows: int | None) -> Callable[[], None]:
    """One forward of so many tokens without a cache.

    Args:
        model: the model.
        num_tokens: of the step, in one sequence.
        logit_rows: rows of which logits are made; None: all of them.
    """

    def run() -> None:
        config = model.config.get_text_config(decoder=True)
        is_eager = compat.attention_of(config) == "eager"
        if is_eager and num_tokens > MOST_EAGER_TOKENS:
            raise NotImplementedError(f"eager attention holds {num_tokens} x {num_tokens} scores per head")
        ids = torch.zeros(1, num_tokens, dtype=torch.long, device=model.device)
        few = {} if logit_rows is None else {"logits_to_keep": logit_rows}
        keeps_few = "logits_to_keep" in inspect.signature(model.forward).parameters
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False, **(few if keeps_few else {})).logits
            logits.float().argmax(dim=-1)  # what a step makes of them

    return run


def device_free_bytes(device: torch.device) -> tuple[int, int]:
    """Free and all bytes of the device, or of the host."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused), int(total)
    room = host_room()
    return room.free_bytes, room.total_bytes
