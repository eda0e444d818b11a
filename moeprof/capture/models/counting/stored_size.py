"""Bytes of the weights as a checkpoint stores them: tensor by tensor from its files, or by the rule of its format.

Formats that a rule is known for, per matrix of r rows and c columns:

``mxfp4``       of routed experts alone: 4 bits and a byte of scale per 32 values; their biases stay as they are
``fp8``         a byte per value and a float32 scale per block of ``weight_block_size``
``gptq, awq``   ``bits`` per value, a 2-byte scale and a packed zero point per group of ``group_size`` rows; gptq also
                keeps the group of each row in 4 bytes
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.capture.models.groups import Grouper, find_expert_layers
from moeprof.capture.models.language_model import language_model_config
from moeprof.capture.models.meta import build_on_meta
from moeprof.core.files import ANY_SIZE, UnreadableError, opened, safetensors_header

Rule = Callable[[int, int, dict[str, Any]], int | None]  # rows, columns, quantization_config -> bytes


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    dtype: str
    params: int
    size: int


def by_headers(files: Iterable[Path]) -> tuple[int, str]:
    """Bytes of all tensors of safetensors files, and how they were found; of a file without a header its size."""
    total, num_tensors, dtypes, unread = 0, 0, Counter[str](), 0
    paths = tuple(files)
    for path in paths:
        header = stored_tensors(path)
        if header is None:
            total, unread = total + path.stat().st_size, unread + 1
            continue
        for tensor in header.values():
            total += tensor.size
            dtypes[tensor.dtype] += tensor.size
            num_tensors += 1
    if unread:
        return total, f"{len(paths)} files of weights"
    parts = ", ".join(f"{dtype} {100 * size / max(1, total):.3g} %" for dtype, size in dtypes.most_common())
    return total, f"{num_tensors} tensors in {len(paths)} files of weights ({parts})"


def stored_tensors(path: Path) -> dict[str, StoredTensor] | None:
    """The tensors that a safetensors file describes; None where it has no such header, or one that cannot be."""
    header = safetensors_header(path)
    try:
        with opened(path, ANY_SIZE) as file:
            room = path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
        return None if header is None else {name: _stored(tensor, room) for name, tensor in header.items()}
    except (UnreadableError, OSError, ValueError, TypeError, LookupError, AttributeError):
        return None


def _stored(tensor: dict[str, Any], room: int) -> StoredTensor:
    begin, end = tensor["data_offsets"]
    if not (all(type(x) is int and x >= 0 for x in (begin, end, *tensor["shape"])) and begin <= end <= room):
        raise ValueError(tensor)
    return StoredTensor(str(tensor["dtype"]), math.prod(tensor["shape"]), end - begin)


def by_rule(config: Any, quantization: dict[str, Any], *, name: str, dtype: str) -> tuple[int, str] | None:
    """Bytes of a quantised checkpoint of which only the config is there; None for formats without a rule here.

    Args:
        config: the transformers config object.
        quantization: its ``quantization_config``, as in config.json.
        name: of the model, for messages.
        dtype: of what is not quantised.
    """
    method = str(quantization.get("quant_method"))
    rule = RULES.get(method)
    if rule is None or rule(1, 1, quantization) is None:
        return None
    alone = language_model_config(config)
    model: Any = build_on_meta(config if alone is None else alone, name=name, dtype=dtype)
    grouper = Grouper(model, find_expert_layers(model))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    kept = {id(p) for end in (head, model.get_input_embeddings()) if end is not None for p in end.parameters()}
    total = 0
    for path, parameter in model.named_parameters():
        size = parameter.numel() * parameter.element_size()
        group = grouper.group(path)
        if id(parameter) not in kept and _is_matrix(path, parameter, group) and not _is_left(path, group, quantization):
            rows, columns = parameter.shape[-2:]
            matrices = parameter.numel() // (rows * columns)
            size = matrices * (rule(rows, columns, quantization) or 0)
        total += size
    return total, f"by the rule of {method} (only the config is there)"


def _is_matrix(path: str, parameter: Any, group: str) -> bool:
    stacked = group == "routed_experts" and parameter.ndim == 3
    return "bias" not in path.rpartition(".")[2] and (stacked or (parameter.ndim == 2 and min(parameter.shape) > 1))


def _is_left(path: str, group: str, quantization: dict[str, Any]) -> bool:
    """True for what the format leaves in the model's dtype: routers, and modules that the config names."""
    if group in ("router", "norm", "other") or (quantization["quant_method"] == "mxfp4" and group != "routed_experts"):
        return True
    left = quantization.get("modules_to_not_convert")
    named = (re.escape(str(part)) for part in (left if isinstance(left, list) else ()))
    patterns = (part.replace(r"\*", ".*") for part in named)
    return any(re.search(rf"(^|\.){pattern}(\.|$)", path) for pattern in patterns)


def _mxfp4(rows: int, columns: int, quantization: dict[str, Any]) -> int:
    return rows * columns // 2 + rows * columns // 32


def _fp8(rows: int, columns: int, quantization: dict[str, Any]) -> int | None:
    block = quantization.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        return None
    high, wide = int(block[0]), int(block[1])
    return rows * columns + 4 * math.ceil(rows / high) * math.ceil(columns / wide)


def _packed(rows: int, columns: int, quantization: dict[str, Any]) -> int | None:
    """Torch's matrices are [outputs, inputs]; groups run along the inputs."""
    bits: int | None = quantization.get("bits") or quantization.get("w_bit")
    group: int | None = quantization.get("group_size") or quantization.get("q_group_size")
    if type(bits) is not int or type(group) is not int or bits < 1 or (group < 1 and group != -1):
        return None
    groups = math.ceil(columns / (columns if group == -1 else group))
    index = 4 * columns if quantization["quant_method"] == "gptq" else 0
    return (rows * columns * bits + groups * rows * (16 + bits)) // 8 + index


RULES: dict[str, Rule] = {"mxfp4": _mxfp4, "fp8": _fp8, "gptq": _packed, "awq": _packed}
