"""Random weights at real size: built without memory, allocated once on the device in the dtype, drawn in place.

The model's own class says how each module starts (norms at one, biases at zero, matrices normal). Each module is drawn
from a seed of its own name, so that its values depend on nothing else: not on the other modules, not on how many
devices share the model, and a twin has the attention and embeddings of its MoE. What writes into the residual stream
is then made narrower by sqrt(2 * layers), as GPT-2 does: the stream grows no more in 64 layers than in one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from moeprof.capture import compat
from moeprof.core.errors import UnsupportedModelError

RESIDUAL_OUTPUTS = frozenset(
    ("o_proj", "out_proj", "down_proj", "w2", "wo", "c_proj", "fc2", "dense_4h_to_h", "output_linear", "output_proj")
)


def random_model(
    build: Callable[[], Any],
    device: torch.device,
    *,
    seed: int,
    name: str,
    reshape: Callable[[Any], None] | None = None,
    later: type[nn.Module] | tuple[type[nn.Module], ...] = (),
    around_module: Callable[[str, nn.Module], AbstractContextManager[None]] = lambda path, module: nullcontext(),
) -> Any:
    """A model with random weights, its memory taken once.

    Args:
        build: makes the model on the meta device, in the dtype that it should have.
        device: where to.
        seed: same seed, same weights.
        name: what messages call the model.
        reshape: changes the modules before memory is taken.
        later: modules of this kind get memory and no values; somebody else draws them.
        around_module: entered while a module is drawn; tensors that several ranks share are its business.

    Returns:
        The transformers module, on the device, in the mode that its class starts in.

    Raises:
        UnsupportedModelError: the class leaves a buffer without a value.
    """
    with torch.device("meta"):
        model = build()
    if reshape is not None:
        reshape(model)
    model.tie_weights()
    materialise(model, device)
    skipped = {id(tensor) for module in model.modules() if isinstance(module, later) for tensor in _tensors(module)}
    skipped |= {id(tensor) for tensor in _tensors(model) if hasattr(tensor, "placements")}
    named = (*model.named_parameters(), *model.named_buffers())
    drawn = {key: tensor for key, tensor in named if id(tensor) not in skipped}
    # Drawing leaves the process's random state as it was.
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _mark(drawn.values())
        for path, owner, module in _with_owners(model, later):
            torch.manual_seed(module_seed(seed, path))
            with around_module(path, module):
                compat.initialise(owner, module)
        _fill_unset(drawn, model, name, seed)
        _narrow_residual_outputs(model, residual_scale(model.config))
    return model


def materialise(model: Any, device: torch.device) -> None:
    """Give every meta parameter and buffer memory on the device, tied ones once; the values are not set.

    What the class keeps in float32 for a checkpoint (a router's bias) is float32 here too.
    """
    kept = _float32_names(model)
    memo: dict[int, torch.Tensor] = {}
    for path, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for key, old in store.items():
                if old is None or not old.is_meta:
                    continue
                if id(old) not in memo:
                    wide = old.is_floating_point() and any(part in f"{path}.{key}" for part in kept)
                    new = torch.empty_like(old, device=device, dtype=torch.float32 if wide else None)
                    is_parameter = isinstance(old, nn.Parameter)
                    memo[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new
                store[key] = memo[id(old)]


def residual_scale(config: Any) -> float:
    """1 / sqrt(2 * layers): each layer writes twice into the residual stream (attention and MLP)."""
    layers = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None) or 1
    return 1.0 / math.sqrt(2 * int(layers))


def module_seed(seed: int, path: str) -> int:
    """63 bits of a hash of the seed and the module's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8], "little") >> 1


def _float32_names(model: Any) -> tuple[str, ...]:
    """Parts of names that the class keeps in float32 when a checkpoint of this dtype is loaded."""
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return tuple(compat.kept_in_float32(model, dtype))


def _with_owners(model: Any, later: Any) -> Iterator[tuple[str, Any, nn.Module]]:
    """Each module once, children first, with the model whose class knows how it starts."""
    seen: set[int] = set()

    def walk(path: str, owner: Any, module: nn.Module) -> Iterator[tuple[str, Any, nn.Module]]:
        if id(module) in seen or (later and isinstance(module, later)):
            return
        seen.add(id(module))
        owner = module if isinstance(module, PreTrainedModel) else owner
        for key, child in module.named_children():
            yield from walk(f"{path}.{key}" if path else key, owner, child)
        yield path, owner, module

    yield from walk("", model, model)


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _unset(tensor: torch.Tensor) -> float | int:
    """A value that no initialisation gives."""
    return math.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min


def _mark(tensors: Any) -> None:
    """The first and the last element of each tensor get a value that no initialisation gives."""
    for tensor in tensors:
        if tensor.dtype == torch.bool:
            tensor.zero_()
        elif _can_be_marked(tensor):
            flat = tensor.view(-1)
            flat[0] = flat[-1] = _unset(tensor)


def _can_be_marked(tensor: torch.Tensor) -> bool:
    return bool(tensor.numel()) and not tensor.is_meta and not tensor.is_complex() and tensor.is_contiguous()


def _is_unset(tensor: torch.Tensor) -> bool:
    if not _can_be_marked(tensor) or tensor.dtype == torch.bool:
        return False
    ends = tensor.view(-1)[:: max(1, tensor.numel() - 1)]
    return bool((ends.isnan() if tensor.is_floating_point() else ends == _unset(tensor)).any())


def _fill_unset(tensors: dict[str, torch.Tensor], model: Any, name: str, seed: int) -> None:
    """Parameters that the class forgot are drawn; a buffer without a value would be garbage."""
    std = float(getattr(model.config.get_text_config(decoder=True), "initializer_range", None) or 0.02)
    for path, tensor in tensors.items():
        if not _is_unset(tensor):
            continue
        if not isinstance(tensor, nn.Parameter):
            raise UnsupportedModelError(
                f"model {name}: {type(model).__name__} gives its buffer {path} no value when it is built without "
                "memory, so random weights cannot be drawn; take a checkpoint"
            )
        torch.manual_seed(module_seed(seed, path))
        tensor.normal_(0.0, std)


def _narrow_residual_outputs(model: nn.Module, scale: float) -> None:
    for path, parameter in model.named_parameters():
        parts = path.split(".")
        if parameter.ndim >= 2 and RESIDUAL_OUTPUTS.intersection(parts[-2:]):
            parameter.mul_(scale)
