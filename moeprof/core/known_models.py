"""The built-in list of models and routing schemes: shapes, published figures with their source, and our count.

Shapes and published figures are facts from model cards and papers. Where transformers has a class, ``config`` holds
what it is built from, and the count of that class is stored beside the list, so that counting a known system needs
neither transformers nor torch; a test counts every one of them again.

Elsewhere ``layers`` describes the model (core/description.py).
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from moeprof.core import yamlfile
from moeprof.core.description import ExpertsOnly, LayerDescription, described_facts
from moeprof.core.model_facts import ModelFacts

SYSTEMS = Path(__file__).resolve().parents[1] / "data" / "systems.yaml"
FACTS = SYSTEMS.with_name("system_facts.json")  # written by tests/helpers/system_facts.py
CONVENTIONS = {"A": "active_params", "B": "active_params_no_embedding", "C": "active_params_no_embedding_no_head"}
STATUS = {
    "model": "published",
    "rumour": "unconfirmed rumour",
    "scheme": "routing scheme, not a model",
    "shape": "shape for measurements",
}
# A vendor's figure further than this from every convention follows none of them.
MAX_CONVENTION_ERROR_RATIO = 0.10


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row of the list.

    Attributes:
        name: what people type.
        title: what people call it.
        kind: ``model``; ``rumour`` (marked so wherever it is shown); ``scheme`` (a way to route, no model);
            ``shape`` (for measurements).
        source: where the published figures stand.
        hub_id: Hugging Face id.
        published_total_params, published_active_params: the vendor's figures, or None.
        convention: which one the vendor's active figure follows, where its source or its rounding settles that.
        published_as: the figures as the vendor words them, where a number alone would mislead.
        config: what transformers builds it from, with ``model_type``.
        layers: description of its layers, where there is no class.
        experts_only: all that a rumour says.
        stored_bits: bits per parameter and group in the vendor's checkpoint, where other than the config's dtype.
        stored_bytes: of all its tensors, where no rule per group gives them.
        stored_as: how, in words.
        note: what a reader should know; for a scheme, what active means there.
    """

    name: str
    title: str
    source: str
    kind: Literal["model", "rumour", "scheme", "shape"] = "model"
    hub_id: str | None = None
    published_total_params: float | None = None
    published_active_params: float | None = None
    convention: Literal["A", "B", "C"] | None = None
    published_as: str = ""
    config: dict[str, Any] | None = None
    layers: LayerDescription | None = None
    experts_only: ExpertsOnly | None = None
    stored_bits: dict[str, float] = field(default_factory=dict)
    stored_bytes: int | None = None
    stored_as: str = ""
    note: str = ""

    @property
    def status(self) -> str:
        """What the figures are, in words."""
        return STATUS[self.kind]

    @property
    def description(self) -> LayerDescription | ExpertsOnly | None:
        """What stands in for a config."""
        return self.layers or self.experts_only


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedModel:
    """A model that somebody asked for, counted.

    Attributes:
        name: as asked.
        facts: the count; None for a routing scheme.
        system: its row of the built-in list, or None.
        stored_bytes: bytes of the weights in the vendor's checkpoint, or None.
        stored_reason: why there is none, or how they were found.
    """

    name: str
    facts: ModelFacts | None
    system: System | None = None
    stored_bytes: int | None = None
    stored_reason: str = ""

    @property
    def status(self) -> str:
        """What is known of it, in words."""
        return self.system.status if self.system is not None else "counted from its config"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    systems: tuple[System, ...]


@cache
def systems() -> tuple[System, ...]:
    """The whole list, in order."""
    return yamlfile.load(SYSTEMS, _File).systems


def system_facts(system: System) -> ModelFacts | None:
    """What it is, counted; None for a scheme."""
    if system.kind == "scheme":
        return None
    if system.description is not None:
        return described_facts(system.description, name=system.name, source=system.source)
    stored = dict(_stored_facts()[system.name])
    kinds, order = stored.pop("layer_kinds"), stored.pop("layers")
    layers = [kinds[kind] | {"name": kinds[kind]["name"].format(number)} for kind, number in order]
    found = {"name": system.name, "source": system.source, "moe_layers": layers} | stored
    return msgspec.convert(found, ModelFacts)


@cache
def _stored_facts() -> dict[str, dict[str, Any]]:
    """Row -> the count of its config; equal MoE layers are written once, with their numbers."""
    found: dict[str, dict[str, Any]] = json.loads(FACTS.read_text(encoding="utf-8"))
    return found


def find_system(text: str) -> System | None:
    """The row with this name, title or hub id, upper or lower case; None when there is none."""
    wanted = text.casefold()
    rows = systems()
    by_name = next((row for row in rows if row.name == wanted), None)
    return by_name or next(
        (row for row in rows if wanted in (row.title.casefold(), (row.hub_id or "").casefold()) and wanted), None
    )


def nearest_names(text: str) -> list[str]:
    """Up to three names of the list that look like ``text``, or that hold it."""
    names = [row.name for row in systems()]
    wanted = text.casefold().replace(" ", "-").replace("_", "-")
    close = difflib.get_close_matches(wanted, names, n=3)
    return close or [name for name in names if len(wanted) > 2 and (wanted in name or name in wanted)][:3]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """Which way of counting a vendor's active figure follows.

    Attributes:
        letter: ``A``, ``B`` or ``C`` of docs/metrics.md#parameters.
        error_ratio: ours / theirs - 1.
        is_settled: False when it is only the nearest of the three.
    """

    letter: str
    error_ratio: float
    is_settled: bool


def convention_of(system: System, facts: ModelFacts) -> Convention | None:
    """The convention of a row's published active figure.

    Args:
        system: the row.
        facts: our count of it.

    Returns:
        The settled one, else the nearest (A where two are equal); None when the vendor says nothing or no convention
        comes within a tenth.
    """
    published = system.published_active_params
    if published is None:
        return None
    errors = {c: float(getattr(facts, name)) / published - 1 for c, name in CONVENTIONS.items()}
    if system.convention is not None:
        return Convention(letter=system.convention, error_ratio=errors[system.convention], is_settled=True)
    nearest = min(errors, key=lambda c: abs(errors[c]))
    if abs(errors[nearest]) > MAX_CONVENTION_ERROR_RATIO:
        return None
    return Convention(letter=nearest, error_ratio=errors[nearest], is_settled=False)
