"""Which weights a model has, in one line: ``revision`` in model.json. Two runs with the same one had the same weights.

``sha256:...``   a local folder: names and bytes of its safetensors files, its config and an adapter's config
``sampled:...``  the same of a folder over 4 GiB, of whose files headers, sizes and evenly spaced samples are read; a
                 change that misses every sample is not seen
``commit:...``   the commit of a hub repository
``random by module, seed 0``; a twin says the revision of its MoE and how it was made
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from moeprof.capture.loading import RANDOM_WEIGHTS
from moeprof.capture.model_source import ModelSource
from moeprof.core.modelspec import ModelSpec

WHOLE_BYTES = 4 * 2**30
SAMPLE_BYTES = 2**20
SAMPLES = 1024  # of all files together
DIGITS = 16
# Of config.json: rewritten by every save, without a meaning for the model.
VOLATILE = ("transformers_version", "_name_or_path")


def revision_of(source: ModelSource, weights: ModelSpec, spec: ModelSpec) -> str | None:
    """The revision of a model's weights; None where a hub's cache does not tell its commit.

    Args:
        source: where the weights were found.
        weights: whose weights were read: the model's own spec, or for a twin that of its MoE.
        spec: the model.
    """
    if weights.weights == "random":
        found: str | None = RANDOM_WEIGHTS
    elif source.hub_id is not None:
        found = _commit(source.hub_id, weights.revision)
    else:
        found = None if source.folder is None else folder_revision(source.folder)
    if spec.twin_of is None or found is None:
        return found
    how = "the most used experts" if spec.initialise == "popular_experts" else f"random, seed {spec.name}/{spec.match}"
    return f"{found}; dense twin {spec.match}, MLPs {how}"


def folder_revision(
    folder: Path, *, whole_bytes: int = WHOLE_BYTES, samples: int = SAMPLES, sample_bytes: int = SAMPLE_BYTES
) -> str:
    """``sha256:`` of a checkpoint's folder, or ``sampled:`` where it is large. Remembered while its files stay.

    An adapter's own weights and config count; those of the model that its config names do not lie in this folder.

    Args:
        folder: with config.json and safetensors files.
        whole_bytes: up to this size every byte is read.
        samples: how many samples are read of larger ones, all files together.
        sample_bytes: size of one.
    """
    files = []
    for path in sorted(folder.glob("*.safetensors")):
        stat = path.stat()
        files.append((path, stat.st_size, stat.st_mtime_ns))
    whole = sum(size for _, size, _ in files) <= whole_bytes
    digest = hashlib.sha256(_weights_digest(tuple(files), 0 if whole else samples, sample_bytes))
    for name in ("config.json", "adapter_config.json"):
        digest.update(_config_text(folder / name).encode())
    return f"{'sha256' if whole else 'sampled'}:{digest.hexdigest()[:DIGITS]}"


@cache
def _weights_digest(files: tuple[tuple[Path, int, int], ...], samples: int, sample_bytes: int) -> bytes:
    """Of names and contents; ``samples`` 0 = every byte. Sizes and times of change are part of what is remembered."""
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name}|{size}|".encode())
        if samples:
            _sample(path, size, max(2, samples // len(files)), sample_bytes, digest)
        else:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def _sample(path: Path, size: int, samples: int, sample_bytes: int, digest: Any) -> None:
    """Header (names, shapes and dtypes of tensors), then samples from the first byte of the data to the last."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        start = min(start, size)
        file.seek(0)
        digest.update(file.read(start))
        last = max(start, size - sample_bytes)
        for i in range(samples):
            file.seek(start + (last - start) * i // (samples - 1))
            digest.update(file.read(sample_bytes))


def _config_text(file: Path) -> str:
    """A config without what every save rewrites, keys in order; empty where there is no such file."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    kept = {k: v for k, v in config.items() if k not in VOLATILE} if isinstance(config, dict) else config
    return json.dumps(kept, sort_keys=True)


def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stood for when its files were fetched: the snapshot's folder in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=revision)
    return f"commit:{Path(found).parent.name}" if isinstance(found, str) else None
