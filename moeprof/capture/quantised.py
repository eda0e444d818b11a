"""Bytes of quantised weights as they lie in memory.

Parameter counts of a quantised model come from its unquantised architecture (built on meta); bytes come from what is
stored: packed weights, scales, zero points, and the state that bitsandbytes keeps beside the tensor. A method that is
not in the table is refused by name, because a forgotten scale tensor would be a silent error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from moeprof.capture.parameter_groups import ExpertLayer, Grouper, is_under
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.modelfacts import GROUPS

# Methods whose storage is tensors on modules (parameters, buffers, tensor subclasses, quant_state).
COUNTED_METHODS = (
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "fbgemm_fp8",
    "fp8",
    "gptq",
    "mxfp4",
    "torchao",
)


# No method stores a weight in less than this; fewer bytes than that mean that tensors hide where we did not look.
LEAST_BITS = {"mxfp4": 4.25, "fp8": 8, "fbgemm_fp8": 8}  # MXFP4: 4 bits and a byte of scale per 32
LEAST_BITS_OTHERWISE = 2


def quantisation_method(model: nn.Module) -> str | None:
    """The name of the method that quantised the weights, or None.

    Raises:
        UnsupportedModelError: weights are of integer dtype and nothing says why.
    """
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is not None and getattr(model, "is_quantized", True) is not False:
        method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
        return str(getattr(method, "value", method))
    for path, parameter in model.named_parameters():
        if not parameter.dtype.is_floating_point and not parameter.dtype.is_complex:
            raise UnsupportedModelError(
                f"weights of {type(model).__name__} are of integer type at {path} ({parameter.dtype}), but its config "
                "names no quantisation; moeprof cannot count its parameters"
            )
    return None


def stored_bytes_by_group(
    twin: nn.Module, stored: nn.Module, groups: dict[str, str], layers: Sequence[ExpertLayer], method: str
) -> dict[str, int]:
    """Bytes per group as stored.

    Args:
        twin: the unquantised architecture (its module paths say what belongs where).
        stored: the quantised model.
        groups: group per parameter path of ``twin``.
        layers: MoE layers of ``twin``.
        method: from :func:`quantisation_method`.

    Raises:
        UnsupportedModelError: the method is not one whose storage is known.
    """
    if method not in COUNTED_METHODS:
        raise UnsupportedModelError(
            f"quantisation method {method!r}: moeprof does not know where it stores its weights, so bytes would be "
            f"wrong; it counts {', '.join(COUNTED_METHODS)}. Load the model dequantised"
        )
    size = dict.fromkeys(GROUPS, 0)
    plain_buffers = {path for path, _ in twin.named_buffers()}
    grouper = Grouper(twin, tuple(layers))
    counted: set[int] = set()
    for path, tensor in _stored_tensors(stored):
        if path in plain_buffers or id(tensor) in counted:
            continue
        counted.add(id(tensor))
        size[_group_of(path, groups, grouper)] += sum(t.numel() * t.element_size() for t in _inner(tensor))
    _refuse_hidden_storage(twin, groups, size, method)
    return size


def _refuse_hidden_storage(twin: nn.Module, groups: dict[str, str], size: dict[str, int], method: str) -> None:
    params = dict.fromkeys(GROUPS, 0)
    for path, parameter in twin.named_parameters():
        params[groups[path]] += parameter.numel()
    bits = LEAST_BITS.get(method, LEAST_BITS_OTHERWISE)
    for group, count in params.items():
        if size[group] * 8 < count * bits:
            raise UnsupportedModelError(
                f"quantisation method {method!r}: {size[group]} bytes were found for {count} parameters of {group}, "
                f"less than {bits:g} bits each, so some storage is out of sight; load the model dequantised"
            )


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters and buffers, and the tensors of a ``quant_state`` or ``SCB`` kept beside them."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for path, parameter in model.named_parameters():
        for extra in _tensors_in(getattr(parameter, "quant_state", None)):
            yield path, extra
        scale = getattr(parameter, "SCB", None)
        if isinstance(scale, torch.Tensor):
            yield path, scale
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            for tensor in _tensors_of_kernel_object(value):
                yield f"{path}.{name}", tensor


def _tensors_of_kernel_object(value: Any) -> Iterator[torch.Tensor]:
    """Weights that MXFP4 kernels keep as attributes: an object whose storage.data is a tensor, and its scales."""
    scale = getattr(value, "weight_scale", None)
    if isinstance(scale, torch.Tensor) and not isinstance(value, nn.Module):
        yield scale
    for holder in (value, scale):
        data = getattr(getattr(holder, "storage", None), "data", None)
        if isinstance(data, torch.Tensor) and not isinstance(holder, torch.Tensor):
            yield data


def _tensors_in(state: Any) -> Iterator[torch.Tensor]:
    """Tensors of a bitsandbytes QuantState; its state2 is the nested one of double quantisation."""
    for name in ("absmax", "code", "offset"):
        tensor = getattr(state, name, None)
        if isinstance(tensor, torch.Tensor):
            yield tensor
    nested = getattr(state, "state2", None)
    if nested is not None:
        yield from _tensors_in(nested)


def _inner(tensor: torch.Tensor) -> list[torch.Tensor]:
    """What a tensor subclass really stores; the tensor itself when it is plain."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _context = flatten()
    return [leaf for name in names for leaf in _inner(getattr(tensor, name))]


def _group_of(path: str, groups: dict[str, str], grouper: Grouper) -> str:
    """Group of a stored tensor: by the same path, else by the twin's parameter in the same module, else by path."""
    if path in groups:
        return groups[path]
    owner = path.rpartition(".")[0]
    same_module = next((group for p, group in groups.items() if owner and is_under(p, owner)), None)
    return same_module or grouper.group(path)
