"""What answers requests: the table of engines. A kind is one file and one row; see docs/recipes/engine.md.

The row names, as text, the class of the kind's settings (read by the parent, so without torch) and the function that
opens a model (called in the worker)::

    open(spec, settings, device, *, base, warmup, before_weights) -> Deployment

``auto`` is the first row.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

from moeprof.core.workload.engine import EngineSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """A row: ``module:name`` of the settings class and of the function that opens a model.

    ``check``, where there is something to look at: called by the parent with the workload before a run has a folder;
    raises what a user has to mend.
    """

    settings: str
    open: str
    check: str | None = None


ENGINES = {
    "transformers": EngineKind(
        settings="moeprof.core.workload.engine:TransformersSettings", open="moeprof.capture.engines.hf:open"
    ),
    "openai": EngineKind(
        settings="moeprof.capture.engines.served.settings:OpenAISettings",
        open="moeprof.capture.engines.served.open:open",
        check="moeprof.capture.engines.served.probe:check",
    ),
}


def named(text: str) -> Any:
    """What ``module:name`` stands for."""
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def engine_kinds() -> dict[str, type[EngineSettings]]:
    """What a workload's ``engine.kind`` may say, and the class that reads the other keys."""
    classes = {kind: named(row.settings) for kind, row in ENGINES.items()}
    return {"auto": next(iter(classes.values())), **classes}


def chosen(settings: EngineSettings) -> EngineSettings:
    """The same settings with a kind in place of ``auto``."""
    return replace(settings, kind=next(iter(ENGINES))) if settings.kind == "auto" else settings
