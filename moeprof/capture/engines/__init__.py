"""What answers requests: the table of engines. A kind is one file and one row; see docs/recipes/engine.md.

The row names, as text, the class of the kind's settings (read by the parent, so without torch) and the function that
opens a model (called in the worker)::

    open(spec, settings, device, *, base, warmup, before_weights) -> Deployment

``auto`` is the first row that offers itself for a workload on this machine, and else the first row.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

from moeprof.capture.engines.settled import Settled
from moeprof.core.workload.engine import EngineSettings, ours
from moeprof.core.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """A row: ``module:name`` of the settings class and of the function that opens a model.

    Attributes:
        settings: the class.
        open: the function.
        settle: makes settings ready on this machine, before a run: ``settle(workload) -> Settled``.
        offer: whether ``auto`` takes this kind: ``offer(workload)`` gives Settled, why not, or None: it is not there.
        check: where there is something to look at: called by the parent with the workload before a run has a folder;
            raises what a user has to mend.
    """

    settings: str
    open: str
    settle: str | None = None
    offer: str | None = None
    check: str | None = None


ENGINES = {
    "transformers": EngineKind(
        settings="moeprof.core.workload.engine:TransformersSettings", open="moeprof.capture.engines.hf:open"
    ),
    "vllm": EngineKind(
        settings="moeprof.capture.engines.vllm.settings:VllmSettings",
        open="moeprof.capture.engines.vllm.open:open",
        settle="moeprof.capture.engines.vllm.choose:settle",
        offer="moeprof.capture.engines.vllm.choose:offer",
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


def settled(workload: Workload) -> Settled:
    """The workload's engine, ready on this machine, with a kind in place of ``auto``."""
    settings = workload.engine
    if settings.kind != "auto":
        row = ENGINES[settings.kind]
        return Settled(settings=settings) if row.settle is None else named(row.settle)(workload)
    own = Settled(settings=replace(ours(settings), kind="transformers", python=None))
    for row in ENGINES.values():
        found: Settled | str | None = None if row.offer is None else named(row.offer)(workload)
        if isinstance(found, Settled):
            return found
        own = own if found is None else replace(own, why=found)
    return own
