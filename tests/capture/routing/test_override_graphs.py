"""Overrides in captured and in compiled steps: what is executed is the table's picks, for any policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import BatchLayout, InGraphListener, ListenerSet
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.override import PickOverride, override_routing
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import EngineError
from moeprof.core.workload.models import RoutingPolicy
from tests.helpers.captured_step import capture
from tests.helpers.plain_moe import TOP_K, Model, RoutingStep, all_steps, layout

LAYERS = 2
ZIPF = RoutingPolicy(policy="zipf", exponent=1.0, correlation=0.3)
POLICIES = [ZIPF, RoutingPolicy(policy="balanced"), RoutingPolicy(policy="concentrated")]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def overridden(model: Any, policy: RoutingPolicy) -> tuple[ListenerSet, PickOverride, RoutingTap]:
    layers = find_moe_layers(model)
    tap = RoutingTap(model, layers, save_picks=True)  # before the override: it sees what is executed all the same
    override = override_routing(layers, policy)
    assert override is not None and isinstance(override, InGraphListener)
    return ListenerSet([override, tap]), override, tap


def router(rows: int) -> list[torch.Tensor]:
    """What the router would pick: experts 0 and 1 for all."""
    return [torch.tensor([[0, 1]] * rows) for _ in range(LAYERS)]


def decode(step: int, rows: int) -> BatchLayout:
    return BatchLayout(
        query_tokens=(1,) * rows,
        requests=tuple(range(10, 10 + rows)),
        is_prefill=(False,) * rows,
        past_tokens=tuple(step + row for row in range(rows)),
    )


def eager(listeners: ListenerSet, model: Any, now: BatchLayout) -> None:
    listeners.before_forward(now)
    model(*router(len(now.token_mask or range(sum(now.query_tokens)))))
    listeners.after_forward()


def steps_of(tap: RoutingTap, override: PickOverride) -> list[RoutingStep]:
    found = all_steps(tap)
    tap.close()
    override.close()
    return found


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy)
def test_a_captured_step_executes_the_picks_of_its_tokens_and_padding_those_of_the_first(policy: RoutingPolicy) -> None:
    plain, model = Model(LAYERS), Model(LAYERS)
    listeners, override, tap = overridden(model, policy)
    expected, plain_override, plain_tap = overridden(plain, policy)
    captured = {}
    for width in (6, 2):  # large sizes first, as engines do
        listeners.enter_capture(width)

        def run(width: int = width) -> list[Any]:
            model(*[picks.clone() for picks in router(width)])
            return listeners.leave_capture()

        captured[width] = capture(run)
    layouts = [decode(0, 2), layout((3, 4)), decode(4, 5), decode(5, 1), layout((1, 2), mask=[False, True, True, True])]
    for now in layouts:
        eager(expected, plain, now)
        rows = len(now.requests)
        if now.token_mask is not None or sum(now.query_tokens) > rows:
            eager(listeners, model, now)
            continue
        replay, kept = captured[2 if rows <= 2 else 6]
        listeners.before_forward(now)
        replay()
        picks_LWK = kept[1]
        assert (picks_LWK[:, rows:] == picks_LWK[:, :1]).all()
        listeners.after_replay(kept)
        listeners.after_forward()
    found, wanted = steps_of(tap, override), steps_of(plain_tap, plain_override)
    assert len(found) == len(wanted) == len(layouts)
    for one, other in zip(found, wanted, strict=True):
        assert (one.counts_LGE == other.counts_LGE).all()
        assert np.array_equal(np.asarray(one.picks_TLK), np.asarray(other.picks_TLK))
        if policy.policy == "balanced":
            load_LE = one.counts_LGE.sum(axis=1)
            assert (load_LE.max(axis=1) - load_LE.min(axis=1) <= 1).all()


def test_steps_captured_before_a_wider_one_still_read_the_picks_of_their_tokens() -> None:
    model = Model(LAYERS)
    listeners, override, tap = overridden(model, ZIPF)
    captured = []
    for width in (2, 300):  # more than a static tensor holds: a second one is made
        listeners.enter_capture(width)

        def run(width: int = width) -> list[Any]:
            model(*[picks.clone() for picks in router(width)])
            return listeners.leave_capture()

        captured.append(capture(run))
    now = decode(3, 2)
    listeners.before_forward(now)
    seen = []
    for replay, kept in captured:
        replay()
        seen.append(kept[1][:, :2].tolist())
    assert seen[0] == seen[1] == override.table.gather(now).tolist()
    steps_of(tap, override)


def test_the_key_of_captured_steps_tells_overrides_apart() -> None:
    model = Model(LAYERS)
    layers = find_moe_layers(model)
    keys = []
    for _ in range(2):
        override = override_routing(layers, ZIPF)
        assert override is not None
        keys.append(override.graph_key)
        override.close()
        keys.append(override.graph_key)
    assert len(set(keys)) == 3 and keys[1] == keys[3]  # both are the model's own routing while they are off


def test_a_decode_step_that_runs_eagerly_after_captures_reads_the_same_picks() -> None:
    model = Model(LAYERS)
    listeners, override, tap = overridden(model, ZIPF)
    eager(listeners, model, decode(7, 3))
    listeners.enter_capture(4)
    model(*router(4))
    listeners.leave_capture()
    eager(listeners, model, decode(7, 3))
    before, after = steps_of(tap, override)
    assert np.array_equal(np.asarray(before.picks_TLK), np.asarray(after.picks_TLK))


def test_a_forward_that_was_not_announced_or_is_of_another_size_is_an_error() -> None:
    model = Model(LAYERS)
    listeners, override, tap = overridden(model, ZIPF)
    with pytest.raises(EngineError, match="outside of a forward"):
        model(*router(2))
    for rows in (2, 4):
        listeners.before_forward(layout((3,)))
        with pytest.raises(EngineError, match=r"picks of shape \[., 2\], \[3, 2\] was expected"):
            model(*router(rows))
    steps_of(tap, override)


def test_compiled_layers_execute_the_override_only_while_it_is_on() -> None:
    model: Any = tiny_model("qwen3_moe")
    for layer in model.model.layers:
        layer.compile(backend="eager")
    listeners, override, tap = overridden(model, RoutingPolicy(policy="concentrated"))
    ids = torch.arange(3, 15)[None]

    def forward(tokens: int) -> None:
        with torch.inference_mode():
            listeners.before_forward(layout((tokens,)))
            model(input_ids=ids[:, :tokens])
            listeners.after_forward()

    for tokens in (8, 9):
        override.close()
        forward(tokens)
        override.enable()
        forward(tokens)
    found = steps_of(tap, override)
    for native, concentrated, tokens in zip(found[::2], found[1::2], (8, 9), strict=True):
        assert native.counts_LGE[:, 0, TOP_K:].sum() > 0
        assert (concentrated.counts_LGE[:, 0, :TOP_K] == tokens).all()
