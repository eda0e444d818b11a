"""Where a model comes from, found without torch: a local folder, a hub id, or a config for random weights.

The parent process uses this to check models, find tokenizers and predict memory before any worker starts. Single files
of a Hugging Face repository are taken from the local cache if they lie there, else from the hub. Its client repeats a
failed look-up five times over half a minute, so the host's name is resolved first: without a network the answer comes
at once, and workers then load from the cache too.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from moeprof.capture.models.files import ADAPTER_CONFIG, CONFIG, is_adapter, read_object, weight_files
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS, text_values
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.known_models import System, systems
from moeprof.core.workload.models import ModelSpec

RESOLVE_S = 3.0
# Key of a config -> what it must be, and the word for it.
KINDS: dict[str, tuple[type, str]] = {
    "model_type": (str, "a text"),
    "architectures": (list, "a list"),
    "text_config": (dict, "keys and values"),
    "quantization_config": (dict, "keys and values"),
}
COUNTED = re.compile(r"\w*(layers?|experts?|size|heads?|head_dim|per_tok|topk|top_k)")
MOST_LAYERS, MOST_SIZE = 2**16, 2**26  # of layers or experts, and of any other size: far beyond any model


def hub_file(model: str, repository: str, name: str, revision: str | None) -> Path | None:
    """A file of a repository, or None when the repository has no such file.

    Args:
        model: the workload's name for it, for messages.
        repository: ``org/name``.
        name: of the file.
        revision: branch, tag or commit; None is the default branch.

    Raises:
        ModelError: no such repository or revision, no permission, or no network and no copy in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not the user's to read
    try:
        return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise ModelError(f"model {model}: {repository!r} is neither a local folder nor a hub id ({error})") from error
    except LocalEntryNotFoundError:
        pass
    if not is_reachable():
        os.environ["HF_HUB_OFFLINE"] = "1"  # for the workers, which start later
        if _knows(repository, revision):
            return None
        raise ModelError(
            f"model {model}: {repository} is no local folder, not in the hub's cache, and the hub cannot be reached; "
            "check the spelling or the network, or download it elsewhere and give the folder"
        )
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except RepositoryNotFoundError as error:
        why = "the hub has no such model, or it is private; check the spelling, or log in with `hf auth login`"
        raise ModelError(f"model {model}: {repository}: {why}") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"model {model}: {repository} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:  # also an EntryNotFoundError, but it means: no connection
        raise ModelError(f"model {model}: {repository}: the hub did not answer; try again later") from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"model {model}: {repository}: the hub did not give {name} ({type(error).__name__})"
        ) from error


def is_reachable() -> bool:
    """Whether the hub may be asked: not switched off, and its host (or a proxy) has an address."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or os.environ.get("ALL_PROXY"):
        return True  # the proxy resolves names
    found: list[Any] = []

    def resolve() -> None:
        with suppress(OSError):
            found.extend(socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname or "", 443))

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()  # a resolver without a network may take its time
    thread.join(RESOLVE_S)
    return bool(found)


def _knows(repository: str, revision: str | None) -> bool:
    """True when the cache has the repository's config, so that a missing file is missing there too."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, "config.json", revision=revision), str)


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
        changes: what ``override`` changed in the config, in words.
    """

    folder: Path | None
    hub_id: str | None
    config: dict[str, Any]
    tokenizer_file: Path | None
    weights_bytes: int | None
    twin: str | None = None
    changes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """For the record: hub id or the folder's name (never the whole path), and what was changed."""
        plain = self.twin or self.hub_id or (self.folder.name if self.folder is not None else "named config")
        return f"{plain}, {', '.join(self.changes)}" if self.changes else plain


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
    source = _find(spec)
    return _overridden(source, spec) if spec.override else source


def _find(spec: ModelSpec) -> ModelSource:
    if spec.config is not None:
        return _from_config(spec)
    assert spec.path is not None
    folder = Path(spec.path)
    if folder.is_dir():
        return _from_folder(spec, folder)
    if folder.suffix == ".gguf":
        raise UnsupportedModelError(f"model {spec.name}: {_why_gguf_is_not_run(spec.path)}")
    if folder.is_file():
        raise ModelError(f"model {spec.name}: {spec.path} is a file; path is a folder or a hub id like org/name")
    if folder.is_absolute() or spec.path.startswith((".", "~")) or spec.path.count("/") != 1:
        raise ModelError(f"model {spec.name}: no folder {spec.path}; give a local folder or a hub id like org/name")
    return _from_hub(spec)


def _from_folder(spec: ModelSpec, folder: Path) -> ModelSource:
    if is_adapter(folder):
        raise _refused_adapter(spec, read_object(spec.name, folder / ADAPTER_CONFIG))
    if not (folder / CONFIG).is_file():
        raise _without_config(spec, folder)
    config = read_config(spec.name, folder / CONFIG)
    weights, missing = weight_files(spec.name, folder)
    if spec.weights == "checkpoint" and (missing or not weights):
        raise _without_weights(spec, folder, missing, len(weights))
    tokenizer = folder / "tokenizer.json"
    return ModelSource(
        folder=folder,
        hub_id=None,
        config=config,
        tokenizer_file=tokenizer if tokenizer.exists() else None,
        weights_bytes=sum(p.stat().st_size for p in weights) if spec.weights == "checkpoint" else None,
    )


def _why_gguf_is_not_run(file: str) -> str:
    """Why a GGUF file is counted and not run, and what runs it."""
    return (
        f"{file} is GGUF, which llama.cpp and what is built on it (Ollama, LM Studio) run; moeprof runs safetensors "
        f"with transformers: give the checkpoint that it was made of. `moeprof params {file}` counts it"
    )


def _without_config(spec: ModelSpec, folder: Path) -> ModelError:
    """What lies in a folder instead of a config.json that transformers could build a model from."""
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    if gguf is not None:
        return UnsupportedModelError(f"model {spec.name}: {_why_gguf_is_not_run(str(gguf))}")
    if (folder / "params.json").is_file():
        return ModelError(
            f"model {spec.name}: {folder} has Mistral's params.json and no {CONFIG}, which transformers builds models "
            f"from; `moeprof params {folder}` counts it"
        )
    return ModelError(f"model {spec.name}: no {CONFIG} in {folder}; is this a model folder?")


def _without_weights(spec: ModelSpec, folder: Path, missing: tuple[str, ...], there: int) -> ModelError:
    if missing:
        named = f"{missing[0]}{', ...' if len(missing) > 1 else ''}"
        return ModelError(
            f"model {spec.name}: {len(missing)} of the {len(missing) + there} files of weights that the index in "
            f"{folder} names are not there ({named}); fetch them, or say `weights: random` to measure the shape alone"
        )
    unsafe = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt*")]
    found = f"found {unsafe[0]}, which may hold code" if unsafe else "found none"
    return ModelError(
        f"model {spec.name}: no *.safetensors weights in {folder} ({found}); "
        "add them, or say `weights: random` to measure the shape alone"
    )


def _refused_adapter(spec: ModelSpec, adapter: dict[str, Any]) -> UnsupportedModelError:
    """An adapter is not run: what its matrices add to a step depends on how an engine applies them."""
    base = adapter.get("base_model_name_or_path")
    of = f" of {base[:100]!r}" if isinstance(base, str) and base else ""
    kind = adapter.get("peft_type")
    named = kind if isinstance(kind, str) and kind.isprintable() else "PEFT"
    return UnsupportedModelError(
        f"model {spec.name}: {spec.path} is an adapter ({named}){of}, not a model; merge it (peft's merge_and_unload, "
        "then save_pretrained) and give that folder. `moeprof params` counts both"
    )


def _from_hub(spec: ModelSpec) -> ModelSource:
    assert spec.path is not None
    config = hub_file(spec.name, spec.path, CONFIG, spec.revision)
    if config is None:
        adapter = hub_file(spec.name, spec.path, ADAPTER_CONFIG, spec.revision)
        if adapter is not None:
            raise _refused_adapter(spec, read_object(spec.name, adapter))
        raise ModelError(f"model {spec.name}: {spec.path} on the hub has no {CONFIG}, which transformers needs")
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
        row = next((row for row in systems() if row.name == spec.config), None)
        if row is not None:
            raise ModelError(f"model {spec.name}: {spec.config} {_why_not_run(row)}")
        close = difflib.get_close_matches(spec.config, configs, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ModelError(
            f"model {spec.name}: no config named {spec.config!r}{hint} `moeprof params --list` names the built-in "
            "ones; or give the path of a config.json"
        )
    return ModelSource(folder=None, hub_id=None, config=configs[spec.config], tokenizer_file=None, weights_bytes=None)


def _why_not_run(row: System) -> str:
    """Why a row of the built-in list without a config is not run."""
    if row.kind == "scheme":
        return "is a routing scheme, not a model"
    counted = f"can be counted (`moeprof params {row.name}`) and not run"
    if row.kind == "rumour":
        return f"{counted}: it is an unconfirmed rumour that says nothing but the size of its experts"
    return f"{counted}: the list has a description of its layers and no config of a transformers class"


def _overridden(source: ModelSource, spec: ModelSpec) -> ModelSource:
    """The source with keys of its config changed; lists of one item per layer are cut to the new depth.

    Raises:
        ModelError: the config has no such key, so that a slip of the pen would go unnoticed; or sizes that do not go
            together.
    """
    config, changes = dict(source.config), []
    for key, value in spec.override.items():
        if key not in config:
            close = difflib.get_close_matches(key, config, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it has {', '.join(sorted(config))}"
            raise ModelError(f"model {spec.name}: override: its config has no key {key!r}{hint}")
        old, config[key] = config[key], value
        if old == value:
            continue
        changes.append(f"{value} of {old} layers" if key == "num_hidden_layers" else f"{key} {value} instead of {old}")
        if key == "num_hidden_layers":
            config |= _cut_lists(config, old, value, spec.name)
    _check_shape(config, spec.name)
    return replace(source, config=config, changes=tuple(changes))


def _cut_lists(config: dict[str, Any], old: Any, new: Any, name: str) -> dict[str, Any]:
    """Lists of one item per layer, for fewer layers."""
    if not isinstance(new, int) or new < 1 or (isinstance(old, int) and new > old):
        raise ModelError(f"model {name}: override: num_hidden_layers: found {new}; 1 to {old} is allowed")
    return {key: value[:new] for key, value in config.items() if isinstance(value, list) and len(value) == old}


def _check_shape(config: dict[str, Any], name: str) -> None:
    """Sizes that torch would trip over in the first forward, with words that name no key."""
    hidden, heads, kv_heads = (config.get(k) for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    experts = next((config[k] for k in EXPERT_COUNT_KEYS if k in config), None)
    top_k = config.get("num_experts_per_tok")
    is_cut = not config.get("head_dim") and "v_head_dim" not in config  # else heads are as wide as they say
    told = None
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_experts_per_tok"):
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or value < 1):
            told = f"{key}: found {value!r}; a whole number of 1 or more is allowed"
    if told is None and is_cut and hidden and heads and hidden % heads:
        told = f"hidden_size: found {hidden}; a multiple of num_attention_heads, {heads}, is allowed"
    if told is None and heads and kv_heads and heads % kv_heads:
        told = f"num_attention_heads: found {heads}; a multiple of num_key_value_heads, {kv_heads}, is allowed"
    if told is None and isinstance(experts, int) and top_k and top_k > experts:
        told = f"num_experts_per_tok: found {top_k}; at most the number of experts, {experts}, is allowed"
    if told is not None:
        raise ModelError(f"model {name}: override: {told}")


def named_configs() -> dict[str, dict[str, Any]]:
    """The configs of the built-in list (``moeprof params --list``), by name."""
    return {row.name: dict(row.config) for row in systems() if row.config is not None}


def read_config(name: str, file: Path) -> dict[str, Any]:
    """The values of a config.json.

    Args:
        name: what the user called the model, for messages.
        file: the file.

    Raises:
        ModelError: no such file, no JSON, or neither ``model_type`` nor ``architectures``.
    """
    config = read_object(name, file)
    check_kinds(name, config, file)
    kind, named = config.get("model_type"), config.get("architectures")
    if named is not None and not all(isinstance(one, str) for one in named):
        raise ModelError(f"model {name}: {file}: architectures: a list of texts is allowed")
    if not kind and not named and text_values(config) is config:
        shaped = "hidden_size" in config or "num_hidden_layers" in config
        what = None if shaped else next((words for key, words in _OTHER_FILES.items() if key in config), None)
        reason = f"is {what}" if what else "names no model_type and no architectures, so no class can be chosen"
        raise ModelError(f"model {name}: {file} {reason}; a model's {CONFIG} is needed")
    return config


def check_kinds(name: str, config: dict[str, Any], file: Path, within: str = "") -> None:
    """The keys that moeprof and transformers look into before any class of a model is chosen are what they must be.

    Raises:
        ModelError: one is not; the key, what was found, what belongs there.
    """
    for key, (kind, word) in KINDS.items():
        value = config.get(key)
        if value is not None and not isinstance(value, kind):
            shown = str(value)[:60]
            raise ModelError(f"model {name}: {file}: {within}{key}: found {shown!r}; {word} belongs there")
    for key, value in config.items():
        if isinstance(value, bool) or not isinstance(value, int) or not COUNTED.fullmatch(key):
            continue
        if not 0 <= value <= (most := MOST_LAYERS if "layers" in key or "experts" in key else MOST_SIZE):
            raise ModelError(f"model {name}: {file}: {within}{key}: found {str(value)[:40]}; 0 to {most:,} is allowed")
    if isinstance(nested := config.get("text_config"), dict):
        check_kinds(name, nested, file, "text_config.")


# What a JSON file is that has this key and speaks of no model.
_OTHER_FILES = {
    "weight_map": "an index of files of weights",
    "peft_type": "the config of an adapter (give its folder)",
    "tokenizer_class": "the config of a tokenizer",
    "eos_token_id": "a config of generation",
}
