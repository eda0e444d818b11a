"""Documents for the tests of every renderer: a rich one, and one where everything is awkward.

Figures are invented, and look like two small models on one card. Same call, same Document.
"""

from __future__ import annotations

import numpy as np

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.report.document import (
    Cell,
    Chart,
    Document,
    HeatMap,
    HeatMapVariant,
    ModelColumn,
    Paragraph,
    Row,
    Section,
    Series,
    StackedBars,
    Table,
)
from moeprof.analysis.report.tables import facts
from moeprof.core.metric import Better, Card, MetricValue, missing

MOE, DENSE = "moe-16x2", "dense-active"
SCRIPT, MARKUP = "<script>alert(1)</script>", "[bold red]x[/] `y` |z| </script><img src=x onerror=alert(1)>"


def make_card(name: str, title: str, unit: str, better: Better = "lower", section: str = "latency") -> Card:
    """A card with a formula and a source."""
    return Card(
        name=name,
        title=title,
        unit=unit,
        better=better,
        formula=f"how {title} follows",
        source="docs/metrics.md#time",
        section=section,
        kind="exact",
    )


def measured(name: str, value: float, spread: float = 0.03, n: int = 96, **labels: str) -> MetricValue:
    """A value with an interval of ``spread`` around it."""
    return MetricValue(
        name=name, value=value, n=n, ci_low=value * (1 - spread), ci_high=value * (1 + spread), labels=labels
    )


def make_row(card: Card, name: str, label: str, *values: MetricValue | None) -> Row:
    """A row of a table."""
    return Row(label=label, card=card, name=name, cells=tuple(Cell(value=value) for value in values))


USD_OUT = make_card("usd_per_1m_output_tokens", "Cost of output tokens", "USD / 1M tokens", section="cost")
USD_IN = make_card("usd_per_1m_input_tokens", "Cost of input tokens", "USD / 1M tokens", section="cost")
TOKENS = make_card("output_tokens_per_s", "Output rate", "tokens/s", "higher", "throughput")
TTFT = make_card("ttft_*_s", "Time to first token", "s")
ITL = make_card("itl_*_s", "Gap between tokens", "s")
LOAD = make_card("router_load_max_over_mean", "Busiest expert over mean", "ratio", section="routing")
DISTINCT = make_card("distinct_experts_per_step", "Distinct experts per step", "experts", "neither", "routing")
TOTAL = make_card("total_params", "Parameters", "params", "neither", "parameters")
ACTIVE = make_card("active_params", "Active parameters", "params", "neither", "parameters")
POWER = make_card("power_mean_w", "Mean power", "W", section="energy")
NO_NVML = "no NVIDIA GPU on this machine, so nothing reports power"


def first_screen() -> tuple[Row, ...]:
    """What everybody sees first."""
    itl_tail = missing("itl_p99_s", "p99 needs 662 independent steps, 412 were seen", window="total")
    return (
        make_row(
            USD_OUT, USD_OUT.name, "Output tokens", measured(USD_OUT.name, 0.4182), measured(USD_OUT.name, 0.6931)
        ),
        make_row(USD_IN, USD_IN.name, "Input tokens", measured(USD_IN.name, 0.0312), measured(USD_IN.name, 0.0274)),
        make_row(TOKENS, TOKENS.name, "Output rate", measured(TOKENS.name, 1084.0), measured(TOKENS.name, 702.5)),
        make_row(TTFT, "ttft_p50_s", "TTFT p50", measured("ttft_p50_s", 0.0231), measured("ttft_p50_s", 0.0418)),
        make_row(
            TTFT, "ttft_p90_s", "TTFT p90", measured("ttft_p90_s", 0.0612, 0.1), measured("ttft_p90_s", 0.1175, 0.1)
        ),
        make_row(ITL, "itl_p50_s", "ITL p50", measured("itl_p50_s", 0.0091), measured("itl_p50_s", 0.0142)),
        make_row(ITL, "itl_p99_s", "ITL p99", itl_tail, measured("itl_p99_s", 0.0312, 0.2, 702)),
        make_row(LOAD, LOAD.name, "Busiest expert / mean", _with_null(LOAD.name, 1.42, 1.08), None),
        make_row(
            ACTIVE, ACTIVE.name, "Active parameters", _exact(ACTIVE.name, 4_718_592), _exact(ACTIVE.name, 4_718_592)
        ),
        make_row(TOTAL, TOTAL.name, "Parameters", _exact(TOTAL.name, 9_273_344), _exact(TOTAL.name, 4_718_592)),
        make_row(POWER, POWER.name, "Power", missing(POWER.name, NO_NVML), missing(POWER.name, NO_NVML)),
    )


def _exact(name: str, value: int) -> MetricValue:
    return MetricValue(name=name, value=value, exact=True)


def _with_null(name: str, value: float, uniform: float) -> MetricValue:
    labels = {"phase": "decode", "layer": "all"}
    return MetricValue(
        name=name, value=value, n=96, ci_low=1.38, ci_high=1.47, null={"uniform": uniform}, labels=labels
    )


def cdf(name: str, median_s: float, n: int, seed: int) -> Series:
    """A latency distribution of n requests."""
    values = np.sort(np.random.default_rng(seed).lognormal(np.log(median_s), 0.5, n))
    return Series(name=name, x=tuple(values.tolist()), y=tuple((np.arange(1, n + 1) / n).tolist()), style="steps")


def cdf_chart(quantity: str, title: str, median_s: float, n: int) -> Chart:
    """Latency CDFs of both models."""
    return Chart(
        name=f"{quantity}-cdf",
        title=title,
        caption="Share of requests at or below a time, counted from the scheduled arrival. Left is better.",
        x_label=title,
        x_unit="s",
        y_label="Share of requests",
        y_unit="ratio",
        series=(cdf(MOE, median_s, n, 1), cdf(DENSE, median_s * 1.8, n, 2)),
    )


def step_time_chart(n: int = 3000) -> Chart:
    """Step time against distinct experts with a fit."""
    random = np.random.default_rng(3)
    experts = random.integers(18, 97, n).astype(float)
    times = 0.004 + 0.00006 * experts + random.gamma(2.0, 0.0004, n)
    ends = (18.0, 96.0)
    fit = tuple(0.0048 + 0.00006 * x for x in ends)
    return Chart(
        name="step-time",
        title="Decode step time against distinct experts",
        caption="One dot per decode step with 8 tokens; the line is the fit with its 95 % interval. Every expert "
        "more that a step touches costs 60 us (R2 0.71).",
        x_label="Distinct experts, summed over layers",
        x_unit="experts",
        y_label="Step time",
        y_unit="s",
        series=(
            Series(name=f"{MOE} steps", x=tuple(experts.tolist()), y=tuple(times.tolist()), style="points"),
            Series(name=f"{MOE} fit", x=ends, y=fit, style="dashed", band=tuple((y * 0.95, y * 1.05) for y in fit)),
        ),
    )


def timeline(name: str, title: str, unit: str, level: float, n: int = 240) -> Chart:
    """A quantity over the run."""
    random = np.random.default_rng(len(name))
    x = np.linspace(0, 60, n)
    series = tuple(
        Series(name=m, x=tuple(x.tolist()), y=tuple((level * s + level * 0.1 * random.standard_normal(n)).tolist()))
        for m, s in ((MOE, 1.0), (DENSE, 0.7))
    )
    caption = "Mean per second over the measured window."
    return Chart(
        name=name, title=title, caption=caption, x_label="Time", x_unit="s", y_label=title, y_unit=unit, series=series
    )


def heat_map(layers: int, experts: int, labels: tuple[str, ...], tokens: int = 400, skew: float = 0.25) -> HeatMap:
    """Loads of a learnt router: skewed, with a few experts that get nothing."""
    random = np.random.default_rng(layers * experts)
    variants = []
    for label in labels:
        counts = random.poisson(tokens * random.lognormal(0, skew, (layers, experts)))
        counts[random.random((layers, experts)) < 0.004] = 0
        means = np.maximum(counts.mean(axis=1, keepdims=True), 1e-9)
        variants.append(
            HeatMapVariant(
                label=label,
                loads=tuple(tuple(row) for row in (counts / means).tolist()),
                counts=tuple(tuple(row) for row in counts.tolist()),
                null_high=(1.0 + 3.0 / tokens**0.5,) * layers,
            )
        )
    return HeatMap(
        name=f"load-{layers}x{experts}",
        title=f"Expert load, {MOE}",
        caption="Every cell is one expert. Orange experts get more than their share and make the step wait.",
        layers=tuple(f"model.layers.{i}.mlp" for i in range(layers)),
        variants=tuple(variants),
    )


def memory_bars() -> StackedBars:
    """Memory by group, with a part unknown for one model."""
    mib = 2.0**20
    parts = (
        ("routed experts", (9.2 * mib, 0.0)),
        ("attention", (2.4 * mib, 2.4 * mib)),
        ("dense MLP", (0.0, 3.1 * mib)),
        ("embedding", (4.0 * mib, 4.0 * mib)),
        ("KV cache, peak", (6.5 * mib, 6.5 * mib)),
        ("activations, peak", (1.2 * mib, None)),
    )
    caption = "Weights by group, the KV pages in use at the peak, and the largest activations."
    return StackedBars(
        name="memory", title="Memory by group", caption=caption, bars=(MOE, DENSE), parts=parts, unit="bytes"
    )


def cost_bars() -> StackedBars:
    """Cost by phase."""
    parts = (("prefill", (0.00031, 0.00027)), ("decode", (0.00418, 0.00693)), ("idle", (0.0, 0.0)))
    caption = "The bill of the capacity pass, split so that input and output add up to it exactly."
    return StackedBars(name="cost", title="Cost by phase", caption=caption, bars=(MOE, DENSE), parts=parts, unit="USD")


def every_metric() -> Table:
    """A long table, folded in the page."""
    rows = [
        make_row(card, name, f"{card.title}, {stat}, {window}", measured(name, v), measured(name, v * 1.6))
        for card, base in ((TTFT, 0.02), (ITL, 0.009))
        for i, stat in enumerate(("mean", "p50", "p90", "p95", "p99"))
        for window in ("total", "steady")
        for name, v in ((card.name.replace("*", stat), base * (1 + i)),)
    ]
    invalid = MetricValue(name=POWER.name, value=31.0, valid=False, reasons=("counter and samples differ by 12 %",))
    rows.append(make_row(POWER, POWER.name, "Mean power", invalid, missing(POWER.name, NO_NVML)))
    rows.append(make_row(DISTINCT, DISTINCT.name, "Distinct experts", _with_null(DISTINCT.name, 9.4, 10.1), None))
    return Table(title="Every metric", columns=(MOE, DENSE), rows=tuple(rows))


def sample_document() -> Document:
    """Two models, everything measured but the power."""
    sections = (
        Section(
            name="latency",
            title="Latency",
            blocks=(
                cdf_chart("ttft", "Time to first token", 0.023, 96),
                cdf_chart("itl", "Gap between tokens", 0.009, 5000),
                Paragraph(text="Percentiles are numpy linear; those with too few samples are left out."),
            ),
        ),
        Section(
            name="routing",
            title="Routing",
            blocks=(heat_map(6, 16, ("all", "prefill", "decode", "code", "prose")), step_time_chart()),
        ),
        Section(name="memory", title="Memory and cost", blocks=(memory_bars(), cost_bars())),
        Section(
            name="timeline",
            title="Over time",
            blocks=(
                timeline("rate", "Output rate", "tokens/s", 1080),
                timeline("batch", "Requests in a step", "requests", 8),
                timeline("power", "Power", "W", 41),
            ),
        ),
        Section(name="metrics", title="Every metric", blocks=(every_metric(),)),
        Section(
            name="workload",
            title="Workload",
            blocks=(
                facts(
                    "Traffic",
                    (
                        ("requests", "96"),
                        ("arrivals", "Poisson, 4 requests/s"),
                        ("prompts", "real text, 16 to 512 tokens"),
                        ("schedule", "sha256 91f0c2aa"),
                    ),
                ),
            ),
        ),
        Section(
            name="machine",
            title="Machine",
            blocks=(
                facts(
                    "Where this ran",
                    (
                        ("processor", "2 cores, AVX2"),
                        ("memory", "8 GiB"),
                        ("torch", "2.13.0, 1 thread"),
                        ("measured bandwidth", "14.2 GiB/s"),
                    ),
                ),
            ),
        ),
    )
    doubts = (
        Doubt(
            code="no_power",
            flag="energy",
            severity="note",
            model=None,
            text="No power meter on this machine; energy is not part of the cost.",
        ),
        Doubt(
            code="few_samples",
            flag="latency",
            severity="warning",
            model=MOE,
            text="Only 412 independent steps; percentiles above p95 of ITL are left out. Send more requests.",
        ),
        Doubt(
            code="other_process",
            flag="isolation",
            severity="error",
            model=DENSE,
            text="Another process used 61 % of a core during round 2; that round is slower than the others by 9 %.",
        ),
    )
    return Document(
        title="chat-on-one-card",
        run="20261121-214500-chat-on-one-card",
        status="done",
        started_at="2026-11-21T21:45:00Z",
        headline=f"{MOE} makes a million output tokens for $0.418, {DENSE} for $0.693: 40 % less for the same tokens.",
        subtitle="2 cores at $0.085 an hour. 96 requests of real text, offline capacity pass, 3 rounds, 1 launch.",
        banners=(
            "Routing of moe-16x2 is the model's own; the text is the one it was trained on, so its loads flatter it.",
        ),
        models=(
            ModelColumn(
                name=MOE,
                status="done",
                subtitle="9.27 M parameters, 4.72 M active; 6 layers of 16 experts, top-2; bf16",
            ),
            ModelColumn(name=DENSE, status="done", subtitle="4.72 M parameters, all active; bf16"),
        ),
        first_screen=first_screen(),
        sections=sections,
        doubts=doubts,
        workload_text="name: chat-on-one-card\ntraffic:\n  arrivals: {pattern: poisson, rate: 4.0}\n",
        notes=("Token counts come from engine ids; first tokens are made in prefill.",),
    )


def awkward_document() -> Document:
    """No model done, nothing measured, hostile names, a large heat map, charts without points."""
    rows = tuple(
        make_row(
            card,
            card.name,
            f"{card.title} {MARKUP}",
            missing(card.name, f"interrupted before {SCRIPT}"),
            None,
            missing(card.name, "never started"),
        )
        for card in (USD_OUT, USD_IN, TOKENS, LOAD)
    )
    empty = Chart(
        name=SCRIPT,
        title=MARKUP,
        caption="",
        x_label=SCRIPT,
        x_unit="s",
        y_label=MARKUP,
        y_unit="",
        series=(Series(name=SCRIPT, x=(), y=()),),
    )
    odd = Chart(
        name="odd",
        title="One point, and values at 0 on a logarithmic axis",
        caption=SCRIPT,
        x_label="x",
        x_unit="bytes",
        y_label="y",
        y_unit="USD / 1M tokens",
        log_x=True,
        series=(
            Series(name=SCRIPT, x=(0.0, 4096.0, 2.0**34), y=(1.0, 3e-7, 5e-7)),
            Series(name=MARKUP, x=(1e6,), y=(2e-7,), style="points"),
        ),
    )
    bars = StackedBars(
        name="none",
        title="Nothing known",
        caption="",
        bars=(SCRIPT, MARKUP),
        parts=((SCRIPT, (None, None)),),
        unit="bytes",
    )
    cuts = ("all", "prefill", "decode", SCRIPT, "prose")
    evil = Card(
        name="x", title=SCRIPT, unit="s", better="neither", formula=MARKUP, source=SCRIPT, section=SCRIPT, kind="exact"
    )
    hostile = make_row(evil, evil.name, SCRIPT, None, None, None)
    return Document(
        title=SCRIPT,
        run="20261121-214500-awkward",
        status="interrupted",
        started_at="2026-11-21T21:45:00Z",
        headline=f"Cannot tell: no model finished. {MARKUP}",
        subtitle=SCRIPT,
        banners=("The run was interrupted; what was measured is kept.", MARKUP),
        models=(
            ModelColumn(name=SCRIPT, status="interrupted", subtitle=MARKUP),
            ModelColumn(name=MARKUP, status="failed", subtitle="", error=f"out of memory {SCRIPT}"),
            ModelColumn(
                name="a-model-with-a-very-long-name-that-nobody-would-want-to-read-in-a-table-Q4_K_M",
                status="started",
                subtitle="not loaded",
            ),
        ),
        first_screen=rows,
        sections=(
            Section(name="routing", title=MARKUP, blocks=(heat_map(48, 128, cuts, skew=0.6), Paragraph(text=SCRIPT))),
            Section(
                name="odd",
                title="Odd charts",
                blocks=(
                    empty,
                    odd,
                    bars,
                    Table(title=SCRIPT, columns=(SCRIPT, MARKUP, "c"), rows=(*rows, hostile)),
                    facts(MARKUP, [(SCRIPT, MARKUP)]),
                ),
            ),
            Section(
                name="nothing",
                title="No routing",
                blocks=(HeatMap(name="h", title="No cells", caption="", layers=(), variants=()),),
            ),
        ),
        doubts=(
            Doubt(code="interrupted", flag="schedule", severity="error", model=SCRIPT, text=f"Interrupted. {MARKUP}"),
        ),
        workload_text=f"name: {SCRIPT}\n# {MARKUP}\n",
    )


def facts_in(table: Table) -> dict[str, str | None]:
    """A table of facts as a dictionary."""
    return {row.label: row.cells[0].text for row in table.rows}
