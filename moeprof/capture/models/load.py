"""Load a model onto the device: checkpoint or random weights, safetensors only, mapped to clear errors.

Random weights are drawn straight on the device in the target dtype (no host copy, see random_weights.py). A checkpoint
goes shard by shard from the files to the device. One whose tensors do not match its config is an error: transformers
would fill the gaps with random numbers and only warn.

Which weights a model has, in one line: ``revision`` in model.json. Two runs with the same one had the same weights.

``sha256:...``   a local folder: names and bytes of its safetensors files, its config and an adapter's config
``sampled:...``  the same of a folder over 4 GiB, of whose files headers, sizes and evenly spaced samples are read; a
                 change that misses every sample is not seen
``commit:...``   the commit of a hub repository
``random by module, seed 0``; a twin says the revision of its MoE and how it was made
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from moeprof.capture import compat
from moeprof.capture.models.find import ModelSource
from moeprof.capture.models.language_model import continuing_classes, leave_out_other_parts, left_out, why_not_continued
from moeprof.capture.models.meta import config_object, has_class, part_with_class, why_unknown
from moeprof.capture.models.random_weights import random_model
from moeprof.capture.models.twins import TwinMlp
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.files import ANY_SIZE, UnreadableError, opened, read_json_value
from moeprof.core.workload.engine import Parallel, TransformersSettings
from moeprof.core.workload.models import ModelSpec

Reshape = Callable[[Any], None]
# One rank's part: spec, source, config, plan, device, more for transformers, seed of random weights.
LoadPart = Callable[[ModelSpec, ModelSource, Any, Parallel, torch.device, dict[str, Any], int], Any]
RANDOM_SEED = 0
RANDOM_WEIGHTS = f"random by module, seed {RANDOM_SEED}"  # how they are drawn: other words, other weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, in eval mode.

    Attributes:
        model: the transformers module.
        load_s: seconds from start to ready.
    """

    model: Any
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What will be loaded: the config object, the dtype and why, before any weight is read."""

    config: Any
    dtype: torch.dtype
    dtype_reason: str


def read_blueprint(
    spec: ModelSpec, source: ModelSource, settings: TransformersSettings, device: torch.device
) -> Blueprint:
    """Read the config and choose the dtype.

    Raises:
        UnsupportedModelError: transformers does not know the architecture, or it continues no text.
    """
    config = read_config_object(spec, source)
    dtype, reason = choose_dtype(spec.dtype or settings.dtype, config, device)
    return Blueprint(config=config, dtype=dtype, dtype_reason=reason)


def load_model(
    spec: ModelSpec,
    source: ModelSource,
    blueprint: Blueprint,
    settings: TransformersSettings,
    device: torch.device,
    *,
    reshape: Reshape | None = None,
    load_part: LoadPart | None = None,
) -> LoadedModel:
    """Load ``source`` as ``spec`` asks.

    Args:
        spec: which weights, and the name for messages.
        source: where they are.
        blueprint: config and dtype.
        settings: experts implementation.
        device: where to.
        reshape: changes the model's modules before memory is taken for any weight; those of what it takes out are not
            read. A TwinMlp that it puts in gets memory, and its values later (``draw_weights``).
        load_part: loads one rank's part, where ranks share the model.

    Raises:
        ModelError: damaged or mismatching weights.
        UnsupportedModelError: needs a library that is not there.
    """
    start = time.perf_counter()
    kwargs: dict[str, Any] = {"dtype": blueprint.dtype, "attn_implementation": _attention(blueprint.config)}
    if settings.experts != "auto":
        kwargs["experts_implementation"] = settings.experts
    try:
        if settings.parallel is not None:
            if _may_have_other_parts(spec, blueprint.config):
                why = "has parts beside a language model; engine.parallel cuts language models only"
                raise UnsupportedModelError(f"model {spec.name}: {why}")
            assert load_part is not None, "ranks share the model, and nobody said how it is cut"
            own = (spec, source, blueprint.config, settings.parallel, device, kwargs, RANDOM_SEED)
            model = _guard(spec, lambda: load_part(*own))
        elif spec.weights == "random":
            model = _build_random(spec, blueprint.config, device, kwargs, reshape)
        elif reshape is None and not _may_have_other_parts(spec, blueprint.config):
            model = _build(spec, source, blueprint.config, device, kwargs)
        else:
            model = _build_reshaped(spec, source, blueprint.config, device, kwargs, _on_text_alone(reshape))
    except SafetensorError as error:
        raise ModelError(f"model {spec.name}: damaged weights file ({error}); fetch it again") from error
    except ImportError as error:
        raise _needs_library(spec, error) from error
    return LoadedModel(model=model.eval(), load_s=time.perf_counter() - start)


def choose_dtype(asked: str, config: Any, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype to compute in, and why.

    ``auto`` is the checkpoint's own, except on a CPU without instructions for it: emulated bf16 hides the physics
    (a step then takes the same time whatever the router does).
    """
    if asked != "auto":
        return getattr(torch, asked), "asked for"
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None) or torch.float32
    own = getattr(torch, own) if isinstance(own, str) else own
    if device.type != "cpu" or own == torch.float32:
        return own, "the checkpoint's"
    if own == torch.bfloat16 and compat.has_bf16_instructions():
        return own, "the checkpoint's; this CPU has bf16 instructions"
    return torch.float32, f"this CPU has no {str(own).removeprefix('torch.')} instructions"


def _attention(config: Any) -> str:
    """``sdpa``, or ``eager`` for classes that transformers has no such attention for (attention sinks and the like)."""
    classes = continuing_classes(config)[1]
    return "sdpa" if all(map(compat.supports_sdpa, classes)) else "eager"


def read_config_object(spec: ModelSpec, source: ModelSource) -> Any:
    """The config that the model will be built of, once it is known that a class of language models takes it.

    Raises:
        UnsupportedModelError: transformers knows no such config, or no class that continues text is built of it.
    """
    config = _config(spec, source)
    reason = None if _has_own_code(spec, config) else why_not_continued(config)
    if reason is not None:
        raise UnsupportedModelError(f"model {spec.name}: {reason}")
    return config


def outline_of(spec: ModelSpec, config: Any, settings: TransformersSettings) -> Any:
    """The model without memory: what it is made of, before a weight is read. Quantised ones as they are before it.

    Raises:
        ModelError: the class refuses the config, or the experts implementation that was asked for.
    """
    config = copy.deepcopy(config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    kwargs: dict[str, Any] = {"dtype": torch.bfloat16, "attn_implementation": _attention(config)}
    if settings.experts != "auto":
        kwargs["experts_implementation"] = settings.experts

    def build() -> Any:
        with torch.device("meta"):
            return (continuing_classes(config)[0] or AutoModelForCausalLM).from_config(config, **kwargs)

    try:
        return _guard(spec, build)
    except ImportError as error:
        raise _needs_library(spec, error) from error
    except (TypeError, AttributeError, AssertionError, ArithmeticError) as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(f"model {spec.name}: the config cannot be built ({type(error).__name__}: {first})") from error


def _needs_library(spec: ModelSpec, error: ImportError) -> UnsupportedModelError:
    return UnsupportedModelError(f"model {spec.name}: needs a library that is not installed: {error}")


def _config(spec: ModelSpec, source: ModelSource) -> Any:
    where = None if spec.override else source.hub_id or source.folder
    known = source.config.get("model_type") in transformers.CONFIG_MAPPING
    own_code = spec.trust_remote_code and where is not None and bool(source.config.get("auto_map"))
    if not own_code and (not known or where is None):
        return _of_values(spec, source)
    try:
        return AutoConfig.from_pretrained(where, revision=spec.revision, trust_remote_code=spec.trust_remote_code)
    except (ValueError, KeyError, OSError, ImportError, StrictDataclassError) as error:
        first = " ".join(str(error).split())[:300] or type(error).__name__
        raise UnsupportedModelError(
            f"model {spec.name}: transformers {transformers.__version__} cannot build "
            f"model_type {source.config.get('model_type')!r}: {first}"
        ) from error


def _of_values(spec: ModelSpec, source: ModelSource) -> Any:
    """The config of its values alone: of a class that they name, for random weights of a nested language model too.

    A checkpoint's tensors are those of the whole model, so a nested language model does not take them.
    """
    values, has_files = source.config, source.hub_id is not None or source.folder is not None
    part = part_with_class(values)
    if not has_class(part) or (part is not values and spec.weights == "checkpoint"):
        raise UnsupportedModelError(f"model {spec.name}: {why_unknown(values, to_run=has_files)}")
    return config_object(values, name=spec.name)


def _build_random(
    spec: ModelSpec, config: Any, device: torch.device, kwargs: dict[str, Any], reshape: Reshape | None
) -> Any:
    if reshape is not None:
        _text_model_class(spec, config)  # refuses code that comes with a checkpoint
    auto = continuing_classes(config)[0] or AutoModelForCausalLM

    def build() -> Any:
        return auto.from_config(config, **kwargs)

    own = _on_text_alone(reshape)
    return _guard(
        spec, lambda: random_model(build, device, seed=RANDOM_SEED, name=spec.name, reshape=own, later=TwinMlp)
    )


def _has_own_code(spec: ModelSpec, config: Any) -> bool:
    """True where code that comes with the checkpoint builds the model."""
    return spec.trust_remote_code and bool(getattr(config, "auto_map", None))


def _may_have_other_parts(spec: ModelSpec, config: Any) -> bool:
    """True for a config with a language model inside, built by transformers' own class of the whole."""
    if _has_own_code(spec, config) or config.get_text_config(decoder=True) is config:
        return False
    return _text_model_class(spec, config)[1] is config


def _on_text_alone(reshape: Reshape | None) -> Reshape:
    """``reshape`` after the parts that no text token passes are gone, before memory is taken for them."""

    def change(model: Any) -> None:
        leave_out_other_parts(model)
        if reshape is not None:
            reshape(model)

    return change


def _build(spec: ModelSpec, source: ModelSource, config: Any, device: torch.device, kwargs: dict[str, Any]) -> Any:
    model, info = _guard(
        spec,
        lambda: AutoModelForCausalLM.from_pretrained(
            source.hub_id or source.folder,
            config=config,
            revision=spec.revision,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            device_map={"": device},
            **kwargs,
        ),
    )
    _refuse_missing(spec, info["missing_keys"])
    return model


def _build_reshaped(
    spec: ModelSpec, source: ModelSource, config: Any, device: torch.device, kwargs: dict[str, Any], reshape: Reshape
) -> Any:
    """Build on the meta device, reshape there, then load only what is left."""
    model_class, config = _text_model_class(spec, config)
    new: set[str] = set()

    def init(self: Any, *args: Any, **more: Any) -> None:
        model_class.__init__(self, *args, **more)
        before = {name for name, _ in self.named_parameters()}
        reshape(self)
        compat.ignore_on_load(self, left_out(self))
        new.update({name for name, _ in self.named_parameters()} - before)

    # Under its own name and module: transformers finds key conversions and source files by them.
    reshaped: Any = type(model_class.__name__, (model_class,), {"__init__": init, "__module__": model_class.__module__})
    model, info = _guard(
        spec,
        lambda: reshaped.from_pretrained(
            source.hub_id or source.folder,
            config=config,
            revision=spec.revision,
            use_safetensors=True,
            output_loading_info=True,
            device_map={"": device},
            **kwargs,
        ),
    )
    _refuse_missing(spec, set(info["missing_keys"]) - new)
    return model


def _text_model_class(spec: ModelSpec, config: Any) -> tuple[Any, Any]:
    """The class that continues a text, and the part of the config that it is built from."""
    options = continuing_classes(config)[1]
    if not options:
        raise UnsupportedModelError(
            f"model {spec.name}: its code comes with the checkpoint; a twin is built of transformers' own classes only"
        )
    named = {option.__name__: option for option in options}
    chosen = next((named[a] for a in getattr(config, "architectures", None) or () if a in named), options[0])
    text_class = config.sub_configs.get("text_config")
    is_part = text_class is not None and getattr(chosen, "config_class", None) is text_class
    return chosen, config.get_text_config() if is_part else config


def _refuse_missing(spec: ModelSpec, keys: Iterable[str]) -> None:
    missing = sorted(keys)
    if missing:
        raise ModelError(
            f"model {spec.name}: the weights lack {len(missing)} tensors that config.json asks for "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); config and weights do not match"
        )


def _guard(spec: ModelSpec, build: Any) -> Any:
    try:
        return build()
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(f"model {spec.name}: cannot be loaded: {lines[0][:300]}") from error


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
            with opened(path, ANY_SIZE) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def _sample(path: Path, size: int, samples: int, sample_bytes: int, digest: Any) -> None:
    """Header (names, shapes and dtypes of tensors), then samples from the first byte of the data to the last."""
    with opened(path, ANY_SIZE) as file:
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
        config = read_json_value(file, non_finite="keep")
    except UnreadableError:
        return ""
    kept = {k: v for k, v in config.items() if k not in VOLATILE} if isinstance(config, dict) else config
    return json.dumps(kept, sort_keys=True)


def _commit(repository: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stood for when its files were fetched: the snapshot's folder in the cache."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=revision)
    return f"commit:{Path(found).parent.name}" if isinstance(found, str) else None
