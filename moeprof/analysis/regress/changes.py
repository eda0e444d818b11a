"""Every figure of both runs beside the gates: what changed, though nobody watches it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from moeprof.analysis.cards import card_for
from moeprof.analysis.compare.comparable import Difference
from moeprof.analysis.compare.keys import Key
from moeprof.analysis.compare.runs import MetricComparison, compare_metrics
from moeprof.analysis.document_compare import Ratio
from moeprof.analysis.regress.exact import depends_on_batches
from moeprof.analysis.regress.gates import ModelPair
from moeprof.analysis.regress.result import Change, GateResult
from moeprof.core.baseline import Baseline, BaselineModel


def all_changes(
    pairs: Iterable[ModelPair],
    results: Sequence[GateResult],
    found: Sequence[Difference],
    allow: Collection[str],
    *,
    is_same: bool,
) -> tuple[Change, ...]:
    """Every figure of every model, in the order of the reference; a gate's figure has the gate's verdict.

    Args:
        pairs: models of both sides.
        results: the gates, judged.
        found: facts that differ.
        allow: names of facts that may.
        is_same: both sides are one and the same run.
    """
    changes: list[Change] = []
    for reference, other in pairs:
        gates = {r.key: r for r in results if r.model == other.name and r.kind != "bound"}
        timed = {key for key, result in gates.items() if result.kind == "timed"}
        compared = compare_metrics(
            other.name, (reference.metrics, other.metrics), found, allow, gates=timed, is_same=is_same
        )
        changes += [_change(other.name, one, gates.get(one.key)) for one in compared]
        known = {one.key for one in compared}
        changes += [_gate(result) for key, result in gates.items() if key not in known]
    return tuple(changes)


def is_same_run(reference: Baseline, other: Baseline) -> bool:
    """One and the same run, saved or not: the same name, beginning and figures."""
    if (reference.run, reference.created_at) != (other.run, other.created_at):
        return False
    values = [_numbers(side) for side in (reference, other)]
    return values[0] == values[1]


def _numbers(side: Baseline) -> dict[tuple[str, Key], float | int | None]:
    return {
        (str(place), (value.name, tuple(sorted(value.labels.items())))): value.value
        for place, model in enumerate(side.models)
        for value in model.metrics
    }


def num_launches(model: BaselineModel) -> int:
    """Launches of a model: those that its values name, or one."""
    return max(len({value.labels["launch"] for value in model.metrics if "launch" in value.labels}), 1)


def _change(model: str, one: MetricComparison, gate: GateResult | None) -> Change:
    return Change(
        model=model,
        card=card_for(one.name),
        key=one.key,
        reference=one.reference,
        other=one.other,
        ratio=_of_batches(one) if gate is None else gate.ratio,
        is_gate=gate is not None,
    )


def _of_batches(one: MetricComparison) -> Ratio:
    """Two samples of what depends on which requests met: without an interval, a difference is not shown."""
    if one.ratio.low is None and one.ratio.verdict in ("better", "worse") and depends_on_batches(one.key):
        return replace(one.ratio, verdict="cannot tell", reason="depends on which requests met in a step")
    return one.ratio


def _gate(result: GateResult) -> Change:
    """A gate on no value of the runs: a ratio of launch pairs, a figure of the comparison of routing."""
    return Change(
        model=result.model,
        card=result.card,
        key=result.key,
        reference=result.reference,
        other=result.other,
        ratio=result.ratio,
        is_gate=True,
    )
