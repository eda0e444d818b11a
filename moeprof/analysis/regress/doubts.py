"""Reasons to distrust a check, as every report ends with them: what was seen, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.doubt import Doubt, Severity
from moeprof.analysis.regress.gates import ModelPair
from moeprof.analysis.regress.result import GateResult, Mode, Noise
from moeprof.analysis.regress.routing.change import RoutingChange
from moeprof.core.baseline.baseline import Baseline

REMEMBERED = 0.5  # lag-1 correlation of launch pairs from which on they are not taken as independent
DRIFTED = 1.15  # slowest over fastest timing of the reference kernel; a quiet machine stays well below


def doubts_of(
    reference: Baseline,
    other: Baseline,
    models: Sequence[ModelPair],
    routing: Sequence[RoutingChange],
    noise: Noise | None,
    mode: Mode,
    *,
    timed: Sequence[GateResult],
    is_same: bool,
) -> tuple[Doubt, ...]:
    """Errors first, then warnings, then what should be known. ``noise``: None where no gate is timed."""
    found = [
        _doubt("run_not_done", "schedule", "error", f"{side.name} is not a whole run: its status is {side.status}. "
               "Gates speak for what it measured.")
        for side in (reference, other) if side.status != "done"
    ]  # fmt: skip
    if is_same:
        text = f"Both sides are the same run ({other.run}): nothing can differ."
        found.append(_doubt("same_run", "schedule", "warning", text))
    found += [*_machine(noise, mode), *_memory(timed)]
    for _, model in models:
        if str(model.facts.get("model", "")).endswith("random"):
            text = "its weights are random: routing is near to uniform, and quality means nothing."
            found.append(_doubt("random_weights", "realism", "note", text, model.name))
    found += _tokens(routing)
    if mode != "stored":
        found.append(_doubt("lone_runs", "isolation", "note", _ONE_MACHINE))
    elif not is_same and any(gate.ratio.low is not None for gate in timed):
        found.append(_doubt("two_sittings", "isolation", "note", _TWO_SITTINGS))
    return tuple(found)


_ONE_MACHINE = (
    "launch pairs speak for this machine, this workload and the time at which they were measured; figures other than "
    "step times come from a single launch a side."
)
_TWO_SITTINGS = (
    "the two runs were measured at different times: p-values look at how launches of one run differ, and not at what "
    "else the machine did in between, for which the floor of 10 % stands. regress --ab measures both sides in turn."
)


def _memory(timed: Sequence[GateResult]) -> list[Doubt]:
    """Launch pairs that resemble their neighbours are fewer independent ones than they look."""
    return [
        _doubt(
            "pairs_correlated",
            "isolation",
            "warning",
            f"{gate.label}: the ratios of neighbouring launch pairs resemble each other (lag-1 correlation "
            f"{gate.lag_1_correlation:.2f} over {gate.n}), so p and interval promise too much: a false worse is then "
            "several times as likely as 1 %. Measure 20 pairs or more (--launches 20): six without any memory look so "
            "in one check of 20.",
            gate.model,
        )
        for gate in timed
        if gate.lag_1_correlation is not None and gate.lag_1_correlation > REMEMBERED
    ]


def _machine(noise: Noise | None, mode: Mode) -> list[Doubt]:
    if noise is None or noise.drift_ratio is None or noise.drift_ratio < DRIFTED:
        return []
    cure = (
        "both sides were hit alike, but intervals are wider: more pairs help (--until-precise)"
        if mode == "pairs"
        else "use regress --ab on a machine like this"
    )
    slowest = f"the reference kernel took up to {noise.drift_ratio:.2f} times its fastest"
    text = f"the machine was not steady: {slowest}; {cure}."
    return [_doubt("machine_drifted", "isolation", "warning", text)]


def _tokens(routing: Sequence[RoutingChange]) -> list[Doubt]:
    return [
        _doubt(
            "few_forced_tokens",
            "routing",
            "note",
            f"routing was compared on {change.tokens:,} tokens: an expert used less often than that can die unseen.",
            change.model,
        )
        for change in routing
        if change.same_tokens
    ]


def _doubt(code: str, flag: str, severity: Severity, text: str, model: str | None = None) -> Doubt:
    return Doubt(code=code, flag=flag, severity=severity, model=model, text=text)
