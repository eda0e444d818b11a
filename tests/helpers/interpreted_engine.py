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
from moeprof.capture.kernels.triton import experts as triton_experts
from moeprof.capture.kernels.triton.attention import Tiling, triton_decode
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
def test_tokens_are_those_of_plain_torch(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make().eval()
    wanted = tokens_of(model, plain_kernels)
    calls = {"attention": 0, "experts": 0}

    def decode(*arguments: Any) -> torch.Tensor:
        calls["attention"] += 1
        return triton_decode(*arguments, tiling=Tiling(block_keys=16))

    def experts(*arguments: Any) -> torch.Tensor:
        calls["experts"] += 1
        return ours(*arguments)

    ours = triton_experts.triton_experts
    monkeypatch.setattr(triton_experts, "triton_experts", experts)
    layers = [module for module in model.modules() if triton_experts.is_experts(module)]
    if layers:
        triton_experts.register()
        for module in layers:
            setattr(module, triton_experts.TOKENS, 8)
        model.set_experts_implementation(triton_experts.NAME)
    assert tokens_of(model, lambda facts, pages: Kernels(decode_name="triton", decode=decode, prefill={})) == wanted
    assert calls["attention"] > 10
    assert (calls["experts"] > 10) == bool(layers)
