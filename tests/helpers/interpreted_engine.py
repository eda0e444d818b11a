"""The paged engine with our kernels in Triton's interpreter: tokens as with plain torch. Run by
test_kernels_interpreted.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM, MistralConfig, MistralForCausalLM

from moeprof.capture.engines.paged.engine import PagedEngine, PagedOptions
from moeprof.capture.engines.paged.kernels import Kernels, plain_kernels
from moeprof.capture.kernels.experts import KERNEL, NAME, TOKENS, decode_experts, is_experts, run_by
from moeprof.capture.kernels.triton.attention import Tiling, triton_decode
from moeprof.capture.kernels.triton.experts import triton_experts
from tests.capture.engines.test_paged_engine import VOCAB, make_request
from tests.helpers.triton_interpreter import mend

mend()
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 9,
    "max_position_embeddings": 256,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}


def gpt_oss() -> Any:
    """Windows, sinks, experts with biases and an activation of their own."""
    return GptOssForCausalLM(GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2))


def mistral() -> Any:
    """A window in every layer."""
    return MistralForCausalLM(MistralConfig(**SHAPE))


def tokens_of(model: Any, kernels: Any) -> dict[int, list[int]]:
    engine = PagedEngine(model, PagedOptions(kv_tokens=1024, max_batch_tokens=64, kernels=kernels))
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for index, lengths in enumerate([(5, 6), (30, 4), (1, 8)]):
        engine.submit(make_request(index, *lengths))
    while (step := engine.step()) is not None:
        for sequence in step.sequences:
            if sequence.token is not None:
                tokens[sequence.request].append(sequence.token)
    engine.close()
    return tokens


@pytest.mark.parametrize("make", [gpt_oss, mistral])
def test_tokens_are_those_of_plain_torch(make: Any) -> None:
    torch.manual_seed(0)
    model = make().eval()
    wanted = tokens_of(model, plain_kernels)
    calls = {"attention": 0, "experts": 0}

    def decode(*arguments: Any) -> torch.Tensor:
        calls["attention"] += 1
        return triton_decode(*arguments, tiling=Tiling(block_keys=16))

    def experts(*arguments: Any) -> torch.Tensor:
        calls["experts"] += 1
        return triton_experts(*arguments)

    layers = [module for module in model.modules() if is_experts(module)]
    for module in layers:
        setattr(module, TOKENS, 8)
        setattr(module, KERNEL, experts)
    if layers:
        run_by(model, NAME, decode_experts)
    assert tokens_of(model, lambda facts, pages: Kernels(decode_name="triton", decode=decode, prefill={})) == wanted
    assert calls["attention"] > 10
    assert (calls["experts"] > 10) == bool(layers)
