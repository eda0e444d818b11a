"""The files of a checkpoint's folder, found without torch: JSON read with care, the index of shards, which weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeprof.core.errors import ModelError
from moeprof.core.files import NoSuchFileError, UnreadableError, read_json_value

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_JSON = 2**28  # bytes: an index of a million tensors has about 100 MB
# Weights of the same model once more, for other libraries; and weights of an adapter.
_NO_OWN_WEIGHTS = ("consolidated", "adapter_")


def read_object(model: str, file: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        model: what the user called the model, for messages.
        file: the file.

    Raises:
        ModelError: it cannot be read, is no JSON, or holds something else.
    """
    try:
        found = read_json_value(file, non_finite="keep", most=MOST_JSON)
    except NoSuchFileError as error:
        raise ModelError(f"model {model}: no {file.name} in {file.parent}; is this a model folder?") from error
    except UnreadableError as fault:
        raise ModelError(f"model {model}: {file} cannot be read as JSON ({fault.why})") from fault
    if not isinstance(found, dict):
        raise ModelError(f"model {model}: {file} holds a JSON {type(found).__name__}; an object is expected")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What ``model.safetensors.index.json`` says.

    Attributes:
        total_bytes: of all tensors, or None.
        total_params: of all tensors, where its writer counted them, or None.
        files: names of the files that hold them.
    """

    total_bytes: int | None
    total_params: int | None
    files: tuple[str, ...]


def read_index(model: str, file: Path) -> Index:
    """Read an index of shards.

    Raises:
        ModelError: no JSON object.
    """
    values = read_object(model, file)
    found, metadata = values.get("weight_map"), values.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    names = {Path(name).name for name in found.values() if isinstance(name, str)} if isinstance(found, dict) else set()
    size, params = (metadata.get(key) for key in ("total_size", "total_parameters"))
    return Index(
        total_bytes=int(size) if isinstance(size, int | float) and 0 < size < 2**63 else None,
        total_params=int(params) if isinstance(params, int | float) and 0 < params < 2**63 else None,
        files=tuple(sorted(names)),
    )


def weight_files(model: str, folder: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The safetensors files that hold a folder's model, and the names of those that only its index knows.

    Raises:
        ModelError: the index is damaged.
    """
    if (folder / INDEX).is_file():
        named = read_index(model, folder / INDEX).files
        there = tuple(folder / name for name in named if (folder / name).is_file())
        if named:
            return there, tuple(name for name in named if not (folder / name).is_file())
    found = sorted(folder.glob("*.safetensors"))
    own = [path for path in found if not path.name.startswith(_NO_OWN_WEIGHTS)]
    return tuple(own or (path for path in found if not path.name.startswith("adapter_"))), ()


def is_adapter(folder: Path) -> bool:
    """True for a folder that holds an adapter and no model of its own."""
    return (folder / ADAPTER_CONFIG).is_file() and weight_files(folder.name, folder) == ((), ())
