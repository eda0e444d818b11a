"""Train the demo models of moeprof on a CPU: a small mixture of experts and its active-matched dense sibling.

    python workloads/models/train_demo.py              # train both, measure, write the cards: about half an hour
    python workloads/models/train_demo.py --only moe   # train one of the two again, then measure both
    python workloads/models/train_demo.py --card       # measure the models on disk again and rewrite the cards
    python workloads/models/train_demo.py --check      # do the models on disk still give the figures of the card?

Needs torch, transformers and no network: the text is the standard library of the Python that runs this
(`demo_text.py`). Both models see the same tokens in the same order under the same schedule; only the MLP differs. The
dense MLP is as wide as the `TOP_K` experts that a token visits, so both spend the same work per token, but for the
router.

Routing must be learnt to be worth watching, and healthy: the load-balancing loss is taken per layer here. transformers
pools the layers before it multiplies load by probability (`load_balancing_loss_func`), so that an expert overloaded in
one layer is forgiven when its namesake in another is idle. Scale as in transformers: `TOP_K`, not 1, when uniform.
"""

import argparse
import json
import math
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import demo_card
import demo_text
import numpy as np
import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

NUM_EXPERTS = 16
TOP_K = 2
EXPERT_WIDTH = 192
SHAPE: dict[str, Any] = {
    "vocab_size": demo_text.VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": TOP_K * EXPERT_WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": demo_text.MAX_POSITION,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "eos_token_id": demo_text.END_OF_TEXT_ID,
}

STEPS = 2400
SEED = 20
BATCH_SEQUENCES = 16
SEQUENCE_TOKENS = 256
PROSE_RATIO = 0.3
PEAK_LR = 2e-3
LAST_LR_RATIO = 0.03
WARMUP_STEPS = 100
WEIGHT_DECAY = 0.1
GRADIENT_NORM_MAX = 1.0
AUX_LOSS_COEF = 0.02
LOG_EVERY_STEPS = 50


def build_model(kind: str, seed: int) -> PreTrainedModel:
    """A freshly initialised model, `moe` or `dense`."""
    torch.manual_seed(seed)
    if kind == "dense":
        return Qwen3ForCausalLM(Qwen3Config(**SHAPE))
    config = Qwen3MoeConfig(
        **SHAPE,
        moe_intermediate_size=EXPERT_WIDTH,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=TOP_K,
        norm_topk_prob=True,
        router_aux_loss_coef=AUX_LOSS_COEF,
    )
    model = Qwen3MoeForCausalLM(config)
    model.set_experts_implementation(
        "grouped_mm"
    )  # three times the speed of the eager loop, whose backward fills all experts
    return model


def draw_batch(streams: dict[str, demo_text.Ids], rng: np.random.Generator) -> torch.Tensor:
    """A batch of windows of `SEQUENCE_TOKENS` + 1 tokens at random places, a share of `PROSE_RATIO` of them prose."""
    windows = []
    for is_prose in rng.random(BATCH_SEQUENCES) < PROSE_RATIO:
        stream = streams["prose" if is_prose else "code"]
        start = int(rng.integers(len(stream) - SEQUENCE_TOKENS))
        windows.append(stream[start : start + SEQUENCE_TOKENS + 1])
    return torch.from_numpy(np.stack(windows))


def compute_lr(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to `LAST_LR_RATIO` of the peak."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return PEAK_LR * (LAST_LR_RATIO + (1 - LAST_LR_RATIO) * 0.5 * (1 + math.cos(math.pi * progress)))


def compute_balancing_loss(router_logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean over layers of E * sum_e(share of tokens sent to e * mean probability of e); `TOP_K` when uniform.

    Source: https://huggingface.co/papers/2101.03961 equations (4) to (6), per layer.
    """
    losses = []
    for logits in router_logits:
        probabilities = logits.float().softmax(dim=-1)
        picks = probabilities.topk(TOP_K, dim=-1).indices
        load = torch.bincount(picks.flatten(), minlength=NUM_EXPERTS) / len(picks)
        losses.append(NUM_EXPERTS * (load * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def compute_losses(model: PreTrainedModel, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in nats per token and the balancing loss (0 for the dense model); the forward pass runs in bf16."""
    is_moe = isinstance(model, Qwen3MoeForCausalLM)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=batch[:, :-1], use_cache=False, **({"output_router_logits": True} if is_moe else {}))
    cross_entropy = torch.nn.functional.cross_entropy(output.logits.float().flatten(0, 1), batch[:, 1:].flatten())
    return cross_entropy, compute_balancing_loss(output.router_logits) if is_moe else torch.zeros(())


def build_optimizer(model: PreTrainedModel) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)


def train_model(kind: str, streams: dict[str, demo_text.Ids], steps: int, seed: int) -> tuple[PreTrainedModel, float]:
    """Train one model from scratch; returns it with the wall time in seconds."""
    model = build_model(kind, seed).train()
    optimizer = build_optimizer(model)
    rng = np.random.default_rng(seed)
    start_s = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = compute_lr(step, steps)
        cross_entropy, balancing = compute_losses(model, draw_batch(streams, rng))
        torch.autograd.backward(cross_entropy + AUX_LOSS_COEF * balancing)
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_MAX)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_EVERY_STEPS == 0:
            tokens_per_s = (step + 1) * BATCH_SEQUENCES * SEQUENCE_TOKENS / (time.monotonic() - start_s)
            figures = f"loss {cross_entropy.item():.3f} balancing {balancing.item():.3f} {tokens_per_s:.0f} tokens/s"
            print(f"{kind} step {step + 1}/{steps} {figures}", file=sys.stderr, flush=True)
    return model.eval(), time.monotonic() - start_s


def describe_cpu() -> str:
    """The processor in words that name no machine: cores used, architecture, and what it has for bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    names = {"avx512_bf16": "AVX-512 bf16", "amx_bf16": "AMX bf16"}
    extensions = [name for flag, name in names.items() if flag in flags] or [torch.backends.cpu.get_cpu_capability()]
    return f"{torch.get_num_threads()} cores of an {platform.machine()} CPU with {', '.join(extensions)}"


def describe_training(steps: int, seed: int, wall_s: float, note: str) -> dict[str, Any]:
    """The facts of a training run that the card shows."""
    return {
        "steps": steps,
        "tokens": steps * BATCH_SEQUENCES * SEQUENCE_TOKENS,
        "batch_sequences": BATCH_SEQUENCES,
        "sequence_tokens": SEQUENCE_TOKENS,
        "prose_ratio": PROSE_RATIO,
        "seed": seed,
        "peak_lr": PEAK_LR,
        "warmup_steps": WARMUP_STEPS,
        "weight_decay": WEIGHT_DECAY,
        "aux_loss_coef": AUX_LOSS_COEF,
        "wall_minutes": round(wall_s / 60, 1),
        "tokens_per_s": round(steps * BATCH_SEQUENCES * SEQUENCE_TOKENS / wall_s),
        "cpu": describe_cpu(),
        "note": note,
        "versions": {name: sys.modules[name].__version__ for name in ("torch", "transformers", "tokenizers")},
    }


def update_json(path: Path, changes: dict[str, Any]) -> None:
    """Change some keys of a JSON file."""
    demo_card.write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path, training: dict[str, Any]) -> None:
    """Replace the model folder: weights in bf16, configurations, tokenizer, and the training half of the card."""
    if folder.exists():
        shutil.rmtree(folder)
    model.generation_config = GenerationConfig(
        eos_token_id=demo_text.END_OF_TEXT_ID, pad_token_id=demo_text.END_OF_TEXT_ID, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Version 5 of transformers writes names that version 4 does not know; these both know.
    update_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    if isinstance(model, Qwen3MoeForCausalLM):
        update_json(folder / "config.json", {"num_experts": NUM_EXPERTS})
    for path in folder.iterdir():
        path.chmod(0o644)
    demo_card.write_json(folder / demo_card.CARD_FILE, {"training": training})


def train_demo(out: Path, kinds: tuple[str, ...], steps: int, seed: int, note: str) -> None:
    """Train the tokenizer and the models asked for, and save them."""
    documents = demo_text.read_documents()
    tokenizer = demo_text.train_tokenizer(documents)
    streams = demo_text.encode_documents(documents, tokenizer)
    sizes = {name: len(ids) for name, ids in streams.train.items()}
    print(f"train tokens: {sizes}", file=sys.stderr, flush=True)
    for kind in kinds:
        model, wall_s = train_model(kind, streams.train, steps, seed)
        save_model(model, tokenizer, out / demo_card.FOLDERS[kind], describe_training(steps, seed, wall_s, note))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train or check the demo models of moeprof.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the two model folders")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="words for the card, such as what else the machine was doing")
    parser.add_argument("--only", choices=tuple(demo_card.FOLDERS), help="train only this one of the two")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--card", action="store_true", help="train nothing: measure the models on disk and rewrite the cards"
    )
    what.add_argument("--check", action="store_true", help="train nothing: compare the models on disk with their card")
    return parser.parse_args()


def main() -> int:
    """Train and measure, or check; returns the exit code."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.check:
        return demo_card.check_card(arguments.out)
    if not arguments.card:
        kinds = (arguments.only,) if arguments.only else tuple(demo_card.FOLDERS)
        train_demo(arguments.out, kinds, arguments.steps, arguments.seed, arguments.note)
    demo_card.write_cards(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
