"""From what somebody typed to a counted model, without weights: a hub id, a folder, a config, a name of the list.

A name of the list or a description never needs torch. A hub id that the built-in list knows is counted from the list
where the hub has no answer, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moeprof.capture.models.counting.native import NATIVE, read_native
from moeprof.capture.models.find import read_config
from moeprof.core import yamlfile
from moeprof.core.errors import ModelError
from moeprof.core.files import UnreadableError, read_json_value
from moeprof.core.known_models import (
    CountedModel,
    LayerDescription,
    System,
    described_facts,
    find_system,
    nearest_names,
    system_facts,
)
from moeprof.core.model_facts import ModelFacts

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class _DescriptionFile:
    layers: LayerDescription


def count_model(text: str) -> CountedModel:
    """Count a model.

    Args:
        text: a name of the built-in list, a local folder with config.json or Mistral's params.json, the path of either,
            the path of a YAML file with ``layers`` (a description), or a hub id.

    Raises:
        ModelError: nothing of that name, no config there, or transformers cannot build it.
        WorkloadError: a description that cannot be read.
    """
    path = Path(text)
    if not text.strip():
        raise ModelError(f"no model given{_hint(text)}")
    if path.is_dir() and not (path / "config.json").is_file() and (path / NATIVE).is_file():
        path = path / NATIVE
    if path.is_dir():
        return _from_file(text, path / "config.json")
    if path.name == NATIVE and path.is_file() and (native := read_native(path)) is not None:
        return replace(native, name=path.parent.resolve().name)
    if path.suffix in (".yaml", ".yml"):
        described = yamlfile.load(path, _DescriptionFile).layers
        return CountedModel(
            name=path.stem,
            facts=described_facts(described, name=path.stem, source=path.name),
            stored_reason="a description has no checkpoint",
        )
    if path.is_file():
        return _from_file(text, path)
    if path.suffix == ".json":
        raise ModelError(f"{text}: no such file; give a folder with config.json, or the path of one")
    system = find_system(text)
    if system is not None and text.count("/") == 1:
        return _from_hub(text, system)
    if system is not None:
        return count_system(system)
    if text.count("/") == 1 and not text.startswith((".", "~", "/")) and all(text.split("/")):
        return _from_hub(text, None)
    raise ModelError(f"no model, folder or config called {text!r}{_hint(text)}")


def _hint(text: str) -> str:
    close = nearest_names(text)
    mean = f"; did you mean {' or '.join(close)}?" if close else ";"
    return f"{mean} `moeprof params --list` names the built-in ones; a folder, a config.json or org/name will do too"


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


def _from_file(text: str, file: Path) -> CountedModel:
    config = read_config(text, file)
    name = file.parent.resolve().name if file.name == "config.json" else file.stem
    facts = facts_of_config(config, name=name, source=file.name)
    weights = sorted(file.parent.glob("*.safetensors")) if file.name == "config.json" else []
    if weights:
        from moeprof.capture.models.counting.stored_size import by_headers

        size, reason = by_headers(weights)
        return CountedModel(name=name, facts=facts, stored_bytes=size, stored_reason=reason)
    return _stored(CountedModel(name=name, facts=facts), config, file.parent / INDEX)


def _from_hub(text: str, system: System | None) -> CountedModel:
    from moeprof.capture.models.find import hub_file

    try:
        file = hub_file(text, text, "config.json", None)
        if file is None:
            raise ModelError(f"model {text}: no config.json on the hub; is it a transformers model?")
        config = read_config(text, file)
        facts = facts_of_config(config, name=text, source=text)
    except ModelError as error:
        if system is None:
            raise
        return _instead_of_hub(text, system, str(error))
    return _stored(CountedModel(name=text, facts=facts, system=system), config, hub_file(text, text, INDEX, None))


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
        try:
            size = int(read_json_value(index)["metadata"]["total_size"])
            return replace(counted, stored_bytes=size, stored_reason=f"total_size of {INDEX}")
        except (UnreadableError, ValueError, KeyError, TypeError):
            pass  # an index without a total says nothing about bytes; the config may
    quantization = config.get("quantization_config") or {}
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
    return replace(
        counted, stored_bytes=sum(counted.facts.bytes_by_group.values()), stored_reason=f"all in {counted.facts.dtype}"
    )


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
    from moeprof.capture.models.meta import config_object, facts_from_config, total_with_other_parts

    many = many_layers(config, lambda cut: facts_of_config(cut, name=name, source=source), name=name)
    if many is not None:
        return many
    built = config_object(config, name=name)
    alone = language_model_config(built)
    counted = built if alone is None else alone
    facts = facts_from_config(counted, name=name, source=source, dtype=_dtype(config), allocated=False)
    notes = [*_stand_in(config, built), *ignored_keys(config, built)]
    whole = None if facts.other_parts else total_with_other_parts(built, name=name)
    if whole is not None and whole > facts.total_params:
        notes.insert(
            0, f"the language model alone: with its other parts (vision, sound) the model has {whole} parameters"
        )
    return replace(facts, notes=(*notes, *facts.notes))


def _stand_in(config: dict[str, Any], built: Any) -> list[str]:
    """That a class of another model_type was taken."""
    if config.get("model_type") == built.model_type:
        return []
    named = ", ".join(config.get("architectures") or ())
    return [f"model_type {config.get('model_type')!r} is not known: counted as {named}, which `architectures` names"]


def _dtype(config: dict[str, Any]) -> str:
    """The dtype that a config names, of the nested language model where it stands there; bfloat16 without one."""
    nested = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    found = config.get("dtype") or config.get("torch_dtype") or (nested or {}).get("dtype") or "bfloat16"
    return str(found) if found in ("float32", "float16", "bfloat16") else "bfloat16"
