"""MoE layers are found by structure; what cannot be measured is refused by name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from moeprof.capture.coverage import tiny_model
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.core.errors import UnsupportedModelError
from tests.helpers.plain_moe import Model, PlainExperts


def test_a_dense_model_has_no_moe_layers() -> None:
    assert find_moe_layers(nn.Sequential(nn.Linear(2, 2))) == ()


def test_refusals_name_the_architecture_and_the_reason() -> None:
    with pytest.raises(UnsupportedModelError, match=r"DogeForCausalLM.*retrieval"):
        find_moe_layers(tiny_model("doge"))
    for name, word in (("Mxfp4GptOssExperts", "dequantise"), ("SwitchTransformersExperts", "encoder-decoder")):
        with pytest.raises(UnsupportedModelError, match=word):
            find_moe_layers(nn.Sequential(type(name, (nn.Module,), {})()))
    kernels = nn.Sequential()
    kernels._use_kernels = True  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match="use_kernels"):
        find_moe_layers(kernels)


def test_experts_that_no_module_shows_are_refused_and_not_taken_for_dense() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(
                get_text_config=lambda decoder: SimpleNamespace(to_dict=lambda: {"num_experts": 4})
            )
            self.block = nn.Module()
            self.block.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(4))

    with pytest.raises(UnsupportedModelError, match=r"Hidden: num_experts is 4.*block\.experts is a list"):
        find_moe_layers(Hidden())


def test_sharded_experts_are_refused() -> None:
    class Sharded(PlainExperts):
        num_experts = 8  # says 8, holds 4

    Sharded.__name__ = "ShardedExperts"
    with pytest.raises(UnsupportedModelError, match="says 8 experts but holds 4"):
        find_moe_layers(Model(experts=Sharded))
