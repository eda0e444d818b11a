"""``python -m tests.helpers.system_facts`` counts every config of the built-in list: moeprof/data/system_facts.json."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from typing import Any

from moeprof.capture.models.count import facts_of_config
from moeprof.capture.models.find import named_configs
from moeprof.core.known_models import FACTS, System, systems
from moeprof.core.model_facts import LayerAttention, ModelFacts
from moeprof.core.record.headers import to_json


def count_config(system: System) -> ModelFacts:
    """As transformers' class has it."""
    return facts_of_config(named_configs()[system.name], name=system.name, source=system.source)


def packed(facts: ModelFacts) -> dict[str, Any]:
    """One row of the file: what the list does not say, and each kind of MoE layer once."""
    value: dict[str, Any] = to_json(facts)
    layers, kinds, order = value.pop("moe_layers"), [], []
    for layer in layers:
        before, number, after = re.split(r"(\d+)", layer["name"], maxsplit=1)
        kind = layer | {"name": f"{before}{{}}{after}"}
        kinds += [] if kind in kinds else [kind]
        order.append([kinds.index(kind), int(number)])
    plain = {field.name: field.default for field in fields(LayerAttention)}
    value["attention"] = [{k: v for k, v in kind.items() if v != plain[k]} for kind in value["attention"]]
    usual = {field.name: field.default for field in fields(ModelFacts)} | {"name": facts.name, "source": facts.source}
    usual |= {"other_parts": {}}
    return {key: item for key, item in value.items() if item != usual[key]} | {"layer_kinds": kinds, "layers": order}


if __name__ == "__main__":
    rows = [f"{json.dumps(row.name)}: {json.dumps(packed(count_config(row)))}" for row in systems() if row.config]
    FACTS.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="utf-8")
