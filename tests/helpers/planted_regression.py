"""One planted check for regressions, for the page and for every file that other tools read. Figures are invented.

Every verdict, every kind of gate, a model whose name is awkward in XML, Markdown, HTML and workflow commands, and a
router that lost an expert. Same call, same Regression. ``python -m tests.helpers.planted_regression`` writes the golden
files in tests/golden/regress/ again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path

import numpy as np

from moeprof.analysis.compare.comparable import MEASURED, NOTHING, Difference
from moeprof.analysis.compare.runs import MetricComparison
from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.regress.result import GateClass, GateResult, Noise, Regression
from moeprof.analysis.regress.routing.change import LayerChange, RoutingChange
from moeprof.analysis.report.regress import check_of
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import Better, MetricValue
from moeprof.core.workload.gates import Gate
from moeprof.render import parse_formats, write, written

GOLDEN = Path(__file__).parents[1] / "golden" / "regress"
MODEL, ODD = "moe-demo", "odd <m&'e'>, \"50%\": ä|x"
PAIRS = "6 pairs"
PAIR_RATIOS = (1.09, 1.11, 1.10, 1.08, 1.12, 1.10)


def planted(*, allow_undecided: bool = False) -> Regression:
    """A regression in lock-step pairs: five gates are worse, two cannot tell, two better, four show no difference."""
    found = gates()
    return Regression(
        verdict="worse",
        mode="pairs",
        reference="main@1a2b3c4",
        other="pull-17@5d6e7f8",
        reference_at="2026-11-22T03:15:00+00:00",
        other_at="2026-11-22T04:30:05+00:00",
        workload="ci-smoke",
        device="1 x NVIDIA H200",
        gates=found,
        changes=changes(found),
        routing=(collapsed(),),
        differences=(
            Difference(name="versions", first="torch 2.12.0", second="torch 2.13.0", forbids=NOTHING),
            Difference(name="revision", first="1a2b3c4", second="5d6e7f8", forbids=MEASURED, model=MODEL),
        ),
        allow=frozenset({"revision"}),
        noise=Noise(drift_ratio=1.02, shift=None, text="The reference kernel stayed within 2 % of itself."),
        doubts=(
            Doubt(
                code="other_processes",
                flag="isolation",
                severity="warning",
                model=None,
                text="Another process used 31 % of the device's time. Stop it and run again.",
            ),
        ),
        allow_undecided=allow_undecided,
        notes=("dense-active is only in the new run.",),
        launches={MODEL: 6, ODD: 6},
    )


def undecided(*, allow_undecided: bool) -> Regression:
    """Only a gate that cannot tell, and one without a difference."""
    whole = planted(allow_undecided=allow_undecided)
    few = tuple(gate for gate in whole.gates if gate.key[0] in ("step_mean_s", "total_params"))
    left = tuple(gate for gate in few if gate.verdict in ("cannot tell", "no difference shown"))
    return Regression(
        verdict="cannot tell",
        mode="pairs",
        reference=whole.reference,
        other=whole.other,
        reference_at=whole.reference_at,
        other_at=whole.other_at,
        workload=whole.workload,
        device=whole.device,
        gates=left,
        allow_undecided=allow_undecided,
    )


def gates() -> tuple[GateResult, ...]:
    """Most important first."""
    return (
        gate("dead_experts:0", "routing", "absolute", both=(0, 1), n="2,048 tokens", phase="decode",
             ratio=Ratio(value=None, verdict="worse", reason="1 expert more has no token, 0 more are allowed")),
        gate("step_mean_s{phase=decode}:1.5%", "timed", amount=0.015, n=PAIRS, phase="decode",
             ratio=told(1.10, 1.07, 1.13, "worse", "ratio 1.100 over 6 launch pairs, p = 0.00031")),
        gate("weights_bytes:0%", "exact", both=(200_000, 210_000), model=ODD, n="exact",
             ratio=told(1.05, None, None, "worse", "counted: 5 % more")),
        gate("itl_p99_s<=0.05", "bound", "at_most", both=(None, 0.0625), amount=0.05, n="exact",
             ratio=Ratio(value=None, verdict="worse", reason="0.0625 s, at most 0.05 s are allowed")),
        gate("usd_per_1m_output_tokens:3%", "timed", amount=0.03, both=(0.5, 0.55), n="6 against 6 launches",
             model=ODD, ratio=told(1.10, 1.04, 1.16, "worse", "line one\nline two, 100 % sure: no")),
        gate("step_mean_s{phase=prefill}:1.5%", "timed", amount=0.015, n=PAIRS, phase="prefill",
             ratio=told(1.01, 0.97, 1.05, "cannot tell", "ratio 1.010, not told from 1 (p = 0.2)"),
             decide="about 14 launch pairs (6 were measured)"),
        gate("energy_j_per_output_token:1.5%", "timed", amount=0.015, n="not measured", model=ODD,
             ratio=Ratio(value=None, verdict="cannot tell", reason="no energy counter on this device")),
        gate("router_load_max_over_mean{phase=decode}:+0.2", "routing", "absolute", both=(1.75, 1.5), amount=0.2,
             n="2,048 tokens", phase="decode", model=ODD,
             ratio=told(0.857, None, None, "better", "0.25 less")),
        gate("energy_j_per_output_token:1.5%", "timed", amount=0.015, n=PAIRS,
             ratio=told(0.90, 0.88, 0.92, "better", "ratio 0.900 over 6 launch pairs, p = 0.00017")),
        gate("output_tokens_per_s:3%", "timed", amount=0.03, both=(1000.0, 1005.0), better="higher",
             n="6 against 6 launches",
             ratio=told(1.005, 0.995, 1.015, "no difference shown", "the interval lies within 3.0%")),
        gate("routing_agreement_ratio:-1%", "routing", amount=0.01, both=(1.0, 0.995), better="higher",
             n="2,048 tokens",
             ratio=told(0.995, None, None, "no difference shown", "0.5 % less, 1 % is allowed")),
        gate("bits_per_byte:1%", "quality", amount=0.01, both=(1.6, 1.6), n="2,048 tokens",
             ratio=told(1.0, None, None, "no difference shown", "equal")),
        gate("total_params:0%", "exact", both=(4_000_000, 4_000_000), better="neither", n="exact",
             ratio=told(1.0, None, None, "no difference shown", "equal")),
    )  # fmt: skip


def gate(
    text: str,
    kind: GateClass,
    rule: str = "ratio",
    *,
    ratio: Ratio,
    n: str,
    both: tuple[float | None, float | None] | None = None,
    amount: float = 0.0,
    better: Better = "lower",
    model: str = MODEL,
    decide: str | None = None,
    **labels: str,
) -> GateResult:
    """A gate; ``both`` are the two sides' values, none for a lock-step ratio."""
    name = text.partition("{")[0].partition(":")[0].partition("<")[0]
    reference, other = both or (None, None)
    source = "workloads/ci-smoke.yaml:14" if kind == "bound" else "--fail-on" if model == ODD else "default"
    return GateResult(
        gate=Gate(
            text=text,
            metric=name,
            labels=tuple(labels.items()),
            kind=rule,  # type: ignore[arg-type]
            amount=amount,
            sign="+-" if better == "neither" else None,
            source=source,
        ),
        kind=kind,
        model=model,
        card=card_for(name),
        key=(name, tuple(sorted(labels.items()))),
        better=better,
        reference=side(name, reference, kind, labels),
        other=side(name, other, kind, labels),
        ratio=ratio,
        n=n,
        decide=decide,
        other_launches=PAIR_RATIOS if n == PAIRS and ratio.value == 1.10 else (),
    )


def side(name: str, value: float | None, kind: GateClass, labels: dict[str, str]) -> MetricValue | None:
    """One side's value: exact kinds without, timed kinds with an interval of 1 % on either side."""
    if value is None:
        return None
    if kind in ("timed", "bound"):
        return MetricValue(name=name, value=value, n=96, ci_low=value * 0.99, ci_high=value * 1.01, labels=labels)
    return MetricValue(name=name, value=value, exact=True, labels=labels)


def changes(found: tuple[GateResult, ...]) -> tuple[MetricComparison, ...]:
    """The gates once more, one figure that changed beside them, and one that one side has not."""
    own = tuple(
        MetricComparison(
            model=gate.model,
            key=gate.key,
            reference=gate.reference,
            other=gate.other,
            ratio=gate.ratio,
            is_gate=True,
        )
        for gate in found
    )
    more = MetricComparison(
        model=MODEL,
        key=("kv_bytes_per_token", ()),
        reference=side("kv_bytes_per_token", 4096, "exact", {}),
        other=side("kv_bytes_per_token", 5120, "exact", {}),
        ratio=told(1.25, None, None, "worse", "counted: 25 % more"),
    )
    gone = MetricComparison(
        model=MODEL,
        key=("ttft_p50_s", (("traffic", "closed"),)),
        reference=side("ttft_p50_s", 0.04, "timed", {"traffic": "closed"}),
        other=None,
        ratio=Ratio(value=None, verdict="cannot tell", reason="the new run has no ttft_p50_s"),
    )
    return (*own, more, gone)


def told(value: float, low: float | None, high: float | None, verdict: str, reason: str) -> Ratio:
    """A ratio with its verdict."""
    return Ratio(value=value, low=low, high=high, verdict=verdict, reason=reason)


# -- routing -----------------------------------------------------------------------------------------------------------


def collapsed() -> RoutingChange:
    """Two layers of four experts; in the second one expert died and its tokens went to the others."""
    layers = (
        layer("model.layers.0.mlp", (0.25, 0.25, 0.25, 0.25), (0.24, 0.26, 0.25, 0.25), agreement=0.99),
        layer("model.layers.1.mlp", (0.4, 0.3, 0.2, 0.1), (0.0, 0.5, 0.3, 0.2), agreement=0.6, dead=(0,)),
    )
    drift = sum(each.drift_js for each in layers) / len(layers)
    return RoutingChange(
        model=MODEL,
        tokens=2048,
        same_tokens=True,
        exact=False,
        layers=layers,
        metrics=(
            MetricValue(name="routing_agreement_ratio", value=0.795, exact=True),
            MetricValue(name="router_drift_js", value=drift, exact=True),
            MetricValue(name="dead_experts", value=1, exact=True, labels={"phase": "decode"}),
        ),
        sentences=(
            "Expert 0 of model.layers.1.mlp had 40 % of the tokens and has none now.",
            "79.5 % of the picks are the same; drift is 0.24 at most, 0.01 would be chance.",
        ),
        verdict="collapsed",
    )


def layer(
    name: str,
    before: tuple[float, ...],
    after: tuple[float, ...],
    *,
    agreement: float,
    dead: tuple[int, ...] = (),
) -> LayerChange:
    """What the shares of the experts say."""
    p, q = np.asarray(before), np.asarray(after)
    middle = (p + q) / 2
    moved = sorted(range(len(p)), key=lambda e: (-abs(after[e] - before[e]), e))[:2]
    return LayerChange(
        name=name,
        agreement_ratio=agreement,
        drift_js=round(float(entropy(middle) - (entropy(p) + entropy(q)) / 2), 6),
        drift_null=0.01,
        max_over_mean=(round(4 * max(before), 6), round(4 * max(after), 6)),
        entropy_ratio=(round(entropy(p) / 2, 6), round(entropy(q) / 2, 6)),
        dead=(0, len(dead)),
        newly_dead=dead,
        chance_dead=1e-9 if dead else None,
        nearly_dead=(0, len(dead)),
        moved=tuple((expert, before[expert], after[expert]) for expert in moved),
        load=(before, after),
        newly_nearly_dead=dead,
        drift_null_mean=0.004,
        is_beyond_null=bool(dead),
        collapse=("dead",) if dead else (),
        specialisation=(0.3, 0.2) if dead else None,
        specialisation_null=0.05 if dead else None,
        margin_p05=(0.02, 0.01),
        margin_p50=(0.2, 0.15),
    )


def entropy(shares: np.ndarray) -> float:
    """In bits; an expert without tokens adds nothing."""
    some = shares[shares > 0]
    return float(-(some * np.log2(some)).sum())


CI_FORMATS = tuple(name for name in written("regress") if name not in ("md", "html", "comment"))


def write_files(regression: Regression, folder: Path, formats: Sequence[str]) -> list[Path]:
    """The check's files of these formats."""
    return write(check_of(regression), folder, parse_formats(",".join(formats), "regress"))


def write_golden() -> None:
    """Every form of the planted check, as the code makes it now."""
    with chdir(GOLDEN):  # no folder `workloads` there
        for path in write_files(planted(), GOLDEN, CI_FORMATS):
            print(path.name)


if __name__ == "__main__":
    write_golden()
