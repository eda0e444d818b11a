"""One token goes to the same experts whatever engine runs it, in whatever batch."""

from __future__ import annotations

from typing import Any

import torch

from moeprof.capture.engines.base import BatchLayout, ListenerSet
from moeprof.capture.engines.hf import build_engine
from moeprof.capture.engines.paged.engine import PagedEngine, PagedOptions
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.replay import replay
from moeprof.capture.routing.override import override_routing
from moeprof.capture.routing.rows import places
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import RoutingPolicy
from tests.helpers.lane_models import moe_model, schedule
from tests.helpers.traced_graphs import TracedGraphs

ZIPF = RoutingPolicy(policy="zipf", exponent=1.0, correlation=0.3)
ENGINES: dict[str, Any] = {
    "continuous": TransformersSettings(batching="continuous", kv_tokens=1024, max_batch_tokens=64),
    "small steps": TransformersSettings(batching="continuous", kv_tokens=1024, max_batch_tokens=16),
    "static": TransformersSettings(batching="static", kv_tokens=1024, max_batch=3),
}


def picks_by_place(build: Any, model: Any, requests: Any) -> dict[tuple[int, int], list[list[int]]]:
    """What was executed for each token, by request and position."""
    layers = find_moe_layers(model)
    tap, override = RoutingTap(model, layers), override_routing(layers, ZIPF)
    assert override is not None
    listeners = ListenerSet([override, tap])
    found: dict[tuple[int, int], list[list[int]]] = {}

    def keep(seen: Any, now: BatchLayout) -> bool:
        picks_LTK = torch.stack(seen)
        if now.token_mask is not None:
            picks_LTK = picks_LTK[:, torch.tensor(now.token_mask)]
        pairs = zip(*(part.tolist() for part in places(now)), strict=True)
        found.update((pair, picks_LTK[:, t].tolist()) for t, pair in enumerate(pairs))
        return False

    engine = build(model, listeners)
    tap.on_picks = keep
    found.clear()  # of the engine's own trials
    replay(engine, requests, [])
    engine.close()
    tap.close()
    override.close()
    return found


def test_a_token_goes_to_the_same_experts_in_every_engine_and_batch() -> None:
    requests = schedule(5)
    found = {
        name: picks_by_place(
            lambda model, listeners, own=own: build_engine(model, own, listeners), moe_model(), requests
        )
        for name, own in ENGINES.items()
    }
    found["captured"] = picks_by_place(captured_engine, moe_model(), requests)
    tokens = int((requests.input_tokens + requests.output_tokens - 1).sum())
    for name, picks in found.items():
        assert len(picks) == tokens and picks == found["continuous"], name


def captured_engine(model: Any, listeners: ListenerSet) -> PagedEngine:
    graphs = TracedGraphs()
    options = PagedOptions(kv_tokens=1024, max_batch_tokens=64, graphs=graphs, run_ahead=True)
    engine = PagedEngine(model, options, listeners)
    assert engine.prepare(5, 16) > 0 and not graphs.reads_values
    return engine
