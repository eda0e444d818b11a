"""The token ids that end an output, as the checkpoint names them: what ``outputs: free`` stops at. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeprof.capture.models.find import ModelSource, hub_file
from moeprof.capture.models.shapes import text_values
from moeprof.core.errors import ModelError
from moeprof.core.files import UnreadableError, read_json_value
from moeprof.core.workload.models import ModelSpec

KEY = "eos_token_id"


def end_ids(spec: ModelSpec, source: ModelSource) -> tuple[int, ...]:
    """The ids, ascending; empty where the checkpoint names none, so that outputs have the length that was asked for.

    The first of these that names any: the workload's own ``override``, generation_config.json (what ``generate`` of
    transformers obeys), config.json, its text part, the tokenizer.

    Args:
        spec: whose weights are read: the model, or for a twin its MoE.
        source: where they were found.

    Raises:
        ModelError: generation_config.json is damaged.
    """
    config, generation = source.config, {} if KEY in spec.override else _generation_config(spec, source)
    for values in (generation, config, text_values(config)):
        found = _ids(values.get(KEY))
        if found:
            return found
    return _of_tokenizer(source.tokenizer_file)


def _ids(value: Any) -> tuple[int, ...]:
    """One id or a list of them; some configs say -1 for none."""
    listed = value if isinstance(value, list) else [value]
    return tuple(sorted({one for one in listed if type(one) is int and one >= 0}))


def _generation_config(spec: ModelSpec, source: ModelSource) -> dict[str, Any]:
    name = "generation_config.json"
    file: Path | None = None
    if source.folder is not None:
        file = source.folder / name
    elif source.hub_id is not None:
        file = hub_file(spec.name, source.hub_id, name, spec.revision)
    if file is None or not file.is_file():
        return {}
    try:
        values = read_json_value(file, non_finite="keep")
    except UnreadableError as fault:
        raise ModelError(f"model {spec.name}: {file} cannot be read as JSON ({fault.why})") from fault
    return values if isinstance(values, dict) else {}


def _of_tokenizer(file: Path | None) -> tuple[int, ...]:
    """The id of the tokenizer's ``eos_token``, where it is a token of its vocabulary."""
    if file is None:
        return ()
    from moeprof.sources.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(file)
    token = tokenizer.special_tokens.get("eos_token")
    found = None if token is None else tokenizer.backend.token_to_id(token)
    return () if found is None else (found,)
