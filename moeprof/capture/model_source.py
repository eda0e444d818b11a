"""Where a model comes from, found without torch: a local folder, a hub id, or a config for random weights.

The parent process uses this to check models, find tokenizers and predict memory before any worker starts.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moeprof.core.errors import ModelError
from moeprof.core.systems import systems
from moeprof.core.workload import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that was found.

    Attributes:
        folder: local folder with config.json (and weights unless random), or None for hub ids and named configs.
        hub_id: Hugging Face id, or None.
        config: the raw config.json.
        tokenizer_file: tokenizer.json, or None when the model has none.
        weights_bytes: bytes of the weight files, or None when not on disk yet, or for a twin.
        twin: for a dense twin, what it is in words; all else is then its MoE's.
    """

    folder: Path | None
    hub_id: str | None
    config: dict[str, Any]
    tokenizer_file: Path | None
    weights_bytes: int | None
    twin: str | None = None

    @property
    def description(self) -> str:
        """For the record: hub id or the folder's name (never the whole path)."""
        if self.twin is not None:
            return self.twin
        if self.hub_id is not None:
            return self.hub_id
        return self.folder.name if self.folder is not None else "named config"


def find_model(spec: ModelSpec, base: ModelSpec | None = None) -> ModelSource:
    """Find the model of a spec.

    Args:
        spec: the model.
        base: for a dense twin, the MoE that it is made of; its config and tokenizer are the twin's too.

    Raises:
        ModelError: it does not exist, has no config, no weights, or the hub cannot be reached.
    """
    if base is not None:
        twin = f"dense twin of {base.name} ({spec.match})"
        return replace(find_model(replace(base, name=spec.name)), weights_bytes=None, twin=twin)
    if spec.config is not None:
        return _from_config(spec)
    assert spec.path is not None
    folder = Path(spec.path)
    if folder.is_dir():
        return _from_folder(spec, folder)
    if folder.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") != 1:
        raise ModelError(f"model {spec.name}: no folder {spec.path}; give a local folder or a hub id like org/name")
    return _from_hub(spec)


def _from_folder(spec: ModelSpec, folder: Path) -> ModelSource:
    config = read_config(spec.name, folder / "config.json")
    weights = sorted(folder.glob("*.safetensors"))
    if spec.weights == "checkpoint" and not weights:
        unsafe = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt*")]
        found = f"found {unsafe[0]}, which may hold code" if unsafe else "found none"
        raise ModelError(
            f"model {spec.name}: no *.safetensors weights in {folder} ({found}); "
            "add them, or say `weights: random` to measure the shape alone"
        )
    tokenizer = folder / "tokenizer.json"
    return ModelSource(
        folder=folder,
        hub_id=None,
        config=config,
        tokenizer_file=tokenizer if tokenizer.exists() else None,
        weights_bytes=sum(p.stat().st_size for p in weights) if spec.weights == "checkpoint" else None,
    )


def _from_hub(spec: ModelSpec) -> ModelSource:
    from moeprof.capture.hub import hub_file

    assert spec.path is not None
    config = hub_file(spec.name, spec.path, "config.json", spec.revision)
    if config is None:
        raise ModelError(f"model {spec.name}: {spec.path} on the hub has no config.json; is it a transformers model?")
    return ModelSource(
        folder=None,
        hub_id=spec.path,
        config=read_config(spec.name, config),
        tokenizer_file=hub_file(spec.name, spec.path, "tokenizer.json", spec.revision),
        weights_bytes=None,
    )


def _from_config(spec: ModelSpec) -> ModelSource:
    assert spec.config is not None
    if spec.config.endswith(".json"):
        file = Path(spec.config)
        tokenizer = file.parent / "tokenizer.json"
        return ModelSource(
            folder=None,
            hub_id=None,
            config=read_config(spec.name, file),
            tokenizer_file=tokenizer if tokenizer.exists() else None,
            weights_bytes=None,
        )
    configs = named_configs()
    if spec.config not in configs:
        if any(row.name == spec.config for row in systems()):
            raise ModelError(
                f"model {spec.name}: {spec.config} can be counted (`moeprof params {spec.config}`) and not run: "
                "transformers has no class that builds it"
            )
        close = difflib.get_close_matches(spec.config, configs, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ModelError(
            f"model {spec.name}: no config named {spec.config!r}{hint} `moeprof params --list` names the built-in "
            "ones; or give the path of a config.json"
        )
    return ModelSource(folder=None, hub_id=None, config=configs[spec.config], tokenizer_file=None, weights_bytes=None)


def named_configs() -> dict[str, dict[str, Any]]:
    """The configs of the built-in list (``moeprof params --list``), by name."""
    return {row.name: dict(row.config) for row in systems() if row.config is not None}


def read_config(name: str, file: Path) -> dict[str, Any]:
    """The values of a config.json.

    Args:
        name: what the user called the model, for messages.
        file: the file.

    Raises:
        ModelError: no such file, no JSON, or no ``model_type``.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"model {name}: no {file.name} in {file.parent}; is this a model folder?") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"model {name}: {file} cannot be read as JSON ({error})") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelError(f"model {name}: {file} names no model_type, so no architecture can be chosen")
    return config
