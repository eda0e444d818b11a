"""Every reach into what torch and transformers keep private, so that a new version is checked in one place.

Seen: where each item was found to be as it is used here. Parameters, buffers and children of a module
(``_parameters``, ``_buffers``, ``_modules``) are read where they are needed: they have never changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def attention_of(config: Any) -> str | None:
    """Name of the attention that a config has in force; None where it names none.

    Seen: transformers 5.17 and 5.23 (``set_attn_implementation`` is public, reading it back is not).
    """
    return getattr(config, "_attn_implementation", None)


def experts_of(config: Any) -> str | None:
    """Name of the experts implementation that a config has in force; None for models without one.

    Seen: transformers 5.17 and 5.23.
    """
    return getattr(config, "_experts_implementation", None)


def forget_experts_of(config: Any) -> None:
    """Name the implementation that dense models have; none of its kernels runs. Seen: transformers 5.17 and 5.23."""
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"


def mapped_classes(auto: Any, config: Any) -> tuple[Any, ...]:
    """The classes that an auto class builds of this kind of config; empty where it knows none.

    Seen: transformers 5.17 and 5.23 (``_model_mapping`` gives one class, or a list or tuple of them).
    """
    found = auto._model_mapping.get(type(config), None)
    if found is None:
        return ()
    return tuple(found) if isinstance(found, (list, tuple)) else (found,)


def supports_sdpa(model_class: Any) -> bool:
    """False where a class says that torch's own attention does not do. Seen: transformers 5.17 and 5.23."""
    return getattr(model_class, "_supports_sdpa", True) is not False


def from_config_of(model_class: Any) -> Any:
    """What builds a class of its config without weights, or None. Seen: transformers 5.17 and 5.23."""
    return getattr(model_class, "_from_config", None)


def initialise(owner: Any, module: nn.Module) -> None:
    """Give a module the first weights that the class of ``owner`` gives it. Seen: transformers 5.17 and 5.23."""
    owner._init_weights(module)


def kept_in_float32(model: Any, dtype: torch.dtype) -> set[str]:
    """Parts of names that a class keeps in float32 when a checkpoint of this dtype is loaded.

    Seen: transformers 5.17 and 5.23 (``_strict`` ones in any 16-bit dtype, the others in float16 alone).
    """
    names = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ()) if dtype.itemsize < 4 else set()
    if dtype == torch.float16:
        names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    return names


def parallel_plans(model: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Rules of a class for cutting it by tensors and by experts. Seen: transformers 5.17 and 5.23."""
    return model._tp_plan or {}, model._ep_plan or {}


def ignore_on_load(model: Any, parts: Iterable[str]) -> None:
    """Tensors of a checkpoint under these paths are not wanted, and nobody is told. Seen: transformers 5.23."""
    known = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    model._keys_to_ignore_on_load_unexpected = {*known, *(rf"^{re.escape(part)}(\.|$)" for part in parts)}


def is_expert_parallel(module: nn.Module) -> bool:
    """Whether transformers has given this rank a part of the experts. Seen: transformers 5.17 and 5.23."""
    return bool(getattr(module, "_is_expert_parallel", False))


def uses_hub_kernels(model: Any) -> bool:
    """Whether hub kernels replace whole blocks. Seen: transformers 5.17 and 5.23."""
    return bool(getattr(model, "_use_kernels", False))


def keeps_recurrent_state(model: Any) -> bool:
    """Whether a class remembers more than keys and values. Seen: transformers 5.17 and 5.23."""
    return bool(getattr(model, "_is_stateful", False))


def has_default_cache(model: Any) -> bool:
    """Whether ``generate`` gives a model the plain dynamic cache. Seen: transformers 5.17 and 5.23."""
    return bool(model._supports_default_dynamic_cache())


def prepare_generation_cache(
    model: Any, config: Any, kwargs: dict[str, Any], mode: Any, num_rows: int, max_tokens: int
) -> None:
    """Put the cache that ``generate`` would make into ``kwargs``. Seen: transformers 5.17 and 5.23."""
    model._prepare_cache_for_generation(config, kwargs, mode, num_rows, max_tokens)


def next_generation_kwargs(model: Any, outputs: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What ``generate`` would hand to the next forward. Seen: transformers 5.17 and 5.23."""
    found: dict[str, Any] = model._update_model_kwargs_for_generation(outputs, kwargs, is_encoder_decoder=False)
    return found


def is_compiled(module: nn.Module) -> bool:
    """Whether a call of the module runs its compiled form. Seen: torch 2.13."""
    return getattr(module, "_compiled_call_impl", None) is not None


def forget_compiled(module: Any) -> None:
    """Calls of the module run it as it is written. Seen: torch 2.13."""
    module._compiled_call_impl = None


def allow_recompiles(limit: int) -> None:
    """Let a piece be compiled for so many shapes, and once for all numbers of layers. Seen: torch 2.13."""
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, limit)
    settings.allow_unspec_int_on_nn_module = True  # the number of a layer is no reason to compile it anew


def cached_layers(config: Any) -> list[tuple[str, int | None]]:
    """What each layer of a language model caches, as transformers has it: kind and window. ``dummy`` keeps nothing.

    Seen: transformers 5.23. Older ones have it inside of the cache's constructor: the same reading of the config.
    """
    try:
        from transformers.cache_utils import get_layer_types_and_kwargs

        kinds, kwargs = get_layer_types_and_kwargs(config)
        return [(str(kind), own.get("sliding_window")) for kind, own in zip(kinds, kwargs, strict=True)]
    except (ImportError, AttributeError, TypeError, ValueError):
        pass
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    usual = "sliding_attention" if window else "chunked_attention" if chunk else "full_attention"
    kinds = getattr(config, "layer_types", None) or [usual] * int(getattr(config, "num_hidden_layers", 0) or 0)
    reach = {"sliding_attention": window, "hybrid_sliding": window, "chunked_attention": chunk}
    return [(str(kind), reach.get(str(kind))) for kind in kinds]


def has_bf16_instructions() -> bool:
    """Whether this CPU computes in bfloat16. Seen: torch 2.13."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def end_allocation(device_index: int, pool: Any) -> bool:
    """Tell torch's allocator that a failed capture is over; False where torch has done so itself.

    Seen: torch 2.13.
    """
    try:
        torch._C._cuda_endAllocateToPool(device_index, pool)
    except (RuntimeError, AttributeError):  # it knows of no capture into this pool
        return False
    torch._C._cuda_releasePool(device_index, pool)
    return True
