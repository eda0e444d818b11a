"""The tables that answer the questions, from published records; before a card has run it, they say so.

One Markdown table each. A cell without a value is ``not yet measured``; nothing is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.elsewhere import H100_BYTES_PER_S, H200_BYTES_PER_S, ML_ENERGY, QWEN3, VLLM_QWEN3
from benchmarks.gpu.loads import Load, read_loads
from benchmarks.gpu.results import Results
from moeprof.core.errors import MoeprofError

NOT_YET = "not yet measured"
MIXTRAL_LOADS = (1, 2, 4, 8, 16, 32, 64)
QWEN_LOADS = (8, 16, 32, 64)
CLAIM = 2.5


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def mixtral_table(results: Results) -> str:
    """Mixtral against its twins by load, and where the claim holds."""
    loads = _loads(results, "mixtral-against-dense")
    rows, holds, known = [], [], 0
    for concurrency in MIXTRAL_LOADS:
        moe, active, total = (_at(loads, name, concurrency) for name in ("moe", "dense-1x", "dense-4x"))
        ratio = _ratio(_speed(moe), _speed(total))
        known += ratio is not None
        if ratio is not None and ratio >= CLAIM:
            holds.append(concurrency)
        cells = [_text(_speed(one), ",.0f") for one in (moe, active, total)]
        dollars = [_text(None if one is None else one.usd_per_1m_tokens, ".4f") for one in (moe, total)]
        rows.append((str(concurrency), *cells, _text(ratio, ".2f"), *dollars))
    head = ("in flight", "Mixtral, tokens/s", "dense 12.9 B, tokens/s", "dense 46.7 B, tokens/s",
            "Mixtral / dense 46.7 B", "Mixtral, $ per 1M", "dense 46.7 B, $ per 1M")  # fmt: skip
    return f"{markdown_table(head, rows)}\n\n{_claim(known, holds)}"


def _claim(known: int, holds: Sequence[int]) -> str:
    asked = f"Is Mixtral {CLAIM:g} times as fast as a dense model of its total size?"
    if not known:
        return f"{asked} Not yet measured."
    where = f"With {', '.join(map(str, holds))} in flight." if holds else f"At none of the {known} loads measured."
    return f"{asked} {where}"


def qwen_table(results: Results) -> str:
    """Qwen3-30B-A3B against dense shapes by load, then beside what others measured with 8 in flight."""
    loads = _loads(results, "qwen3-30b-against-dense")
    names = ("moe", "dense-8b", "dense-14b", "dense-32b")
    rows = [(str(load), *(_text(_speed(_at(loads, name, load)), ",.0f") for name in names)) for load in QWEN_LOADS]
    head = ("in flight", "Qwen3-30B-A3B, tokens/s", "dense 8 B", "dense 14 B", "dense 32 B")
    beside = []
    for other in QWEN3:
        own = _at(loads, other.model, other.in_flight)
        energy = None if own is None else own.energy_j_per_output_token
        theirs = (f"{other.output_tokens_per_s:,.0f}", f"{other.energy_j_per_output_token:.3g}")
        ratio = _ratio(_speed(own), other.output_tokens_per_s)
        beside.append((other.title, theirs[0], _text(_speed(own), ",.0f"), _text(ratio, ".2f"), theirs[1],
                       _text(energy, ".3g")))  # fmt: skip
    second = markdown_table(
        ("with 8 in flight", "theirs, tokens/s", "ours", "ours / theirs", "theirs, J per output token", "ours"), beside
    )
    told = (
        f"Theirs: {ML_ENERGY}; one H100, bfloat16. By its datasheet that card moves {H100_BYTES_PER_S / 1e12:g} TB/s, "
        f"an H200 {H200_BYTES_PER_S / 1e12:g}: where bytes decide, {H200_BYTES_PER_S / H100_BYTES_PER_S:.2f} times "
        f"theirs is level. Another engine reports {VLLM_QWEN3.output_tokens_per_s:g} tokens/s ({VLLM_QWEN3.source})."
    )
    return f"{markdown_table(head, rows)}\n\n{second}\n\n{told}\n\n{_order(loads)}"


def _order(loads: Sequence[Load]) -> str:
    theirs = sorted(QWEN3, key=lambda one: -one.output_tokens_per_s)
    ours = sorted(((_speed(_at(loads, one.model, 8)) or 0.0, one.title) for one in QWEN3), reverse=True)
    told = f"Their order, fastest first: {', '.join(one.title for one in theirs)}."
    if any(speed == 0.0 for speed, _ in ours):
        return f"{told} Ours: {NOT_YET}."
    same = [title for _, title in ours] == [one.title for one in theirs]
    return f"{told} Ours: {', '.join(title for _, title in ours)} ({'the same' if same else 'another'})."


def azure_table(results: Results) -> str:
    """A minute of Azure conversation traffic: latency and goodput at its own times, dollars offline."""
    loads = _loads(results, "azure-olmoe")
    rows = []
    for name, title in (("moe", "OLMoE-1B-7B"), ("dense-active", "dense, active size"),
                        ("dense-total", "dense, total size")):  # fmt: skip
        live = next((one for one in loads if one.model == name and not one.is_capacity), None)
        offline = next((one for one in loads if one.model == name and one.is_capacity), None)
        cells = [] if live is None else [
            _text(_ms(live.ttft_p50_s), ",.0f"), _text(_ms(live.ttft_p90_s), ",.0f"), _text(_ms(live.itl_p50_s), ".2f"),
            _text(live.goodput_ratio, ".1%"),
        ]  # fmt: skip
        dollars = None if offline is None else offline.usd_per_1m_tokens
        rows.append((title, *(cells or [NOT_YET] * 4), _text(dollars, ".4f")))
    head = (
        "model",
        "TTFT p50, ms",
        "TTFT p90, ms",
        "ITL p50, ms",
        "requests within the SLO",
        "$ per 1M tokens, offline",
    )
    return markdown_table(head, rows)


def peaks_table(results: Results) -> str:
    """What the card was measured to do, and what a launch costs."""
    peaks = results.case("environment", "peaks") or {}
    launches = results.case("environment", "launches") or {}
    matmul = (peaks.get("flops_per_s") or {}).get("bfloat16")
    rows = (
        ("memory bandwidth, TB/s", _text(_scaled(peaks.get("bandwidth_bytes_per_s"), 1e-12), ".2f")),
        ("matrix rate in bfloat16, TFLOP/s", _text(_scaled(matmul, 1e-12), ".0f")),
        ("a launch, microseconds", _text(_scaled(launches.get("eager_s_per_launch"), 1e6), ".2f")),
        ("a launch inside a graph, microseconds", _text(_scaled(launches.get("graph_s_per_launch"), 1e6), ".2f")),
    )  # fmt: skip
    return markdown_table(("of the card", "measured"), rows)


def _loads(results: Results, name: str) -> list[Load]:
    record = results.record(name)
    try:
        return [] if record is None else read_loads(record)
    except MoeprofError:
        return []  # the record's own page says what is wrong with it


def _at(loads: Sequence[Load], model: str, concurrency: int) -> Load | None:
    return next((one for one in loads if one.model == model and one.concurrency == concurrency), None)


def _speed(load: Load | None) -> float | None:
    return None if load is None else load.output_tokens_per_s


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _ms(seconds: float | None) -> float | None:
    return _scaled(seconds, 1e3)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _text(value: float | None, form: str) -> str:
    return NOT_YET if value is None else format(value, form)
