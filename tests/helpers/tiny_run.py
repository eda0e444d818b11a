"""A pair of tiny random models with a tokenizer, and real runs of them through ``main``, for end-to-end tests.

Hidden size 32, two layers, eight experts of which each token takes two: a worker's time is that of its imports.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

NUM_LAYERS, NUM_EXPERTS, TOP_K = 2, 8, 2
VOCABULARY = 400
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "dtype": "float32",
}

WORKLOAD = """\
name: tiny
traffic:
  arrivals: {pattern: poisson, rate: 40}
  lengths: {input: {distribution: uniform, low: 8, high: 24}, output: {distribution: uniform, low: 4, high: 8}}
  prompts: {source: packaged}
  num_requests: 24
models:
  - {name: moe, path: ./moe}
  - {name: dense, path: dense}
rounds: 2
threads: 1
device: cpu
warmup: {num_requests: 4, max_seconds: 1}
prices: {usd_per_device_hour: 1.5}
"""

# One model, and no instrument that takes seconds; what else is needed is put in by ``str.format``.
SHORT = """\
name: short
traffic:
  arrivals: {{pattern: poisson, rate: {rate}}}
  lengths: {{input: {{distribution: fixed, value: 8}}, output: {{distribution: fixed, value: 6}}}}
  prompts: {{source: packaged}}
  num_requests: {num_requests}
models: [{models}]
rounds: 1
threads: 1
device: cpu
warmup: {{num_requests: 1, max_seconds: 0.2}}
instruments: {{overhead: false, peaks: false, gap: false, window_steps: 4}}
prices: {{usd_per_device_hour: 1}}
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command line did."""

    code: int
    stdout: str
    stderr: str


def run_main(arguments: Sequence[object]) -> Ran:
    """Run a command line in this process."""
    from moeprof.cli.main import main

    with _captured() as (out, err):
        code = main([str(argument) for argument in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


@contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def write_tokenizer(path: Path) -> None:
    """A byte-level BPE of the packaged text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    text = resources.files("moeprof").joinpath("data/text/prose.txt").read_text(encoding="utf-8")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.save(str(path))


def write_models(folder: Path) -> None:
    """``folder/moe`` and ``folder/dense``: config, safetensors, tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    sparse = Qwen3MoeConfig(
        **SHAPE, num_experts=NUM_EXPERTS, num_experts_per_tok=TOP_K, moe_intermediate_size=16, intermediate_size=32
    )
    dense = Qwen3Config(**SHAPE, intermediate_size=32)
    for name, model in (("moe", Qwen3MoeForCausalLM(sparse)), ("dense", Qwen3ForCausalLM(dense))):
        model.save_pretrained(folder / name)
        write_tokenizer(folder / name / "tokenizer.json")
