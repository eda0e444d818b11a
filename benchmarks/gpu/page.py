"""The evidence as Markdown: the page of all targets and answers, and the short block of docs/gpu.md. Pure text.

The same code writes both before any card has run the script (every figure then reads "not yet measured") and after.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.answers import azure_table, markdown_table, mixtral_table, peaks_table, qwen_table
from benchmarks.gpu.gap_table import gap_tables
from benchmarks.gpu.goals import MODELS, Judged, tally
from benchmarks.gpu.results import Results

BEGIN, END = "<!-- gpu -->", "<!-- /gpu -->"
RECORDS = (
    ("mixtral-against-dense", "Mixtral 8x7B and its dense twins, 1 to 64 requests in flight"),
    ("mixtral-8-layers", "the sparsity ladder and the dense-equivalent size, 8 of 32 layers, in lock-step"),
    ("qwen3-30b-against-dense", "Qwen3-30B-A3B and dense 8 B, 14 B, 32 B shapes"),
    ("azure-olmoe", "a minute of Azure conversation traffic through OLMoE-1B-7B and its twins"),
    ("roofline-mixtral", "Mixtral 8x7B against the limits of the device"),
    ("roofline-qwen3-30b", "Qwen3-30B-A3B against the limits of the device"),
)
HOW = """make gpu-carry    # the trace and popularity counts that the repository does not hold, into .carry/
make gpu-1        # each on the machine with the card, each under ten minutes
make gpu-2
make gpu-3
make gpu-publish  # here: unpack, render, write this page"""


def evidence_page(results: Results) -> str:
    """``reports/published/gpu/README.md``."""
    parts = [
        "# Evidence from one data-centre card",
        _status(results),
        "## Targets",
        tally(results.judged) + ". Intervals are 95 %; where a target names the lower end, that decides.",
        _targets(results.judged),
        "## What the device can do",
        peaks_table(results),
        "## What the distance to the roofline consists of",
        gap_tables(results),
        "## Mixtral 8x7B against dense",
        "Output tokens per second of the whole pass, prompts included; dollars for input and output tokens together.",
        mixtral_table(results),
        "## Qwen3-30B-A3B against dense 8 B, 14 B and 32 B shapes",
        qwen_table(results),
        "## A minute of Azure conversation traffic",
        azure_table(results),
        "## Records",
        _records(results),
        "## How a step is launched, and what else was tried",
        "Predictions, how each is measured, and results: [EXPERIMENTS.md](../../../benchmarks/gpu/EXPERIMENTS.md).",
        *_troubles(results),
        "## Making it",
        f"For a machine with one 141 GB card and a few calls of under ten minutes:\n\n```\n{HOW}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def docs_block(results: Results) -> str:
    """What stands between the markers of docs/gpu.md, markers included."""
    rows = _shown(results.judged) if results.parts else _not_yet(results.judged)
    told = (
        f"{_status(results)} {tally(results.judged)}. All figures with their records (Mixtral 8x7B against dense, "
        "Qwen3-30B-A3B against dense 8 B, 14 B and 32 B, Azure traffic through OLMoE): "
        "[reports/published/gpu](../reports/published/gpu/README.md). What was tried, with predictions and results: "
        "[EXPERIMENTS.md](../benchmarks/gpu/EXPERIMENTS.md)."
    )
    table = markdown_table(("on one card of 141 GB", "target", "measured", "verdict"), rows)
    return f"{BEGIN}\n{told}\n\n{table}\n{END}"


def with_block(text: str, block: str) -> str:
    """``text`` with what stands between the markers replaced.

    Raises:
        ValueError: the markers are not there once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text needs {BEGIN} and {END} once each, in this order")
    return text[: text.index(BEGIN)] + block + text[text.index(END) + len(END) :]


def _status(results: Results) -> str:
    if not results.parts:
        return "**Not yet measured: no card has run it.** The script, its workloads and its targets are complete."
    card = results.card
    name = card.get("name", "a machine without a card")
    dates = sorted({str(part["started"])[:10] for part in results.parts})
    facts = (results.case("environment", "machine") or {}).get("environment", {})
    packages = facts.get("packages") or {}
    versions = ", ".join(f"{key} {packages[key]}" for key in ("torch", "transformers", "triton") if key in packages)
    tiny = " These are tiny models: a test of the path, no evidence." if any(p["tiny"] for p in results.parts) else ""
    return f"Measured on {name}, {' and '.join(dates)}{', ' if versions else ''}{versions}.{tiny}"


def _targets(rows: Sequence[Judged]) -> str:
    cells = [
        (row.goal.title, row.goal.text, row.measured, row.verdict, row.reason.replace("|", "/") or "-") for row in rows
    ]
    return markdown_table(("what", "target", "measured", "verdict", "reason"), cells)


def _shown(rows: Sequence[Judged]) -> list[tuple[str, str, str, str]]:
    """The choice of docs/gpu.md: decode, the two ends of prefill, instruments, loading of the largest."""
    left_out = ("prefill-of-matmul/mixtral/2", "prefill-of-matmul/mixtral/4", "prefill-of-matmul/qwen3-30b/2",
                "prefill-of-matmul/qwen3-30b/4", "load-peak/qwen3-30b")  # fmt: skip
    return [(row.goal.title, row.goal.text, row.measured, row.verdict) for row in rows if row.goal.key not in left_out]


KINDS = {
    "decode-over-roofline": "decode, time over the byte roofline",
    "prefill-of-matmul": "prompts of 2,048 tokens, share of the measured matmul rate",
    "overhead": "instruments, instrumented over bare steps",
    "save-detailed": "every pick kept (--save-detailed), over bare steps",
    "load-peak": "peak while random weights are made, over the weights",
}


def _not_yet(rows: Sequence[Judged]) -> list[tuple[str, str, str, str]]:
    """Before any card: the targets of one kind, model and bound in one row, with their batches."""
    batches: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        kind, *rest = row.goal.key.split("/")
        model = next((f"{MODELS[name]}, " for name in rest if name in MODELS), "")
        batches.setdefault((f"{model}{KINDS[kind]}", row.goal.text), []).extend(n for n in rest if n.isdigit())
    return [
        (f"{what}, batch {', '.join(found)}" if found else what, bound, "not yet measured", "not measured")
        for (what, bound), found in batches.items()
    ]


def _records(results: Results) -> str:
    rows = []
    for name, what in RECORDS:
        record = results.record(name)
        if record is None:
            rows.append((what, "not yet measured"))
            continue
        links = [
            f"[{file}](../{record.name}/{file})" for file in ("report.html", "compare.html") if (record / file).exists()
        ]
        rows.append((what, ", ".join(links) or f"[record](../{record.name})"))
    return markdown_table(("record", "pages"), rows)


def _troubles(results: Results) -> list[str]:
    """Steps that did not end well and what was replaced; nothing where all went well."""
    lines = [
        f"- {step['name']}: {step['status']}, {step['reason']}" for step in results.steps if step["status"] != "done"
    ]
    lines += [f"- {note}" for note in results.notes]
    return ["## What did not go as planned", "\n".join(lines)] if lines else []
