"""Documents that compare, for the tests of every renderer. Figures are invented. Same call, same Document."""

from __future__ import annotations

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.report.document import (
    Cell,
    Document,
    ModelColumn,
    Paragraph,
    Row,
    Section,
    Table,
    Waterfall,
    WaterfallStep,
)
from moeprof.analysis.report.tables import compared
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Card, MetricValue, missing
from tests.helpers.documents import (
    ACTIVE,
    ITL,
    LOAD,
    MARKUP,
    NO_NVML,
    POWER,
    SCRIPT,
    TOKENS,
    TOTAL,
    TTFT,
    USD_OUT,
    measured,
)

MOE, TOTAL_TWIN, ACTIVE_TWIN = "moe-16x2", "dense-total", "dense-active"
NO_CORES = "needs 6 launches a side, 3 were run"


def ratio(value: float, spread: float, verdict: str, reason: str | None = None) -> Ratio:
    """A ratio with an interval of ``spread`` on either side."""
    return Ratio(value=value, low=value - spread, high=value + spread, verdict=verdict, reason=reason)


def ratio_row(card: Card, name: str, label: str, values: tuple[MetricValue | None, ...], *ratios: Ratio | None) -> Row:
    """A row whose first column is the reference."""
    cells = tuple(Cell(value=v, ratio=r) for v, r in zip(values, (None, *ratios), strict=True))
    return Row(label=label, card=card, name=name, cells=cells)


def headline_table() -> Table:
    """Two models against a dense twin, with every verdict there is."""
    itl = "itl_p99_s"
    power = tuple(missing(POWER.name, NO_NVML) for _ in range(3))
    exact = [MetricValue(name=TOTAL.name, value=v, exact=True) for v in (9_273_344, 9_281_000, 4_718_592)]
    active = [MetricValue(name=ACTIVE.name, value=v, exact=True) for v in (9_273_344, 4_718_592, 4_718_592)]
    rows = (
        ratio_row(
            USD_OUT,
            USD_OUT.name,
            "Output tokens",
            tuple(measured(USD_OUT.name, v) for v in (0.6931, 0.4182, 0.2201)),
            ratio(0.603, 0.031, "better"),
            ratio(0.318, 0.02, "better"),
        ),
        ratio_row(
            TOKENS,
            TOKENS.name,
            "Output rate",
            tuple(measured(TOKENS.name, v) for v in (702.5, 1084.0, 1820.0)),
            ratio(1.543, 0.06, "better"),
            ratio(2.59, 0.1, "better"),
        ),
        ratio_row(
            TTFT,
            "ttft_p50_s",
            "TTFT p50",
            tuple(measured("ttft_p50_s", v) for v in (0.0418, 0.0523, 0.0417)),
            ratio(1.251, 0.08, "worse"),
            ratio(0.998, 0.012, "no difference shown"),
        ),
        ratio_row(
            ITL,
            itl,
            "ITL p99",
            (measured(itl, 0.0312), measured(itl, 0.0298), missing(itl, "p99 needs 662 independent steps, 412 seen")),
            ratio(0.955, 0.2, "cannot tell", NO_CORES),
            Ratio(value=None, verdict="cannot tell", reason="dense-active has no p99"),
        ),
        ratio_row(
            LOAD,
            LOAD.name,
            "Busiest expert / mean",
            (None, measured(LOAD.name, 1.42), None),
            Ratio(value=None, verdict="incomparable", reason="a dense model has no experts"),
            None,
        ),
        ratio_row(TOTAL, TOTAL.name, "Parameters", tuple(exact), Ratio(value=1.0008), Ratio(value=0.5088)),
        ratio_row(ACTIVE, ACTIVE.name, "Active parameters", tuple(active), Ratio(value=0.5088), Ratio(value=0.5088)),
        ratio_row(POWER, POWER.name, "Power", power, None, None),
    )
    return compared("The answer", (TOTAL_TWIN, MOE, ACTIVE_TWIN), rows)


def folded_table() -> Table:
    """A long one that stands closed."""
    rows = tuple(
        ratio_row(
            card,
            name,
            f"{card.title}, {stat}",
            tuple(measured(name, base * (1 + i) * s) for s in (1.0, 0.9, 0.5)),
            ratio(0.9, 0.05, "better"),
            ratio(0.5, 0.05, "better"),
        )
        for card, base in ((TTFT, 0.02), (ITL, 0.009))
        for i, stat in enumerate(("mean", "p50", "p90", "p95", "p99"))
        for name in (card.name.replace("*", stat),)
    )
    return compared("Every metric", (TOTAL_TWIN, MOE, ACTIVE_TWIN), rows, folded=True)


def ladder() -> Waterfall:
    """24 ms to 79 ms: one change is not distinguishable from 0, one saves."""
    steps = (
        step("dense, active-matched", "level", 0.024, 0.0005, text="The same network with only the active width."),
        step("dispatch", "change", 0.006, 0.0008, text="What the router and sending tokens to experts cost."),
        step("MoE, all tokens to the same experts", "level", 0.030, 0.0006),
        step("expert coverage", "change", 0.021, 0.0015, text="What reading more distinct experts costs."),
        step("MoE, balanced over the recorded number of distinct experts", "level", 0.051, 0.0014),
        step("imbalance", "change", -0.0004, 0.0009, told=False, text="What uneven load costs."),
        step("MoE as recorded", "level", 0.0506, 0.0012),
        step("not realised", "change", 0.0284, 0.002, text="What a dense model of all parameters would add."),
        step("dense, total-matched", "level", 0.079, 0.001),
    )
    return Waterfall(
        name="ladder-decode-8",
        title="Seconds per decode step, 8 requests",
        caption="Each rung changes one thing. Whiskers are 95 % intervals over launches.",
        unit="s",
        steps=steps,
    )


def step(label: str, kind: str, value: float, spread: float, *, told: bool = True, text: str = "") -> WaterfallStep:
    """A step with an interval of ``spread`` on either side."""
    return WaterfallStep(
        label=label,
        kind=kind,  # type: ignore[arg-type]
        value=value,
        low=value - spread,
        high=value + spread,
        told=told,
        text=text,
    )


def compare_sample() -> Document:
    """The MoE between its two dense twins."""
    sections = (
        Section(name="answer", title="The answer", blocks=(headline_table(),)),
        Section(
            name="ladder",
            title="The sparsity ladder",
            blocks=(Paragraph(text="Where the seconds of a step go, one change at a time."), ladder()),
        ),
        Section(name="metrics", title="Every metric", blocks=(folded_table(),)),
    )
    return Document(
        title="dense-vs-sparse",
        run="20261122-031500-dense-vs-sparse",
        status="done",
        started_at="2026-11-22T03:15:00Z",
        headline="On this traffic moe-16x2 costs 0.603x [0.572, 0.634] of dense-total and 1.9x [1.8, 2] of "
        "dense-active: of the saving between the two dense twins, 57 % is realised (all steps, 8 in flight); it costs "
        "as much as a dense model of 4.1 M parameters.",
        subtitle="2 cores at $0.085 an hour. 96 requests of real text, lock-step, 6 launches.",
        banners=("Weights are random: routing is close to uniform, and no quality is compared.",),
        models=(
            ModelColumn(name=TOTAL_TWIN, status="done", subtitle="9.27 M parameters, all active; bf16"),
            ModelColumn(name=MOE, status="done", subtitle="9.28 M parameters, 4.72 M active; 16 experts, top-2; bf16"),
            ModelColumn(name=ACTIVE_TWIN, status="done", subtitle="4.72 M parameters, all active; bf16"),
        ),
        first_screen=(),
        sections=sections,
        doubts=(
            Doubt(
                code="few_launches",
                flag="latency",
                severity="warning",
                model=None,
                text="3 launches; verdicts on time need 6. Run again with --launches 6.",
            ),
        ),
        notes=("Against dense-total: better in 2 of 8 metrics, worse in 1, cannot tell in 1.",),
    )


def compare_awkward() -> Document:
    """Hostile names, nothing measured, a waterfall without steps and one of zeros."""
    row = Row(
        label=f"Row {MARKUP}",
        card=USD_OUT,
        name=USD_OUT.name,
        cells=(
            Cell(
                value=missing(USD_OUT.name, f"interrupted before {SCRIPT}"),
                ratio=Ratio(value=None, verdict=SCRIPT, reason=MARKUP),
            ),
            Cell(),
            Cell(
                value=measured(USD_OUT.name, 3e-7),
                ratio=Ratio(value=12345.6, low=0.00012, high=99999.0, verdict="worse", reason=SCRIPT),
            ),
        ),
    )
    names = (SCRIPT, MARKUP, "a-model-with-a-very-long-name-that-nobody-would-want-to-read-in-a-table-Q4_K_M")
    zero = WaterfallStep(label=MARKUP, kind="level", value=0.0, text=SCRIPT)
    change = WaterfallStep(label=SCRIPT, kind="change", value=0.0, told=False, text=MARKUP)
    blocks = (
        compared(MARKUP, names, [row], reference=1),
        compared(SCRIPT, names, [], reference=2, folded=True),
        Waterfall(name=SCRIPT, title=MARKUP, caption=SCRIPT, unit="USD / 1M tokens", steps=(zero, change)),
        Waterfall(name="empty", title="No steps", caption="", unit="s", steps=()),
    )
    return Document(
        title=SCRIPT,
        run="20261122-031500-awkward",
        status="interrupted",
        started_at="2026-11-22T03:15:00Z",
        headline=f"Cannot tell. {MARKUP}",
        subtitle=SCRIPT,
        banners=(MARKUP,),
        models=(ModelColumn(name=SCRIPT, status="failed", subtitle=MARKUP, error=f"out of memory {SCRIPT}"),),
        first_screen=(),
        sections=(Section(name="odd", title=MARKUP, blocks=blocks),),
        doubts=(),
    )
