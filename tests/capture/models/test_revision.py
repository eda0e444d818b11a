"""Which weights a model has: equal for equal files, another for any other byte, and said in words where drawn."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from moeprof.capture.models import load
from moeprof.capture.models.load import folder_revision
from moeprof.capture.models.open import facts_of, open_model
from moeprof.core.model_facts import ModelFacts
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec

HEADER = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint: 8 bytes of length, 8 of header, 100 of data; and a config."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      " + bytes(range(100)))
    (path / "config.json").write_text(json.dumps({"model_type": "x", "transformers_version": "5.1"}))
    return path


def change(file: Path, at: int) -> None:
    """Another byte at one place, and another time of change, as a save leaves it."""
    data = bytearray(file.read_bytes())
    data[at] ^= 255
    file.write_bytes(data)
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))


def facts(spec: ModelSpec, base: ModelSpec | None = None) -> ModelFacts:
    opened = open_model(spec, base, TransformersSettings(), torch.device("cpu"))
    return facts_of(opened, spec, None)


def test_a_copy_elsewhere_has_the_same_revision(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert folder_revision(folder) == folder_revision(copy)
    assert folder_revision(folder).startswith("sha256:")


def test_every_byte_and_every_name_counts(folder: Path) -> None:
    weights = folder / "model.safetensors"
    seen = {folder_revision(folder)}
    change(weights, HEADER + 57)
    seen.add(folder_revision(folder))
    weights.rename(folder / "other.safetensors")
    seen.add(folder_revision(folder))
    (folder / "adapter_model.safetensors").write_bytes(b"more")
    seen.add(folder_revision(folder))
    (folder / "adapter_config.json").write_text('{"r": 8}')
    seen.add(folder_revision(folder))
    assert len(seen) == 5


def test_a_config_counts_by_what_it_says_and_not_by_who_saved_it(folder: Path) -> None:
    before, config = folder_revision(folder), folder / "config.json"
    config.write_text('{"transformers_version": "5.2",   "model_type": "x"}')
    assert folder_revision(folder) == before
    config.write_text('{"model_type": "x", "quantization_config": {"bits": 4}}')
    assert folder_revision(folder) != before


def test_of_a_large_folder_header_size_and_samples_are_read(folder: Path) -> None:
    # Of 100 bytes, 3 samples of 2: bytes 0 and 1, 49 and 50, 98 and 99.
    def sampled() -> str:
        return folder_revision(folder, whole_bytes=100, samples=3, sample_bytes=2)

    weights, seen = folder / "model.safetensors", [sampled()]
    assert seen[0].startswith("sampled:")
    change(weights, HEADER + 30)
    assert sampled() == seen[0]  # no sample holds it, as the docstring says
    for at in (HEADER - 1, HEADER, HEADER + 50, HEADER + 99):
        change(weights, at)
        seen.append(sampled())
    weights.write_bytes(weights.read_bytes() + b"x")
    seen.append(sampled())
    assert len(set(seen)) == 6


def test_unchanged_files_are_read_once_in_a_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Any] = []
    real = load.hashlib.file_digest
    monkeypatch.setattr(
        load.hashlib, "file_digest", lambda *args: (reads.append(args), real(*args))[1]
    )  # fmt: skip
    assert folder_revision(folder) == folder_revision(folder)
    assert len(reads) == 1
    change(folder / "model.safetensors", HEADER)
    folder_revision(folder)
    assert len(reads) == 2


def test_model_facts_tell_it_for_checkpoints_and_drawn_weights(tiny: Path) -> None:
    checkpoint = ModelSpec(name="moe", path=str(tiny / "moe"))
    found = facts(checkpoint)
    assert found.revision == folder_revision(tiny / "moe")
    assert ModelFacts.from_json(found.to_json()) == found
    assert facts(replace(checkpoint, weights="random")).revision == "random by module, seed 0"
    old = found.to_json()
    del old["revision"]
    assert ModelFacts.from_json(old).revision is None


def test_a_twin_tells_its_moes_and_how_it_was_made(tiny: Path) -> None:
    moe = ModelSpec(name="moe", path=str(tiny / "moe"))
    twin = ModelSpec(name="small", twin_of="moe", match="active")
    own = folder_revision(tiny / "moe")
    assert facts(twin, moe).revision == f"{own}; dense twin active, MLPs random, seed small/active"
    drawn = facts(twin, replace(moe, weights="random")).revision
    assert drawn == "random by module, seed 0; dense twin active, MLPs random, seed small/active"


def test_a_hub_model_has_the_commit_of_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(tmp_path / "models--org--name" / "snapshots" / "0123abcd" / "config.json")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: config)
    assert load._commit("org/name", None) == "commit:0123abcd"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    assert load._commit("org/name", None) is None
