"""The cards of the demo models: all is measured here, from the bf16 weights on disk and the held-out text.

Bits per byte, not nats per token, because they do not depend on the tokenizer. Routing is read where it is executed: a
hook on the modules that run the experts sees the picks. Windows are the unit of the permutation null, because
neighbouring tokens route alike. Shapes: W windows, B windows of a batch, L layers, E experts, P permutations.
"""

import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import demo_readme
import demo_text
import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

FOLDERS = {"moe": "demo-moe", "dense": "demo-dense"}
CARD_FILE = "card.json"
WINDOW_TOKENS = 256
BATCH_WINDOWS = 16
CHECK_WINDOWS_PER_CLASS = 64
NUM_PERMUTATIONS = 1000
PERMUTATION_SEED = 0
SAMPLE_PROMPT = "def read_lines(self, "
SAMPLE_TOKENS = 64
CHECK_TOLERANCE_RATIO = 0.03
CHECK_TOLERANCE_RATIO_OTHER_TEXT = 0.15

Counts = npt.NDArray[np.int64]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented JSON with a last newline."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_model(folder: Path) -> PreTrainedModel:
    """The model on disk, in bf16, ready to evaluate."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return model.eval()


@contextmanager
def watch_experts(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """While open, each call of an experts module appends its picks, tokens by top-k, to the list."""
    picks: list[torch.Tensor] = []
    experts = [module for module in model.modules() if type(module).__name__.endswith("Experts")]
    handles = [module.register_forward_pre_hook(lambda _module, inputs: picks.append(inputs[1])) for module in experts]
    try:
        yield picks
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def evaluate_windows(model: PreTrainedModel, windows: demo_text.Ids) -> tuple[float, Counts]:
    """Total bits of the predicted tokens, and tokens per window, layer and expert (no layers for the dense model)."""
    bits = 0.0
    counts_BLE = []
    num_experts = getattr(model.config, "num_experts", 0)
    for start in range(0, len(windows), BATCH_WINDOWS):
        batch = torch.from_numpy(windows[start : start + BATCH_WINDOWS])
        with watch_experts(model) as picks:
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        bits += nats.item() / float(np.log(2))
        one_hot = [torch.nn.functional.one_hot(p.view(len(batch), -1), num_experts).sum(dim=1) for p in picks]
        counts_BLE.append(
            torch.stack(one_hot, dim=1).numpy() if picks else np.zeros((len(batch), 0, 0), dtype=np.int64)
        )
    return bits, np.concatenate(counts_BLE)


def compute_bits_per_byte(bits: dict[str, float], num_bytes: dict[str, int]) -> dict[str, float]:
    """Bits per byte of each text class, and of both together."""
    figures = {name: bits[name] / num_bytes[name] for name in bits} | {
        "both": sum(bits.values()) / sum(num_bytes.values())
    }
    return {name: round(figure, 4) for name, figure in figures.items()}


def describe_load(counts_E: Counts) -> dict[str, float]:
    """Imbalance of one layer: busiest expert over the mean, entropy over its maximum, experts without a token."""
    share_E = counts_E / counts_E.sum()
    entropy = -(share_E[share_E > 0] * np.log(share_E[share_E > 0])).sum()
    return {
        "router_load_max_over_mean": round(float(share_E.max() * len(share_E)), 3),
        "router_load_min_over_mean": round(float(share_E.min() * len(share_E)), 3),
        "router_entropy_ratio": round(float(entropy / np.log(len(share_E))), 4),
        "dead_experts": int((counts_E == 0).sum()),
    }


def compute_total_variation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Total variation between the load shares of two sets of counts, over the last axis: half the sum of |q1 - q2|."""
    shares = [counts / counts.sum(axis=-1, keepdims=True) for counts in (first, second)]
    total_variation: npt.NDArray[np.float64] = 0.5 * np.abs(shares[0] - shares[1]).sum(axis=-1)
    return total_variation


def permute_total_variation(counts_WLE: Counts, num_first: int) -> npt.NDArray[np.float64]:
    """Total variation per permutation and layer when windows are dealt to the two classes at random."""
    rng = np.random.default_rng(PERMUTATION_SEED)
    mask_PW = np.zeros((NUM_PERMUTATIONS, len(counts_WLE)))
    for row in mask_PW:
        row[rng.permutation(len(counts_WLE))[:num_first]] = 1
    first_PLE = np.tensordot(mask_PW, counts_WLE, axes=1)
    return compute_total_variation(first_PLE, counts_WLE.sum(axis=0) - first_PLE)


def describe_routing(counts: dict[str, Counts]) -> list[dict[str, Any]]:
    """Load per layer on code, prose and both, and the total variation between code and prose beside its null."""
    code_LE, prose_LE = counts["code"].sum(axis=0), counts["prose"].sum(axis=0)
    variation_L = compute_total_variation(code_LE, prose_LE)
    null_PL = permute_total_variation(np.concatenate([counts["code"], counts["prose"]]), len(counts["code"]))
    layers = []
    for layer, (code_E, prose_E) in enumerate(zip(code_LE, prose_LE, strict=True)):
        load = {"code": describe_load(code_E), "prose": describe_load(prose_E), "both": describe_load(code_E + prose_E)}
        variation = {
            "code_prose_total_variation": round(float(variation_L[layer]), 4),
            "null_mean": round(float(null_PL[:, layer].mean()), 4),
            "null_max": round(float(null_PL[:, layer].max()), 4),
        }
        layers.append({"layer": layer, **load, **variation})
    return layers


def measure_model(
    model: PreTrainedModel, streams: demo_text.TokenStreams, limit: int | None = None, side: str = "held_out"
) -> dict[str, Any]:
    """Bits per byte and, for a mixture of experts, routing, on all windows of a side or `limit` per text class."""
    texts: dict[str, demo_text.Ids] = getattr(streams, side)
    windows = {name: demo_text.cut_windows(ids, WINDOW_TOKENS, limit) for name, ids in texts.items()}
    results = {name: evaluate_windows(model, rows) for name, rows in windows.items()}
    num_bytes = {name: int(streams.bytes_per_token[rows[:, 1:]].sum()) for name, rows in windows.items()}
    figures: dict[str, Any] = {
        "bits_per_byte": compute_bits_per_byte({n: bits for n, (bits, _) in results.items()}, num_bytes)
    }
    counts = {name: counts_WLE for name, (_, counts_WLE) in results.items()}
    if counts["code"].shape[1]:
        figures["routing"] = describe_routing(counts)
    return figures


def measure_bigram(streams: demo_text.TokenStreams) -> dict[str, float]:
    """Held-out bits per byte of the bigram baseline, on the windows that the models are measured on."""
    windows = {name: demo_text.cut_windows(ids, WINDOW_TOKENS) for name, ids in streams.held_out.items()}
    num_bytes = {name: int(streams.bytes_per_token[rows[:, 1:]].sum()) for name, rows in windows.items()}
    return compute_bits_per_byte(demo_text.measure_bigram_bits(streams, windows), num_bytes)


def count_params(model: PreTrainedModel) -> dict[str, int]:
    """Total parameters (tied weights once), and those at work for one token."""
    total = sum(parameter.numel() for parameter in model.parameters())
    routed = sum(parameter.numel() for name, parameter in model.named_parameters() if ".experts." in name)
    if not routed:
        return {"total_params": total, "active_params": total}
    idle = routed - routed * model.config.num_experts_per_tok // model.config.num_experts
    return {"total_params": total, "active_params": total - idle}


def describe_corpus(documents: list[demo_text.Document], streams: demo_text.TokenStreams) -> dict[str, Any]:
    """Where the text came from and how much there is of it."""
    sides: dict[str, Any] = {}
    for side, ids in (("train", streams.train), ("held_out", streams.held_out)):
        for name in demo_text.TEXT_CLASSES:
            chosen = [d for d in documents if d.text_class == name and d.is_held_out == (side == "held_out")]
            num_bytes = sum(len(d.text.encode()) for d in chosen)
            sides[f"{side}_{name}"] = {"documents": len(chosen), "bytes": num_bytes, "tokens": len(ids[name])}
    return {"python": platform.python_version(), "sha256": demo_text.hash_documents(documents), **sides}


def continue_prompt(model: PreTrainedModel, tokenizer: Any) -> str:
    """The prompt and its greedy continuation."""
    ids = tokenizer(SAMPLE_PROMPT, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**ids, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def write_cards(out: Path) -> None:
    """Measure both models on disk and write `card.json` and `README.md` into both folders."""
    documents = demo_text.read_documents()
    streams = demo_text.encode_documents(documents, AutoTokenizer.from_pretrained(out / FOLDERS["moe"]))
    shared: dict[str, Any] = {
        "corpus": describe_corpus(documents, streams),
        "bigram_bits_per_byte": measure_bigram(streams),
    }
    shared["models"] = {}
    for kind, folder in FOLDERS.items():
        model = load_model(out / folder)
        shared["models"][kind] = {
            **count_params(model),
            "training": json.loads((out / folder / CARD_FILE).read_text(encoding="utf-8"))["training"],
            "held_out": measure_model(model, streams),
            "train_slice": measure_model(model, streams, CHECK_WINDOWS_PER_CLASS, "train"),
            "check": measure_model(model, streams, CHECK_WINDOWS_PER_CLASS),
            "sample": continue_prompt(model, AutoTokenizer.from_pretrained(out / folder)),
        }
    for kind, folder in FOLDERS.items():
        card = {"model": folder, "training": shared["models"][kind]["training"], **shared}
        write_json(out / folder / CARD_FILE, card)
        (out / folder / "README.md").write_text(demo_readme.render_readme(kind, card), encoding="utf-8")


def list_figures(measured: dict[str, Any]) -> dict[str, float]:
    """The figures that the check compares, by name."""
    figures = {f"bits per byte, {name}": value for name, value in measured["bits_per_byte"].items()}
    for row in measured.get("routing", []):
        figures[f"layer {row['layer']} max/mean load"] = row["both"]["router_load_max_over_mean"]
        figures[f"layer {row['layer']} total variation"] = row["code_prose_total_variation"]
    return figures


def check_card(out: Path) -> int:
    """Measure a slice of the held-out text and compare with the card; returns 1 when a figure is off."""
    documents = demo_text.read_documents()
    held_out = [document for document in documents if document.is_held_out]
    streams = demo_text.encode_documents(held_out, AutoTokenizer.from_pretrained(out / FOLDERS["moe"]))
    num_off = 0
    for kind, folder in FOLDERS.items():
        card = json.loads((out / folder / CARD_FILE).read_text(encoding="utf-8"))
        same_text = card["corpus"]["sha256"] == demo_text.hash_documents(documents)
        tolerance = CHECK_TOLERANCE_RATIO if same_text else CHECK_TOLERANCE_RATIO_OTHER_TEXT
        if not same_text:
            print(
                f"{folder}: the card is from Python {card['corpus']['python']}, whose text differs: "
                f"within {tolerance:.0%} will do"
            )
        expected = list_figures(card["models"][kind]["check"])
        found = list_figures(measure_model(load_model(out / folder), streams, CHECK_WINDOWS_PER_CLASS))
        for name, value in expected.items():
            is_off = name not in found or abs(found[name] - value) > tolerance * value
            num_off += is_off
            print(f"{folder}: {name}: card {value}, found {found.get(name)}: {'OFF' if is_off else 'ok'}")
    verdict = f"{num_off} figures are off by more than the tolerance" if num_off else "all figures agree with the cards"
    print(verdict, file=sys.stderr if num_off else sys.stdout)
    return 1 if num_off else 0
