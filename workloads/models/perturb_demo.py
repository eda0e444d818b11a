"""Write changed checkpoints of the demo mixture of experts, to see what a regression check makes of them.

    python workloads/models/perturb_demo.py OUT --kind noise      # weights moved by about one rounding of bf16
    python workloads/models/perturb_demo.py OUT --kind finetune   # a few training steps on the same text
    python workloads/models/perturb_demo.py OUT --kind dead       # expert 5 of layer 2 is never chosen again
    python workloads/models/perturb_demo.py OUT --kind collapse   # three experts of each layer take nearly every token

Then `moeprof regress --ab` on two workloads that name the two folders, with `--allow revision`. Needs torch,
transformers and no network; takes seconds. Same arguments, same machine: same weights.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import demo_text
import torch
from transformers import Qwen3MoeForCausalLM
from transformers.utils import logging

DEMO = Path(__file__).parent / "demo-moe"
COPIED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
KINDS = ("noise", "finetune", "dead", "collapse")

BATCH_SEQUENCES = 8
SEQUENCE_TOKENS = 256
CODE_FILE_EVERY = 40  # of the standard library, beside all help topics
SAMPLE_BATCHES = 8
HELD_OUT_BATCHES = 4

FINETUNE_STEPS = 8
FINETUNE_LR = 2e-4
FAVOURITES = 3  # more than a token takes, so that a collapsed layer still chooses
PULL = 30.0  # added to the logits of favourites
FIT_STEPS = 400
FIT_LR = 0.01
FIT_MARGIN = 0.3  # of logits, far above what bf16 rounds away


def read_sample(folder: Path, seed: int) -> torch.Tensor:
    """Windows of the standard library's prose and code in random order, shape [windows, SEQUENCE_TOKENS]."""
    from tokenizers import Tokenizer

    texts = [text for _, text in sorted(topics.items())]
    texts += [path.read_text(encoding="utf-8") for _, path in demo_text.find_stdlib_files()[::CODE_FILE_EVERY]]
    encodings = Tokenizer.from_file(str(folder / "tokenizer.json")).encode_batch(texts)
    ids = torch.tensor([i for encoding in encodings for i in (demo_text.END_OF_TEXT_ID, *encoding.ids)])
    windows = ids[: len(ids) // SEQUENCE_TOKENS * SEQUENCE_TOKENS].reshape(-1, SEQUENCE_TOKENS)
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    needed = (SAMPLE_BATCHES + HELD_OUT_BATCHES) * BATCH_SEQUENCES
    return windows[order[:needed]]


def find_gates(model: Any) -> list[Any]:
    """The routers, one per layer."""
    return [layer.mlp.gate for layer in model.model.layers]


@torch.no_grad()
def read_hidden(model: Any, windows: torch.Tensor) -> list[torch.Tensor]:
    """What each router sees, shape [tokens, hidden], in float32."""
    seen: list[list[torch.Tensor]] = [[] for _ in find_gates(model)]

    def watch(kept: list[torch.Tensor]) -> Any:
        return lambda _module, arguments: kept.append(arguments[0].reshape(-1, arguments[0].shape[-1]).float())

    hooks = [gate.register_forward_pre_hook(watch(kept)) for gate, kept in zip(find_gates(model), seen, strict=True)]
    for batch in torch.split(windows, BATCH_SEQUENCES):
        model(input_ids=batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept) for kept in seen]


@torch.no_grad()
def read_picks(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Experts that each token takes, shape [layers, tokens, k]."""
    hidden = read_hidden(model, windows)
    top_k = model.config.num_experts_per_tok
    logits = [x.to(gate.weight.dtype) @ gate.weight.T for x, gate in zip(hidden, find_gates(model), strict=True)]
    return torch.stack([layer.float().topk(top_k, dim=-1).indices for layer in logits])


def shared_direction(hidden: torch.Tensor) -> torch.Tensor:
    """The direction v with x.v nearest to 1 for all tokens x, by least squares: what all tokens have in common."""
    solution: torch.Tensor = torch.linalg.lstsq(hidden, torch.ones(len(hidden), 1)).solution
    return solution[:, 0]


@torch.no_grad()
def add_noise(model: Any, seed: int) -> None:
    """Move every weight up or down by one step of bf16 with probability 1/4 each, as one more rounding might."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        exponent = torch.frexp(weight.float()).exponent
        step = torch.ldexp(torch.ones(weight.shape), exponent - 8)  # 8 bits of precision, the leading one included
        shift = torch.rand(weight.shape, generator=generator) * 2 - 1
        weight.copy_((weight.float() + step * shift).to(weight.dtype))


def finetune(model: Any, windows: torch.Tensor) -> None:
    """A few steps of AdamW on the sample, without the balancing loss; weights in float32 meanwhile."""
    dtype = model.dtype
    model.float().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=FINETUNE_LR)
    for step in range(FINETUNE_STEPS):
        batch = windows[step * BATCH_SEQUENCES : (step + 1) * BATCH_SEQUENCES]
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    model.to(dtype).eval()


def kill_expert(model: Any, windows: torch.Tensor, layer: int, expert: int) -> None:
    """Give one expert a router row whose logit is below the k-th best of every token.

    Routers here have no bias, so the row must be found. Zeros, a logit of 0, nearly do: the k-th best of 16 logits is
    above that for almost every token. From there the row is moved until no token of the sample is within FIT_MARGIN of
    choosing the expert, and no further: a longer row would rule over tokens that are not in the sample.
    """
    gate, hidden = find_gates(model)[layer], read_hidden(model, windows)[layer]
    logits = hidden @ gate.weight.detach().float().T
    logits[:, expert] = -torch.inf
    bar = logits.topk(model.config.num_experts_per_tok, dim=-1).values[:, -1]
    row = torch.zeros(hidden.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([row], lr=FIT_LR)
    for _ in range(FIT_STEPS):
        over = (hidden @ row - bar + FIT_MARGIN).clamp_min(0)
        if not over.any():
            break
        torch.autograd.backward(over.sum())
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        gate.weight[expert] = row.to(gate.weight.dtype)


@torch.no_grad()
def collapse(model: Any, windows: torch.Tensor, seed: int) -> None:
    """Pull every token of every layer to the same few experts: what is left of a router whose training went wrong.

    Layer by layer from the first, since each sees what the layers before it make of the tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer, gate in enumerate(find_gates(model)):
        favourites = torch.randperm(len(gate.weight), generator=generator)[:FAVOURITES]
        direction = shared_direction(read_hidden(model, windows)[layer])
        gate.weight[favourites] += (PULL * direction).to(gate.weight.dtype)


def perturb(model: Any, windows: torch.Tensor, arguments: argparse.Namespace) -> None:
    """Change the weights in place."""
    if arguments.kind == "noise":
        add_noise(model, arguments.seed)
    elif arguments.kind == "finetune":
        finetune(model, windows)
    elif arguments.kind == "dead":
        kill_expert(model, windows, arguments.layer, arguments.expert)
    else:
        collapse(model, windows, arguments.seed)


def save_checkpoint(model: Any, out: Path) -> None:
    """A model folder like the demo's, without the card and the README: their figures are not those of these weights."""
    model.save_pretrained(out)
    for name in COPIED:
        shutil.copyfile(DEMO / name, out / name)
    for path in out.iterdir():
        path.chmod(0o644)


def describe(before: torch.Tensor, after: torch.Tensor, num_experts: int) -> list[str]:
    """Per layer: share of the same picks, tokens of the busiest expert over the mean, experts without a token."""
    lines = []
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        same = (old[:, :, None] == new[:, None, :]).any(dim=-1).float().mean().item()
        load = torch.bincount(new.flatten(), minlength=num_experts)
        dead = torch.nonzero(load == 0).flatten().tolist()
        busiest = load.max().item() * num_experts / new.numel()
        lines.append(f"layer {layer}: {100 * same:.2f} % of the picks as before, max/mean {busiest:.2f}, dead {dead}")
    return lines


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Write a changed checkpoint of the demo mixture of experts.")
    parser.add_argument("out", type=Path, help="folder of the new checkpoint; must not hold one")
    parser.add_argument("--kind", choices=KINDS, required=True)
    parser.add_argument("--layer", type=int, default=2, help="of the dead expert")
    parser.add_argument("--expert", type=int, default=5, help="the dead expert")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="more are slower where the machine is shared")
    return parser.parse_args()


def check_arguments(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be done, before anything is read."""
    config = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    layers, experts = config["num_hidden_layers"], config["num_experts"]
    if not (0 <= arguments.layer < layers and 0 <= arguments.expert < experts):
        sys.exit(f"the demo model has layers 0 to {layers - 1} and experts 0 to {experts - 1}")
    if (arguments.out / "config.json").exists():
        sys.exit(f"{arguments.out}: holds a checkpoint already; name another folder")


def main() -> int:
    """Write the checkpoint and say what became of its routing on text that it was not made with."""
    arguments = parse_arguments()
    check_arguments(arguments)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    logging.disable_progress_bar()
    model: Any = Qwen3MoeForCausalLM.from_pretrained(DEMO, dtype=torch.bfloat16).eval()
    sample = read_sample(DEMO, arguments.seed)
    windows, held_out = sample[HELD_OUT_BATCHES * BATCH_SEQUENCES :], sample[: HELD_OUT_BATCHES * BATCH_SEQUENCES]
    before = read_picks(model, held_out)
    perturb(model, windows, arguments)
    after = read_picks(model, held_out)
    if arguments.kind == "dead" and (after[arguments.layer] == arguments.expert).any():
        where = f"expert {arguments.expert} of layer {arguments.layer}"
        sys.exit(f"{where} is still chosen on other text (layer 0 is hard); nothing was written, name another layer")
    save_checkpoint(model, arguments.out)
    print("\n".join(describe(before, after, model.config.num_experts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
