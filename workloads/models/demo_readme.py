"""The text of a model card, from the figures of `card.json`; nothing is measured here."""

from typing import Any

TITLES = {
    "moe": "demo-moe: a small mixture of experts with learnt routing",
    "dense": "demo-dense: the active-matched dense sibling of demo-moe",
}
NAMES = (("moe", "demo-moe"), ("dense", "demo-dense"))
INTRODUCTIONS = {
    "moe": "A `Qwen3MoeForCausalLM` trained from scratch on the text of the Python standard library, so that moeprof "
    "has routing worth watching: its experts are all at work, not equally, and code and prose take different ones. It "
    "is an instrument for tests and demonstrations, not a model to use for its words.",
    "dense": "A `Qwen3ForCausalLM` with the attention, norms, vocabulary, text, order and schedule of demo-moe. Its "
    "MLP is as wide as the experts that a token visits there, so both do the same work per token, but for the router.",
}


def render_table(header: list[str], rows: list[list[Any]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in [header, rule, *rows])


def describe_gap(card: dict[str, Any]) -> str:
    """One paragraph: how either model does on text it was trained on, and what the difference says."""
    moe, dense = card["models"]["moe"], card["models"]["dense"]
    seen = [
        f"{name} {card['models'][kind]['train_slice']['bits_per_byte']['code']:.3f} on code and "
        f"{card['models'][kind]['train_slice']['bits_per_byte']['prose']:.3f} on prose"
        for kind, name in NAMES
    ]
    text = f"On a slice of the train side: {'; '.join(seen)}."
    fits_closer = moe["train_slice"]["bits_per_byte"]["both"] < dense["train_slice"]["bits_per_byte"]["both"]
    if fits_closer and moe["held_out"]["bits_per_byte"]["both"] > dense["held_out"]["bits_per_byte"]["both"]:
        text += (
            " The mixture fits the train text closer and the held-out text worse: with so little text, read several "
            "times, its larger memory overfits. Do not read this pair as evidence about mixtures of experts."
        )
    return text


def render_quality(card: dict[str, Any]) -> str:
    """Held-out bits per byte of both models and the baseline."""
    classes = ["code", "prose", "both"]
    rows = [
        [name, *(f"{card['models'][kind]['held_out']['bits_per_byte'][c]:.3f}" for c in classes)]
        for kind, name in NAMES
    ]
    rows.append(["bigram of the same tokens", *(f"{card['bigram_bits_per_byte'][c]:.3f}" for c in classes)])
    note = (
        "Windows of 256 tokens without overlap, so context is short at the start of each. The bigram baseline "
        "interpolates with the unigram, fitted on the train side; its one free weight is chosen on the held-out text, "
        "which flatters it."
    )
    table = render_table(["", *classes], rows)
    return f"## Held-out bits per byte (lower is better)\n\n{table}\n\n{note}\n\n{describe_gap(card)}"


def render_routing(card: dict[str, Any]) -> str:
    """Load and specialisation per layer of the mixture of experts."""
    layers = card["models"]["moe"]["held_out"]["routing"]
    load_rows = []
    for row in layers:
        both = row["both"]
        maxima = [f"{row[text]['router_load_max_over_mean']:.2f}" for text in ("both", "code", "prose")]
        rest = [f"{both['router_load_min_over_mean']:.2f}", f"{both['router_entropy_ratio']:.3f}", both["dead_experts"]]
        load_rows.append([row["layer"], *maxima, *rest])
    header = ["layer", "max/mean", "max/mean, code", "max/mean, prose", "min/mean", "entropy ratio", "dead experts"]
    variation_keys = ("code_prose_total_variation", "null_mean", "null_max")
    variation_rows = [[row["layer"], *(f"{row[key]:.3f}" for key in variation_keys)] for row in layers]
    variation_header = ["layer", "total variation", "null, mean", "null, largest of 1000"]
    return (
        "## Routing on held-out text\n\n"
        "Neither collapsed (max/mean would be 8, entropy ratio 0.25, dead experts 14 of 16) nor uniform (1, 1, 0). "
        "Both texts as they come, mostly code, where not said otherwise:\n\n"
        f"{render_table(header, load_rows)}\n\n"
        "Code and prose take different experts. Total variation between their load shares (0 the same, 1 disjoint), "
        "beside what shuffling the 256-token windows between the two gives:\n\n"
        f"{render_table(variation_header, variation_rows)}"
    )


def render_training(kind: str, card: dict[str, Any]) -> str:
    """Parameters, data and schedule."""
    model, training, corpus = card["models"][kind], card["training"], card["corpus"]
    rows = [
        ["parameters, total / active", f"{model['total_params']:,} / {model['active_params']:,}"],
        ["steps, tokens", f"{training['steps']:,} steps, {training['tokens']:,} tokens"],
        [
            "batch",
            f"{training['batch_sequences']} windows of {training['sequence_tokens']} tokens, "
            f"{training['prose_ratio']:.0%} prose",
        ],
        ["seed", training["seed"]],
        [
            "optimiser",
            f"AdamW, peak lr {training['peak_lr']}, warm-up {training['warmup_steps']} steps, cosine, "
            f"weight decay {training['weight_decay']}",
        ],
        ["wall time", f"{training['wall_minutes']} minutes, {training['tokens_per_s']:,} tokens/s"],
        ["machine", "; ".join(filter(None, (training["cpu"], training["note"])))],
        ["versions", ", ".join(f"{name} {version}" for name, version in training["versions"].items())],
        [
            "text",
            f"standard library of Python {corpus['python']}, SHA-256 `{corpus['sha256']}`",
        ],
    ]
    if kind == "moe":
        rows.insert(
            5, ["load balancing", f"coefficient {training['aux_loss_coef']}, per layer (transformers pools the layers)"]
        )
    return f"## Training\n\n{render_table(['', ''], rows)}"


def render_corpus(card: dict[str, Any]) -> str:
    """Size of each side and class of the text."""
    sides = {name: figures for name, figures in card["corpus"].items() if isinstance(figures, dict)}
    rows = [
        [name.replace("_", " ").replace("held out", "held-out"), *(f"{v:,}" for v in f.values())]
        for name, f in sides.items()
    ]
    table = render_table(["", "documents", "bytes", "tokens"], rows)
    return (
        "## Text\n\nCode: source files of the standard library, without tests, idlelib, lib2to3 and the encodings. "
        "Prose: the help topics of `pydoc_data` and docstrings of 200 characters or more (which stand in the code, "
        "too, where they were written). A file is held out, code and docstrings together, when a hash of its name says "
        "so. The tokenizer, byte-level BPE of 2,048 entries, saw the train side only.\n\n" + table
    )


def render_readme(kind: str, card: dict[str, Any]) -> str:
    """The whole card of one model as Markdown."""
    usage = (
        "## Again\n\n```\npython workloads/models/train_demo.py            # train both models and write the cards\n"
        "python workloads/models/train_demo.py --check    # do the models on disk give the figures of their cards?\n"
        "```\n\nThe greedy continuation of one prompt:\n\n"
    )
    sample = f"```python\n{card['models'][kind]['sample'].strip()}\n```"
    sections = [f"# {TITLES[kind]}", INTRODUCTIONS[kind], render_quality(card)]
    sections += [render_routing(card)] if kind == "moe" else []
    sections += [render_training(kind, card), render_corpus(card), usage + sample]
    return "\n\n".join(sections) + "\n"
