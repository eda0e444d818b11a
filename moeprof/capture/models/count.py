"""From what somebody typed to a counted model, without weights: a hub id, a folder, a config, a name of the list.

A name of the list or a description never needs torch. A hub id that the built-in list knows is counted from the list
where the hub has no answer, and says so.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moeprof.capture.models.counting.gguf import is_gguf
from moeprof.capture.models.counting.gguf_model import count_gguf, gguf_in
from moeprof.capture.models.counting.native import NATIVE, is_native, read_native
from moeprof.capture.models.files import ADAPTER_CONFIG, CONFIG, INDEX, is_adapter, read_index, weight_files
from moeprof.capture.models.find import read_config
from moeprof.capture.models.shapes import text_values
from moeprof.core import yamlfile
from moeprof.core.description import LayerDescription, described_facts
from moeprof.core.errors import ModelError
from moeprof.core.known_models import (
    CountedModel,
    System,
    find_system,
    nearest_names,
    system_facts,
)
from moeprof.core.model_facts import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class _DescriptionFile:
    layers: LayerDescription


def count_model(text: str) -> CountedModel:
    """Count a model.

    Args:
        text: a name of the built-in list; a local folder with config.json, an adapter, Mistral's params.json or a GGUF
            file, or the path of one of them; the path of a YAML file with ``layers`` (a description); or a hub id.

    Raises:
        ModelError: nothing of that name, no config there, or transformers cannot build it.
        WorkloadError: a description that cannot be read.
    """
    path = Path(text)
    if not text.strip():
        raise ModelError(f"no model given{_hint(text)}")
    if os.path.isdir(text):
        return _from_folder(text, path)
    if path.suffix in (".yaml", ".yml"):
        return _described(path)
    if os.path.isfile(text):
        return _from_file(text, path)
    if path.suffix in (".json", ".gguf"):
        raise ModelError(f"{text}: no such file; give a folder with {CONFIG}, or the path of one")
    system = find_system(text)
    if system is not None and text.count("/") == 1:
        return _from_hub(text, system)
    if system is not None:
        return count_system(system)
    if text.count("/") == 1 and not text.startswith((".", "~", "/")) and all(text.split("/")):
        return _from_hub(text, None)
    raise ModelError(f"no model, folder or config called {text!r}{_hint(text)}")


def _described(path: Path) -> CountedModel:
    layers = yamlfile.load(path, _DescriptionFile).layers
    facts = described_facts(layers, name=path.stem, source=path.name)
    return CountedModel(name=path.stem, facts=facts, stored_reason="a description has no checkpoint")


def _from_folder(text: str, folder: Path) -> CountedModel:
    """What a folder holds: an adapter, a config.json, Mistral's params.json, or a GGUF file, in this order."""
    if is_adapter(folder):
        from moeprof.capture.models.counting.adapter import count_adapter

        return count_adapter(text, folder, count_model)
    if (folder / CONFIG).is_file():
        return _from_config(text, folder / CONFIG)
    if (folder / NATIVE).is_file():
        return replace(read_native(folder / NATIVE), name=folder.resolve().name)
    if (gguf := gguf_in(folder)) is not None:
        return count_gguf(gguf)
    if (folder / INDEX).is_file():
        raise ModelError(
            f"{text}: its {INDEX} names tensors and not their shapes, and there is no {CONFIG}; add that of the model"
        )
    raise ModelError(f"model {text}: no {CONFIG} in {folder}; is this a model folder?")


def _from_file(text: str, path: Path) -> CountedModel:
    """A file by what it is: GGUF by its first bytes, others by name; any other name is that of a config."""
    if is_gguf(path) or path.suffix == ".gguf":
        return count_gguf(path)
    if path.name == NATIVE and is_native(path):
        return replace(read_native(path), name=path.parent.resolve().name)
    if path.name in (ADAPTER_CONFIG, INDEX):
        return _from_folder(text, path.parent)
    if path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise ModelError(f"{text}: weights alone do not say what they are of; give the folder with the {CONFIG}")
    return _from_config(text, path)


def _hint(text: str) -> str:
    close = nearest_names(text)
    mean = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{mean} `moeprof params --list` names the built-in ones; a folder, a file or org/name will do too"


def count_system(system: System) -> CountedModel:
    """Count a row of the built-in list."""
    facts = system_facts(system)
    if facts is None:
        return CountedModel(name=system.name, facts=None, system=system, stored_reason=system.status)
    return _listed(system.name, facts, system)


def _listed(name: str, facts: ModelFacts, system: System) -> CountedModel:
    """With bytes as the vendor stores them: the dtype of the config but for the groups that the list names."""
    if system.kind == "rumour":
        return CountedModel(name=name, facts=facts, system=system, stored_reason="a rumour has no checkpoint")
    if system.hub_id is None and system.kind == "model":
        return CountedModel(name=name, facts=facts, system=system, stored_reason="the list names no checkpoint")
    if system.stored_bytes is not None:
        reason = system.stored_as or f"all in {facts.dtype}"
        return CountedModel(
            name=name, facts=facts, system=system, stored_bytes=system.stored_bytes, stored_reason=reason
        )
    stored = dict(facts.bytes_by_group)
    stored |= {group: round(facts.params_by_group[group] * bits / 8) for group, bits in system.stored_bits.items()}
    bits = "".join(f", {group} {bits:.3g} bits" for group, bits in system.stored_bits.items())
    return CountedModel(
        name=name, facts=facts, system=system, stored_bytes=sum(stored.values()), stored_reason=f"{facts.dtype}{bits}"
    )


def _from_config(text: str, file: Path) -> CountedModel:
    config = read_config(text, file)
    name = file.parent.resolve().name if file.name == CONFIG else file.stem
    facts = facts_of_config(config, name=name, source=file.name)
    weights, missing = weight_files(text, file.parent) if file.name == CONFIG else ((), ())
    if weights and not missing:
        from moeprof.capture.models.counting.stored_size import by_headers

        size, reason = by_headers(weights)
        return CountedModel(name=name, facts=facts, stored_bytes=size, stored_reason=reason)
    index = file.parent / INDEX
    return _stored(CountedModel(name=name, facts=facts), config, index if file.name == CONFIG else None)


def _from_hub(text: str, system: System | None) -> CountedModel:
    from moeprof.capture.models.find import hub_file

    try:
        file = hub_file(text, text, CONFIG, None)
        if file is None:
            return _from_hub_without_config(text)
        config = read_config(text, file)
        facts = facts_of_config(config, name=text, source=text)
    except ModelError as error:
        if system is None:
            raise
        return _instead_of_hub(text, system, str(error))
    return _stored(CountedModel(name=text, facts=facts, system=system), config, hub_file(text, text, INDEX, None))


def _from_hub_without_config(text: str) -> CountedModel:
    """An adapter's repository, or Mistral's own form."""
    from moeprof.capture.models.find import hub_file

    adapter = hub_file(text, text, ADAPTER_CONFIG, None)
    if adapter is not None:
        from moeprof.capture.models.counting.adapter import count_adapter

        return replace(count_adapter(text, adapter.parent, count_model), name=text)
    native = hub_file(text, text, NATIVE, None)
    if native is not None:
        return replace(read_native(native), name=text)
    raise ModelError(
        f"model {text}: the hub has it without {CONFIG}, {ADAPTER_CONFIG} and {NATIVE}; of a GGUF repository fetch a "
        "file and give its path"
    )


def _instead_of_hub(text: str, system: System, why: str) -> CountedModel:
    """The row of the list, with a note that the hub gave nothing to count."""
    counted = count_system(system)
    assert counted.facts is not None, "no scheme has a hub id"
    note = f"counted from the built-in list, because {why}"
    return replace(counted, name=text, facts=replace(counted.facts, notes=(*counted.facts.notes, note)))


def _stored(counted: CountedModel, config: dict[str, Any], index: Path | None) -> CountedModel:
    """Bytes of the checkpoint: from the index of its files, else from the dtype that the config names."""
    assert counted.facts is not None
    if index is not None and index.is_file():
        named = read_index(counted.name, index)
        counted = _compared(counted, named.total_params)
        if named.total_bytes is not None:  # without a total the index says nothing about bytes; the config may
            return replace(counted, stored_bytes=named.total_bytes, stored_reason=f"total_size of {INDEX}")
    found = config.get("quantization_config")
    quantization = found if isinstance(found, dict) else {}
    method = quantization.get("quant_method")
    if method is not None:
        from moeprof.capture.models.counting.stored_size import by_rule
        from moeprof.capture.models.meta import config_object

        built = config_object(config, name=counted.name)
        ruled = by_rule(built, quantization, name=counted.name, dtype=_dtype(config))
        if ruled is not None:
            return replace(counted, stored_bytes=ruled[0], stored_reason=ruled[1])
        reason = f"quantised ({method}): the sizes of packed weights stand in the weight files only"
        return replace(counted, stored_reason=reason)
    assert counted.facts is not None
    said = _named_dtype(config)
    reason = f"all in {counted.facts.dtype}"
    if said != counted.facts.dtype:
        reason += f", assumed: the config says {said}" if said else ", assumed: the config names no dtype"
    return replace(counted, stored_bytes=sum(counted.facts.bytes_by_group.values()), stored_reason=reason)


def _compared(counted: CountedModel, total: int | None) -> CountedModel:
    """With a note where the writer of an index counted another number of parameters."""
    assert counted.facts is not None
    if total is None or total == counted.facts.total_params:
        return counted
    note = f"{INDEX} says {total} parameters, the class has {counted.facts.total_params}"
    return replace(counted, facts=replace(counted.facts, notes=(*counted.facts.notes, note)))


def facts_of_config(config: dict[str, Any], *, name: str, source: str) -> ModelFacts:
    """Count what a config.json describes; experts that compute nothing are left out, as checkpoints leave them out.

    Args:
        config: the values, with ``model_type``.
        name: what to call it.
        source: where it came from.

    Raises:
        UnsupportedModelError: transformers has no class for it, or its experts are not understood.
        ModelError: the class refuses the values.
    """
    from moeprof.capture.models.counting.ignored_keys import ignored_keys
    from moeprof.capture.models.counting.many_layers import many_layers
    from moeprof.capture.models.language_model import language_model_config
    from moeprof.capture.models.meta import (
        config_object,
        facts_from_config,
        part_with_class,
        stand_in_notes,
        total_with_other_parts,
    )

    many = many_layers(config, lambda cut: facts_of_config(cut, name=name, source=source), name=name)
    if many is not None:
        return many
    built = config_object(config, name=name)
    alone = language_model_config(built)
    counted = built if alone is None else alone
    facts = facts_from_config(counted, name=name, source=source, dtype=_dtype(config), allocated=False)
    notes = [*stand_in_notes(config, built), *ignored_keys(part_with_class(config), built)]
    whole = None if facts.other_parts else total_with_other_parts(built, name=name)
    if whole is not None and whole > facts.total_params:
        notes.insert(
            0, f"the language model alone: with its other parts (vision, sound) the model has {whole} parameters"
        )
    return replace(facts, notes=(*notes, *facts.notes))


def _dtype(config: dict[str, Any]) -> str:
    """The dtype that a config names, of the nested language model where it stands there; bfloat16 without one."""
    found = _named_dtype(config)
    return found if found in ("float32", "float16", "bfloat16") else "bfloat16"


def _named_dtype(config: dict[str, Any]) -> str:
    holders = (config, text_values(config))
    return next((str(c[key]) for c in holders for key in ("dtype", "torch_dtype") if c.get(key)), "").removeprefix(
        "torch."
    )
