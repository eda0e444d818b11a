"""Routing overrides: exact, drawn, repeatable, and refused where they cannot be in force."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moeprof.capture.coverage import tiny_model
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.override import override_routing
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.errors import UnsupportedModelError, WorkloadError
from moeprof.core.workload.models import RoutingPolicy
from tests.helpers.plain_moe import TOP_K, Model, collected, layout, run


@pytest.fixture
def model() -> Model:
    return Model()


def routed(policy: RoutingPolicy, tokens: int = 400) -> np.ndarray[Any, Any]:
    """Counts [E] of one layer under a policy, from a model that would send all tokens to experts 0 and 1."""
    model = Model(num_layers=1)
    layers = find_moe_layers(model)
    tap = RoutingTap(model, layers, save_picks=True)
    override = override_routing(layers, policy)
    assert override is not None
    now = layout((tokens,))
    override.before_forward(now)
    run(tap, model, now, [[0, 1]] * tokens)
    override.after_forward()
    step = collected(tap)
    tap.close()
    override.close()
    assert "forward" not in vars(layers[0].experts)
    assert step.picks_TLK is not None and (step.picks_TLK[:, 0, 0] != step.picks_TLK[:, 0, 1]).all()
    counts: np.ndarray[Any, Any] = step.counts_LGE[0, 0]
    assert counts.sum() == tokens * TOP_K
    return counts


def test_native_routing_puts_no_hook_on(model: Model) -> None:
    assert override_routing(find_moe_layers(model), RoutingPolicy(policy="native")) is None


def test_balanced_is_exact_and_concentrated_uses_k_experts() -> None:
    assert routed(RoutingPolicy(policy="balanced")).tolist() == [200, 200, 200, 200]
    assert routed(RoutingPolicy(policy="concentrated")).tolist() == [400, 400, 0, 0]


def test_zipf_gets_steeper_with_its_exponent_and_repeats_with_its_seed() -> None:
    flat, steep = (routed(RoutingPolicy(policy="zipf", exponent=x)) for x in (0.0, 3.0))
    assert flat.min() > 150 and steep.max() > 380 and steep.min() < 60
    assert routed(RoutingPolicy(policy="zipf", exponent=3.0)).tolist() == steep.tolist()


def test_profile_draws_from_measured_popularity(tmp_path: Path) -> None:
    path = tmp_path / "popularity.json"
    path.write_text(json.dumps([10, 0, 10, 10]))
    counts = routed(RoutingPolicy(policy="profile", path=str(path)), tokens=900)
    assert counts[1] == 0 and all(abs(counts[i] - 600) < 60 for i in (0, 2, 3))


@pytest.mark.parametrize(
    ("content", "word"),
    [("[1, 2]", "shape"), ("{", "cannot be read"), ("[1, 0, 0, 0]", "fewer"), ("[1, -1, 1, 1]", "negative")],
)
def test_bad_popularity_is_one_clear_line(tmp_path: Path, content: str, word: str, model: Model) -> None:
    path = tmp_path / "popularity.json"
    path.write_text(content)
    with pytest.raises(WorkloadError, match=word) as error:
        override_routing(find_moe_layers(model), RoutingPolicy(policy="profile", path=str(path)))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_override_is_refused_where_experts_take_no_picks() -> None:
    with pytest.raises(UnsupportedModelError, match="Llama4"):
        override_routing(find_moe_layers(tiny_model("llama4_text")), RoutingPolicy(policy="balanced"))
