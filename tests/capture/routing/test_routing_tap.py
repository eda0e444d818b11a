"""The tap: counts checkable by hand, padding, blocks, kept picks, adapters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.capture.coverage import tiny_model
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.tap import RoutingTap
from tests.helpers.plain_moe import EXPERTS, TOP_K, Model, RoutingStep, all_steps, collected, layout, run


@pytest.fixture
def model() -> Model:
    return Model()


def test_counts_are_split_by_layer_phase_class_and_expert(model: Model) -> None:
    tap = RoutingTap(model, find_moe_layers(model), ("code", "prose"), request_class=("code", "prose"))
    # Two prefill tokens of a code request, one decode token of a prose request.
    run(tap, model, layout((2, 1), (True, False)), [[0, 1], [0, 2], [3, 1]], [[1, 2], [1, 2], [1, 2]])
    step = collected(tap)
    tap.close()
    prefill_code, decode_prose = 0, 3
    assert step.counts_LGE[0, prefill_code].tolist() == [2, 1, 1, 0]
    assert step.counts_LGE[0, decode_prose].tolist() == [0, 1, 0, 1]
    assert step.counts_LGE[1, prefill_code].tolist() == [0, 2, 2, 0]
    assert step.tokens_G.tolist() == [2, 0, 0, 1]
    assert step.counts_LGE.sum() == 3 * TOP_K * 2


def test_padding_is_routed_but_never_counted(model: Model) -> None:
    tap = RoutingTap(model, find_moe_layers(model))
    padded = [[0, 1], [2, 3], [2, 3], [2, 3]]
    run(tap, model, layout((1, 2), mask=[True, False, True, True]), padded, padded)
    step = collected(tap)
    tap.close()
    assert step.counts_LGE[0, 0].tolist() == [1, 1, 2, 2]
    assert step.tokens_G.tolist() == [3, 0]


def test_tokens_after_the_last_real_one_are_padding_too(model: Model) -> None:
    tap = RoutingTap(model, find_moe_layers(model))
    run(tap, model, layout((1,)), [[0, 1], [2, 3]], [[0, 1], [2, 3]])
    assert collected(tap).counts_LGE[0, 0].tolist() == [1, 1, 0, 0]
    tap.close()


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6), st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_every_assignment_of_a_real_token_lands_in_exactly_one_cell(rows: list[tuple[int, bool]], pad: int) -> None:
    model = Model()
    tap = RoutingTap(model, find_moe_layers(model), ("a", "b"), request_class=("a", "b", "a", "b", "a", "b"))
    tokens, prefill = tuple(n for n, _ in rows), tuple(p for _, p in rows)
    mask = [False] * pad + [True] * sum(tokens)
    picks = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in mask])
    run(tap, model, layout(tokens, prefill, mask), picks, picks)
    step = collected(tap)
    tap.close()
    assert (step.counts_LGE.sum(axis=-1) == step.tokens_G * TOP_K).all()
    assert step.tokens_G.sum() == sum(tokens)
    assert step.counts_LGE.sum(axis=1)[0].tolist() == np.bincount(picks[pad:].flatten(), minlength=EXPERTS).tolist()


def test_many_forwards_come_back_as_blocks_in_order(model: Model) -> None:
    tap = RoutingTap(model, find_moe_layers(model))
    for i in range(40):
        run(tap, model, layout((1,)), [[i % 4, (i + 1) % 4]], [[0, 1]])
        blocks = tap.collect_blocks()
        assert (len(blocks) == 1) == (i == 31)  # nothing is counted until 32 forwards wait
        if blocks:
            assert blocks[0].counts_SLGE.shape == (32, 2, 2, EXPERTS)
            assert blocks[0].counts_SLGE[5, 0, 0].tolist() == [0, 1, 1, 0]
    (rest,) = tap.collect_blocks(everything=True)
    assert rest.tokens_SG.sum() == 8 and tap.collect_blocks(everything=True) == []
    tap.close()


def test_what_nobody_collects_stays_bounded(model: Model) -> None:
    tap = RoutingTap(model, find_moe_layers(model))
    for _ in range(100):
        run(tap, model, layout((1,)), [[0, 1]], [[0, 1]])
    assert len(tap._waiting) < 64
    assert sum(len(block.tokens_SG) for block in tap.collect_blocks(everything=True)) == 100
    tap.close()


def test_kept_picks_are_those_of_real_tokens_and_what_is_over_the_cap_is_counted(model: Model) -> None:
    # One token takes 2 layers x 2 picks x 1 byte = 4 bytes: three tokens fit into 12 bytes, a fourth does not.
    tap = RoutingTap(model, find_moe_layers(model), save_picks=True, picks_cap_bytes=12)
    run(tap, model, layout((1, 2), mask=[False, True, True, True]), [[3, 3], [0, 1], [1, 2], [2, 3]], [[0, 1]] * 4)
    run(tap, model, layout((1,)), [[0, 1]], [[0, 1]])
    first, second = all_steps(tap)
    tap.close()
    assert first.picks_TLK is not None
    assert first.picks_TLK[:, 0].tolist() == [[0, 1], [1, 2], [2, 3]] and first.picks_left_out_tokens == 0
    assert first.picks_TLK.dtype == np.uint8
    assert second.picks_TLK is None and second.picks_left_out_tokens == 1
    assert second.counts_LGE.sum() == 4


def test_hooks_come_off_and_on_again(model: Model) -> None:
    tap = RoutingTap(model, find_moe_layers(model))
    tap.disable()
    run(tap, model, layout((1,)), [[0, 1]], [[0, 1]])
    assert all_steps(tap) == [] and not tap.enabled
    tap.enable()
    run(tap, model, layout((1,)), [[0, 1]], [[0, 1]])
    assert collected(tap).counts_LGE.sum() == 4
    tap.close()


# --- real architectures that break the rule -------------------------------------------------------------------------


def forward(model_type: str) -> tuple[RoutingStep, Any, dict[str, torch.Tensor]]:
    """One forward of 6 tokens; the step, the layers, and the router logits per tapped module."""
    model, seen = tiny_model(model_type), {}
    layers = find_moe_layers(model)
    tap = RoutingTap(model, layers, save_picks=True)
    for layer in layers:
        layer.tapped.register_forward_hook(lambda _, args, out, name=layer.name: seen.__setitem__(name, (args, out)))
    with torch.inference_mode():
        tap.before_forward(layout((6,)))
        model(input_ids=torch.arange(3, 9)[None])
        tap.after_forward()
    step = collected(tap)
    tap.close()
    return step, layers, seen


@pytest.mark.parametrize("model_type", ["llama4_text", "jetmoe"])
def test_adapters_give_the_top_k_of_the_router(model_type: str) -> None:
    step, layers, seen = forward(model_type)
    assert step.picks_TLK is not None
    for i, layer in enumerate(layers):
        expected = seen[layer.name][1][-1].topk(layer.top_k, dim=-1).indices
        assert np.array_equal(np.sort(step.picks_TLK[:, i]), np.sort(expected.numpy())), layer.name


def test_jetmoe_has_attention_experts_and_feed_forward_experts() -> None:
    step, layers, _ = forward("jetmoe")
    assert [int(layer.name.split(".")[2]) for layer in layers] == [0, 0, 1, 1, 2, 2]
    assert (step.counts_LGE.sum(axis=(1, 2)) == 12).all()


def test_identity_experts_are_counted_apart() -> None:
    step, layers, seen = forward("longcat_flash")
    for i, layer in enumerate(layers):
        picks = seen[layer.name][0][1]
        assert layer.num_experts == 8 and layer.num_identity == 4
        assert step.identity_LG[i].sum() == (picks >= 8).sum()
        assert step.counts_LGE[i].sum() + step.identity_LG[i].sum() == 12


def test_a_skipped_expert_is_dropped_and_not_expert_0() -> None:
    model = tiny_model("zaya")
    layers = find_moe_layers(model)
    with torch.no_grad():
        for layer in layers:
            layer.block.gate.balancing_biases[-1] = 10.0  # every token takes the skip expert
    tap = RoutingTap(model, layers)
    with torch.inference_mode():
        tap.before_forward(layout((6,)))
        model(input_ids=torch.arange(3, 9)[None])
        tap.after_forward()
    step = collected(tap)
    tap.close()
    assert step.counts_LGE.sum() == 0 and (step.dropped_LG[:, 0] == 6).all()
