"""The self-check notices when a model does something else than the tap believes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moeprof.capture.coverage import tiny_model
from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.paged.model import as_written, compile_layers
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.check import SelfCheck, self_check
from moeprof.capture.routing.tap import RoutingTap
from tests.capture.engines.test_paged_engine import make_engine, requests_of
from tests.capture.engines.test_paged_engine import run as run_engine
from tests.helpers.plain_moe import EXPERTS, Block, Model, PlainExperts, layout, run


@pytest.fixture
def model() -> Model:
    return Model()


class _Engine:
    facts = SimpleNamespace(batching="static")


def check(model: Model, *picks: Any) -> SelfCheck:
    tap = RoutingTap(model, find_moe_layers(model))
    try:
        return self_check(tap, _Engine(), ListenerSet(), lambda: run(tap, model, layout((2,)), *picks))  # type: ignore[arg-type]
    finally:
        tap.close()


def failed(result: SelfCheck) -> set[str]:
    assert result.passed == (not result.reason)
    return {item.name for item in result.checks if item.passed is False}


def test_the_self_check_passes_on_a_model_that_keeps_the_rule(model: Model) -> None:
    result = check(model, [[0, 1], [2, 3]], [[0, 1], [2, 3]])
    assert result.passed and failed(result) == set() and len(result.checks) == 5


def test_ids_out_of_range_fail_the_check_and_do_not_crash() -> None:
    class Lenient(PlainExperts):
        def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
            return super().forward(hidden_states, top_k_index % EXPERTS, top_k_weights)

    Lenient.__name__ = "LenientExperts"
    for bad in (9, -1):
        result = check(Model(experts=Lenient), [[0, 1], [2, bad]], [[0, 1], [2, 3]])
        assert "ids_in_range" in failed(result) and str(bad) in str(result.reason)


def test_experts_called_twice_or_by_keyword_fail_the_check() -> None:
    class Twice(Block):
        def forward(self, hidden: Any) -> Any:
            return super().forward(super().forward(hidden))

    class Keyword(Block):
        def forward(self, hidden: Any) -> Any:
            weights = torch.full(self.picks.shape, 0.5)
            return self.experts(hidden, top_k_index=self.picks, top_k_weights=weights)

    picks = [[0, 1], [2, 3]]
    assert "fires_once" in failed(check(Model(block=Twice), picks, picks))
    assert {"top_k", "counts_are_tokens_times_k"} <= failed(check(Model(block=Keyword), picks, picks))


def test_another_top_k_than_stated_fails_the_check(model: Model) -> None:
    assert {"top_k", "counts_are_tokens_times_k"} <= failed(check(model, [[0], [1]], [[0], [1]]))


def test_experts_that_ignore_their_picks_fail_the_check() -> None:
    class Deaf(PlainExperts):
        def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Any:
            return hidden_states

    Deaf.__name__ = "DeafExperts"
    assert failed(check(Model(experts=Deaf), [[0, 1], [2, 3]], [[0, 1], [2, 3]])) == {"executed_is_routed"}


def test_layers_that_are_compiled_are_called_once_each_too() -> None:
    model = tiny_model("qwen3_moe")
    compile_layers(model, backend="aot_eager")
    listeners, tap = ListenerSet(), RoutingTap(model, find_moe_layers(model))
    engine = make_engine(model, listeners)
    try:
        result = self_check(tap, engine, listeners, lambda: run_engine(engine, requests_of(((5, 6), (9, 4)))))
    finally:
        engine.close()
        tap.close()
        as_written(model)
    assert result.passed, result.reason
