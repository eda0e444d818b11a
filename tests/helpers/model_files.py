"""Model files made small: GGUF as ggml's docs/gguf.md has it, and the header of a safetensors file."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

# Number, values in a block, bytes of a block of the types that tests use; ggml-common.h has them as structs.
KINDS = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144),
         "Q6_K": (14, 256, 210), "BF16": (30, 1, 2), "MXFP4": (39, 32, 17)}  # fmt: skip
_CODES = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}
Tensors = dict[str, tuple[tuple[int, ...], str]]


def gguf_bytes(values: dict[str, Any], tensors: Tensors, order: str = "<", version: int = 3) -> bytes:
    """A whole file with zeros as data; tensors are name -> (shape, row first; type)."""

    def text(value: str) -> bytes:
        return struct.pack(f"{order}Q", len(value.encode())) + value.encode()

    def value_of(value: Any) -> bytes:
        if isinstance(value, str):
            return struct.pack(f"{order}I", 8) + text(value)
        if isinstance(value, list):
            number, code = (8, "") if value and isinstance(value[0], str) else _CODES[type(value[0]) if value else int]
            items = b"".join(text(v) if number == 8 else struct.pack(f"{order}{code}", v) for v in value)
            return struct.pack(f"{order}IIQ", 9, number, len(value)) + items
        number, code = _CODES[type(value)]
        return struct.pack(f"{order}I{code}", number, value)

    head = b"GGUF" + struct.pack(f"{order}IQQ", version, len(tensors), len(values))
    for key, value in values.items():
        head += text(key) + value_of(value)
    offset, sizes = 0, []
    for name, (shape, kind) in tensors.items():
        number, block, size = KINDS[kind]
        head += text(name) + struct.pack(f"{order}I{len(shape)}Q", len(shape), *shape)
        head += struct.pack(f"{order}IQ", number, offset)
        sizes.append(math.prod(shape) // block * size)
        offset += -(-sizes[-1] // 32) * 32
    head += b"\0" * (-len(head) % 32)
    return head + b"\0" * (offset if tensors else 0)


def safetensors_bytes(shapes: dict[str, tuple[int, ...]], item: int = 2) -> bytes:
    """A whole file of such tensors in bfloat16, zeros as data."""
    header, at = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape) * item
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + b"\0" * at


def written(folder: Path, files: dict[str, Any]) -> Path:
    """A folder with these files: bytes and texts as they are, everything else as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        raw = content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content))
        (folder / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return folder
