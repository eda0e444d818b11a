"""The guard against what is left on a model objects to planted leaks, of every kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import moeprof
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.models.wrap import ROLES, STATE, Role, before, put_on
from moeprof.capture.routing.override import override_routing
from moeprof.capture.routing.tap import RoutingTap
from moeprof.core.workload.models import RoutingPolicy
from tests.helpers.left_on import left_on
from tests.helpers.plain_moe import Model

pytest_plugins = ["pytester"]
BALANCED = RoutingPolicy(policy="balanced")


def put(path: str, role: Role) -> Callable[[Model], Callable[[], object]]:
    def plant(model: Model) -> Callable[[], object]:
        return put_on(model.get_submodule(path), role, before(lambda args: None)).remove

    return plant


def tap(model: Model) -> Callable[[], object]:
    return RoutingTap(model, find_moe_layers(model)).close


def override(model: Model) -> Callable[[], object]:
    found = override_routing(find_moe_layers(model), BALANCED)
    assert found is not None
    return found.close


def state_alone(model: Model) -> Callable[[], object]:
    vars(model.layers[0].experts)[STATE] = object()
    return lambda: vars(model.layers[0].experts).pop(STATE)


def bare_forward(model: Model) -> Callable[[], object]:
    model.layers[0].forward = model.layers[0].forward  # type: ignore[method-assign]
    return lambda: vars(model.layers[0]).pop("forward")


def torch_hook(model: Model) -> Callable[[], object]:
    return model.register_forward_hook(lambda *_: None).remove


def torch_pre_hook(model: Model) -> Callable[[], object]:
    return model.register_forward_pre_hook(lambda *_: None).remove


LEAKS = {
    tap: f"layers.0.experts: {STATE}",
    override: "layers.1.experts: forward",
    **{put("layers.1.experts", role): f"layers.1.experts: {STATE}" for role in ROLES},
    **{put("", role): f": {STATE}" for role in ROLES},
    state_alone: f"layers.0.experts: {STATE}",
    bare_forward: "layers.0: forward",
    torch_hook: ": _forward_hooks",
    torch_pre_hook: ": _forward_pre_hooks",
}


@pytest.mark.parametrize("plant", LEAKS)
def test_a_leak_is_found_until_it_is_taken_off(plant: Callable[[Model], Callable[[], object]]) -> None:
    model = Model()
    assert left_on(model) == []
    take_off = plant(model)
    assert LEAKS[plant] in left_on(model)
    take_off()
    assert left_on(model) == []


def test_a_test_that_leaks_is_an_error_and_one_that_cleans_up_is_not(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("from tests.conftest import nothing_stays_on_models")
    pytester.makepyfile(
        """
        import pytest
        from tests.helpers.plain_moe import Model
        from tests.capture.routing.test_left_on import LEAKS

        @pytest.fixture
        def model():
            return Model()

        @pytest.mark.parametrize("plant", LEAKS)
        def test_leaks(model, plant):
            plant(model)

        @pytest.mark.parametrize("plant", LEAKS)
        def test_cleans_up(model, plant):
            plant(model)()
        """
    )
    ran = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    ran.assert_outcomes(passed=2 * len(LEAKS), errors=len(LEAKS))
    ran.stdout.fnmatch_lines(["*AssertionError: the test left something on: {'model': *"])


def test_nothing_goes_onto_a_module_by_another_way() -> None:
    package = Path(moeprof.__file__).parent
    other = re.compile(r"register_(full_)?(forward|backward)|\.forward = ")
    found = [
        f"{path.relative_to(package)}: {line.strip()}"
        for path in package.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if other.search(line)
    ]
    # vLLM's sampler is an object of vLLM's own process, which ends with the pass: nothing of it can be left on.
    assert found == ["capture/engines/vllm/forcing.py: runner.sampler.forward = forced"]
