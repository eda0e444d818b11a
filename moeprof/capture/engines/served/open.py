"""A model on a server that runs already: looked at, tried, and asked over HTTP. Called in the worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.deployment import Deployment
from moeprof.capture.engines.served.client import Client
from moeprof.capture.engines.served.probe import Server, look, session_for
from moeprof.capture.engines.served.settings import OpenAISettings
from moeprof.capture.engines.served.trial import Dialect, Trials
from moeprof.capture.engines.served.watch import ServedWatch
from moeprof.capture.models.find import find_model
from moeprof.capture.models.meta import facts_elsewhere
from moeprof.core.model_facts import ModelFacts
from moeprof.core.trace import Schedule
from moeprof.core.workload.models import ModelSpec
from moeprof.sources.tokenizer import bundled_tokenizer, load_tokenizer

TRIAL_S = 120.0
SWITCH_S = 0.0005  # the loop that sends must not wait 5 ms for the thread that reads
OTHER = {
    "module": "the model is on a server",
    "steps": "the server steps itself and tells tokens, not steps",
    "memory": "the model is in the server's memory",
    "energy": "the energy of the server's devices is not read: they are not this process's",
    "forced ids": "the server's API takes no output ids: outputs have the length that was asked for, and the text is "
    "the model's own",
}
SHORTER = "the server cannot be told to go on: outputs may end before the length that was asked for, and the text is "
SHORTER += "the model's own"
FREE = "outputs end where the model ends them"


def open(
    spec: ModelSpec, settings: OpenAISettings, device: Any, *, warmup: Schedule | None = None, **more: Any
) -> Deployment:
    """See the table of engines. No weights are loaded, so the device's peaks are not measured."""
    sys.setswitchinterval(SWITCH_S)
    tokenizer = load_tokenizer(find_model(spec, None).tokenizer_file or bundled_tokenizer())

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode([np.asarray(ids, dtype=np.int32)])[0]

    tried = warmup.input_ids[0].tolist() if warmup is not None and len(warmup) else [1, 2, 3]
    server, dialect = asyncio.run(_find(settings, spec, tried, decode))
    watch = ServedWatch(settings, server)

    def build(settings: OpenAISettings, listeners: ListenerSet, *, in_turn: bool = False) -> Client:
        watch.client = Client(settings, server, dialect, decode)
        return watch.client

    def describe(tokenizer_hash: str | None, overridden: str | None) -> ModelFacts:
        facts = facts_elsewhere(spec, tokenizer_hash)
        note = f"counted from its config, bytes as in {facts.dtype}: what the server has loaded is not visible"
        return replace(facts, notes=(*facts.notes, note))

    is_free = warmup is not None and warmup.outputs == "free"
    why_own = FREE if is_free else OTHER["forced ids"] if dialect.fixed_length is not None else SHORTER
    return Deployment(
        build=build,
        launch={"server": _facts(settings, server, dialect)},
        describe=describe,
        tells_steps=False,
        is_metered=False,
        forces_ids=False,
        fixes_length=dialect.fixed_length is not None,
        reasons=OTHER | {"routing": server.kind.routing, "forced ids": why_own},
        watch=watch,
    )


async def _find(settings: OpenAISettings, spec: ModelSpec, ids: list[int], decode: Any) -> tuple[Server, Dialect]:
    server = await look(settings, spec)
    async with session_for(settings, total_s=TRIAL_S) as session:
        return server, await Trials(session, server, ids, decode).settle(settings, name=spec.name)


def _facts(settings: OpenAISettings, server: Server, dialect: Dialect) -> dict[str, Any]:
    """For launch.json (``ServerHeader``)."""
    fixed = dialect.fixed_length
    return {
        "host": server.host,
        "software": server.kind.name,
        "title": server.kind.title,
        "checked": server.kind.checked,
        "version": server.version,
        "served_as": Path(server.served_as).name if server.served_as.startswith("/") else server.served_as,
        "devices": settings.devices,
        "replicas": settings.replicas,
        "endpoint": dialect.endpoint,
        "prompts": dialect.prompts,
        "fixed_length": None if fixed is None else fixed.name,
        "tokens_from": dialect.tokens_from,
        "counters": list(server.metrics),
        "assumptions": dialect.assumptions,
    }
