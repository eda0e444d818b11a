"""Rotary positions in Triton's interpreter against transformers' own functions. Run by test_kernels_interpreted.py."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from transformers.models.gpt_oss import modeling_gpt_oss
from transformers.models.mixtral import modeling_mixtral
from transformers.models.qwen3_moe import modeling_qwen3_moe

from moeprof.capture.kernels.triton.rotary import ROTARY, covers, rotate, why_other
from tests.helpers.triton_interpreter import mend

mend()
CPU = torch.device("cpu")


@pytest.mark.parametrize("home", [modeling_mixtral, modeling_qwen3_moe, modeling_gpt_oss])
def test_the_program_stands_for_the_functions_of_these_models(home: ModuleType) -> None:
    assert why_other(getattr(home, ROTARY), CPU, torch.float32) is None
    assert why_other(getattr(home, ROTARY), CPU, torch.float16) is None


def test_a_function_that_rotates_pairs_is_left_alone() -> None:
    def of_pairs(
        query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def turn(x: torch.Tensor) -> torch.Tensor:
            return x * cos[:, None] + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2) * sin[:, None]

        return turn(query), turn(key)

    assert "the program is off by" in str(why_other(of_pairs, CPU, torch.float32))


@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(1, 1, 16), (32, 4, 128), (5, 5, 80), (9, 3, 96)])
def test_any_number_of_heads_agrees(heads: int, groups: int, head_dim: int) -> None:
    query, key = torch.randn(1, heads, 2, head_dim), torch.randn(1, groups, 2, head_dim)
    cos, sin = torch.randn(2, 1, 2, head_dim)
    assert covers(query, key, cos, sin)
    expected = getattr(modeling_mixtral, ROTARY)(query, key, cos, sin)
    for one, other in zip(rotate(query, key, cos, sin), expected, strict=True):
        torch.testing.assert_close(one, other)
