"""The tap in captured and in compiled steps: the same counts as in steps that run eagerly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import BatchLayout, InGraphListener
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.tap import RoutingTap
from tests.helpers.captured_step import capture
from tests.helpers.plain_moe import EXPERTS, TOP_K, WIDTH, Model, RoutingStep, all_steps, collected, layout, run

LAYERS, CLASSES = 2, ("a", "b")


class CapturedModel:
    """A decode step of ``width`` rows, captured with the tap's watchers on."""

    def __init__(self, tap: RoutingTap, model: Model, width: int) -> None:
        self.tap = tap
        self.picks_LWK = torch.zeros(LAYERS, width, TOP_K, dtype=torch.int64)
        tap.enter_capture(width)

        def run() -> torch.Tensor:
            model(*[picks.clone() for picks in self.picks_LWK])
            return tap.leave_capture()

        self.replay, self.kept = capture(run)

    def step(self, layout: BatchLayout, picks_LTK: torch.Tensor) -> None:
        """Replay with these picks; the rest of the rows are copies of the first."""
        self.tap.before_forward(layout)
        self.picks_LWK.copy_(picks_LTK[:, :1].expand_as(self.picks_LWK))
        self.picks_LWK[:, : picks_LTK.shape[1]] = picks_LTK
        self.replay()
        self.tap.after_replay(self.kept)
        self.tap.after_forward()


def new_tap(model: Model, **more: Any) -> RoutingTap:
    return RoutingTap(model, find_moe_layers(model), CLASSES, request_class=CLASSES * 4, **more)


def last_steps(tap: RoutingTap) -> list[RoutingStep]:
    found = all_steps(tap)
    tap.close()
    return found


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.reset()


def test_the_tap_can_be_in_a_graph() -> None:
    tap = new_tap(Model())
    on = tap.graph_key
    tap.disable()
    assert isinstance(tap, InGraphListener) and tap.graph_key != on
    tap.close()


rows = st.tuples(st.integers(0, 7), st.booleans())  # request, prefill


@given(st.lists(st.tuples(st.booleans(), st.lists(rows, min_size=1, max_size=6)), min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_replays_count_what_eager_steps_count_and_never_padding(steps: list[tuple[bool, Any]]) -> None:
    model, plain = Model(LAYERS), Model(LAYERS)
    tap, expected = new_tap(model, save_picks=True), new_tap(plain, save_picks=True)
    captured = CapturedModel(tap, model, 6)
    for in_graph, step in steps:
        picks = torch.stack([torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in step]) for _ in range(LAYERS)])
        now = BatchLayout(
            query_tokens=(1,) * len(step),
            requests=tuple(request for request, _ in step),
            is_prefill=tuple(prefill for _, prefill in step),
        )
        run(expected, plain, now, *picks)
        if in_graph:
            captured.step(now, picks)
        else:
            run(tap, model, now, *picks)
    for found, wanted in zip(last_steps(tap), last_steps(expected), strict=True):
        assert (found.counts_LGE == wanted.counts_LGE).all() and (found.tokens_G == wanted.tokens_G).all()
        assert found.counts_LGE.sum() == found.tokens_G.sum() * LAYERS * TOP_K
        assert np.array_equal(np.asarray(found.picks_TLK), np.asarray(wanted.picks_TLK))


def test_a_replay_may_overwrite_what_was_seen_before_it_is_counted() -> None:
    model = Model(LAYERS)
    tap = new_tap(model)
    captured = CapturedModel(tap, model, 2)
    for expert in (0, 2):
        captured.step(layout((1,), (False,)), torch.tensor([[[expert, expert + 1]]] * LAYERS))
    first, second = last_steps(tap)
    assert first.counts_LGE[0].sum(axis=0).tolist() == [1, 1, 0, 0]
    assert second.counts_LGE[0].sum(axis=0).tolist() == [0, 0, 1, 1]


def test_a_layer_that_is_not_called_counts_nothing_in_a_captured_step() -> None:
    model = Model(LAYERS)
    tap = new_tap(model)
    picks = torch.tensor([[0, 1], [2, 3]])
    tap.enter_capture(2)

    def run_first_layer() -> torch.Tensor:
        model.layers[0].picks = picks.clone()
        model.layers[0](torch.ones(2, WIDTH))
        return tap.leave_capture()

    replay, kept = capture(run_first_layer)
    tap.before_forward(layout((1, 1), (False, False)))
    replay()
    tap.after_replay(kept)
    tap.after_forward()
    (step,) = last_steps(tap)
    assert step.counts_LGE[0].sum() == 4 and step.counts_LGE[1].sum() == 0


def test_whoever_looks_at_picks_gets_them_by_layer_in_a_replay_too() -> None:
    model = Model(LAYERS)
    tap, seen = new_tap(model), list[Any]()
    tap.on_picks = lambda picks, now: seen.append([p.tolist() for p in picks if p is not None]) is not None
    captured = CapturedModel(tap, model, 3)
    captured.step(layout((1,), (False,)), torch.tensor([[[0, 1]], [[2, 3]]]))
    assert seen == [[[[0, 1]], [[2, 3]]]] and tap.was_replayed and last_steps(tap) == []


# --- compiled ---------------------------------------------------------------------------------------------------------


def test_a_tapped_block_compiles_as_one_graph() -> None:
    model = Model(LAYERS)
    tap = RoutingTap(model, find_moe_layers(model))
    block = model.layers[0]
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    for picks in ([[0, 1], [0, 2]], [[3, 1], [3, 1]]):
        tap.before_forward(layout((2,)))
        block.picks = torch.as_tensor(picks)
        compiled(torch.ones(2, WIDTH))
        tap.after_forward()
    first, second = last_steps(tap)
    assert first.counts_LGE[0, 0].tolist() == [2, 1, 1, 0]
    assert second.counts_LGE[0, 0].tolist() == [0, 2, 0, 2]
    assert first.counts_LGE[1].sum() == 0  # the second layer did not run, and nothing stale is counted


def moe_of(model_type: str, compiled: Callable[[Any], None] | None) -> Any:
    model: Any = tiny_model(model_type)
    if compiled is not None:
        for layer in model.model.layers:
            compiled(layer)
    return model


@pytest.mark.parametrize(("model_type", "backend"), [("mixtral", "eager"), ("qwen3_moe", "aot_eager")])
def test_counts_of_compiled_decoder_layers_are_exact_however_often_the_tap_goes_on_and_off(
    model_type: str, backend: str
) -> None:
    plain, model = moe_of(model_type, None), moe_of(model_type, lambda layer: layer.compile(backend=backend))
    taps = [RoutingTap(each, find_moe_layers(each)) for each in (plain, model)]
    ids = torch.arange(3, 15)[None]
    for number in range(3):
        for each, tap in zip((plain, model), taps, strict=True):
            tap.disable()
            with torch.inference_mode():
                each(input_ids=ids)  # compiled without the tap: putting it on must be noticed
                tap.enable()
                tap.before_forward(layout((8 + number,)))
                each(input_ids=ids[:, : 8 + number])
                tap.after_forward()
        expected, found = (collected(tap) for tap in taps)
        assert (found.counts_LGE == expected.counts_LGE).all()
        assert (found.counts_LGE.sum(axis=(1, 2)) == (8 + number) * TOP_K).all()
    for tap in taps:
        tap.close()
