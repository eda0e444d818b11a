"""Theory beside measurement: what counting FLOPs, bytes and least times says of sparsity, and what was measured.

Work comes from what ran: the batches, the distinct experts and the kernels of each step (docs/metrics.md#work). Figures
are per token, so that passes of unequal length compare; a ratio is the dense model's figure over the MoE's: above 1 the
MoE should be the faster one. A least time bounds a model; the ratio of two bounds nothing, so each model's distance
from its own stands beside it. Twins that did not run are computed: the MoE's own batches through the MoE's shape
with every block replaced by a dense MLP.

The measured side of theory beside measurement: times of two models on the same steps, paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moeprof.analysis.compare.comparable import why_incomparable
from moeprof.analysis.compare.lanes import LockstepPair, lockstep_pairs
from moeprof.analysis.metrics.resources.work import Limits, StepWork, limits_of, roofline_S, step_work
from moeprof.analysis.metrics.sweep.points import log_ratio_estimate, over_rounds, to_metric
from moeprof.analysis.metrics.tables import ALL, PassTables, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.analysis.stats.estimate import Estimate
from moeprof.core.metric import MetricValue
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.units import count

if TYPE_CHECKING:
    from moeprof.analysis.metrics.summary import ModelSummary, Summary

OTHER_BATCHES = "open loop without a capacity pass: the models ran other batches"
OTHER_REQUESTS = "the models were sent different requests"
NOT_IN_TURN = "these models were not stepped in turn at this load"


def why_not_measured(summary: Summary, moe: ModelSummary, dense: ModelSummary) -> str | None:
    """Why measured times of two models must not be compared, or None."""
    if "open" in (moe.priced[0].traffic, dense.priced[0].traffic):
        return OTHER_BATCHES
    mine, theirs = (summary.record.schedule(m.name).sha256 for m in (moe, dense))
    return OTHER_REQUESTS if mine != theirs else why_incomparable(moe, dense)


def own_load(summary: Summary, model: ModelSummary) -> int | None:
    """Requests in flight in the passes that headline dollars come from; None when all were sent at once."""
    concurrency = summary.record.schedule(model.name).concurrency
    return concurrency if concurrency and model.priced[0].traffic == "closed" else None


def paired_times(above: Sequence[float], below: Sequence[float], launches: tuple[int, int]) -> Estimate:
    """The ratio of times, paired by round (launch after launch); by launch where both have as many of several."""
    if len(above) != len(below):
        ratio = float(np.mean(above) / np.mean(below))
        return Estimate(value=ratio, reason=f"no interval: {len(above)} rounds against {len(below)}")
    logs = np.log(np.asarray(above) / np.asarray(below))
    if launches[0] > 1 and launches[0] == launches[1] and len(logs) % launches[0] == 0:
        logs = logs.reshape(launches[0], -1).mean(axis=1)
    return log_ratio_estimate(np.exp(logs).tolist())


def in_turn(pairs: Sequence[LockstepPair], moe: str, dense: str, phase: str, load: int | None) -> Estimate:
    """Step time of the dense model over the MoE's, stepped in turn at the same load; less noise than lone runs."""
    for pair in pairs:
        told = pair.ratios.get(None if phase == ALL else phase)
        if (pair.moe, pair.dense, pair.concurrency) == (moe, dense, load) and told is not None:
            return told.inverse()
    return Estimate(value=None, reason=NOT_IN_TURN)


Match = Literal["active", "total"]
PHASES = ("decode", "prefill", ALL)
TWIN_NAMES: dict[Match, str] = {"total": "total-matched, computed", "active": "active-matched, computed"}
REPLACED = ("router", "shared_experts", "routed_experts")
FEWEST_STEPS = 11  # of one token, in each round
NOT_RUN = "this twin did not run: its work is computed from the MoE's shape"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseWork:
    """What one token of one phase costs a model.

    Attributes:
        model: name of the model, or of a computed twin.
        phase: prefill, decode or all.
        flops_per_token, bytes_per_token: of the counted steps of the first pass; rounds repeat its tokens.
        roofline_s_per_token: the least time on this device, from its measured peaks.
        from_memory_s_per_token: the same if all bytes came from memory, where the cache may have had them; else None.
        step_s_per_token: measured, mean over rounds.
        rounds_s_per_token: measured, per round; empty for a computed twin.
        num_launches: launches that the rounds come from.
        active_params, total_params: of the model.
    """

    model: str
    phase: str
    flops_per_token: Estimate
    bytes_per_token: Estimate
    roofline_s_per_token: Estimate
    from_memory_s_per_token: float | None
    step_s_per_token: Estimate
    rounds_s_per_token: tuple[float, ...]
    num_launches: int
    active_params: int
    total_params: int

    @property
    def over_least(self) -> Estimate:
        """Measured time over the own least time."""
        least, spent = self.roofline_s_per_token, self.step_s_per_token
        if not least.value or spent.value is None:
            return Estimate(value=None, reason=least.reason or spent.reason)
        return spent.times(1 / least.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speedup:
    """What a dense model's figure is as a multiple of the MoE's: above 1 speaks for the MoE.

    Attributes:
        moe, dense: the pair; ``dense`` may be a computed twin.
        phase: prefill, decode or all.
        flops, num_bytes, roofline: bound by counting.
        measured: step time per token, each model alone, paired by round.
        in_turn: step time with the models stepped in turn at the same load, where that was measured.
        limits: how far each of the two is from its own least time, in words; empty where that is not known.
        active_params, total_params: ratios of parameters.
    """

    moe: str
    dense: str
    phase: str
    flops: Estimate
    num_bytes: Estimate
    roofline: Estimate
    measured: Estimate
    in_turn: Estimate
    limits: str
    active_params: float
    total_params: float

    @property
    def text(self) -> str:
        """``speedup bound by counting FLOPs 4.1x, bytes 1.3x, least time 1.3x; measured 0.9x. A ratio of ...``."""
        counted = _listed(FLOPs=self.flops, bytes=self.num_bytes, least_time=self.roofline)
        measured = _listed(measured=self.measured, stepped_in_turn=self.in_turn)
        parts = [f"speedup bound by counting {counted}"] if counted else []
        parts += [measured] if measured else []
        if not parts:
            return f"cannot tell ({self.flops.reason or self.measured.reason})"
        return "; ".join(parts) + (f". {self.limits}" if self.limits else "")


def twin_facts(facts: ModelFacts, match: Match) -> ModelFacts:
    """A dense twin by arithmetic: k (``active``) or E (``total``) experts' width in one MLP, shared experts folded in.

    The router is left out. Parameters and bytes are those of the experts and scale with their number.
    """
    used = [layer.num_experts if match == "total" else layer.top_k for layer in facts.moe_layers]
    expert_params = sum(num * layer.expert_params for num, layer in zip(used, facts.moe_layers, strict=True))
    expert_bytes = sum(num * layer.expert_bytes for num, layer in zip(used, facts.moe_layers, strict=True))

    def folded(groups: Mapping[str, int], size: int) -> dict[str, int]:
        kept = {name: value for name, value in groups.items() if name not in REPLACED}
        kept["dense_mlp"] = groups.get("dense_mlp", 0) + groups.get("shared_experts", 0) + size
        return kept

    params = folded(facts.params_by_group, expert_params)
    gone = sum(facts.params_by_group.values()) - sum(params.values())
    total = facts.total_params - gone
    head = facts.active_params_no_embedding - facts.active_params_no_embedding_no_head
    embedding = facts.active_params - facts.active_params_no_embedding
    return replace(
        facts,
        name=TWIN_NAMES[match],
        total_params=total,
        active_params=total,
        active_params_no_embedding=total - embedding,
        active_params_no_embedding_no_head=total - embedding - head,
        params_by_group=params,
        bytes_by_group=folded(facts.bytes_by_group, expert_bytes),
        moe_layers=(),
    )


def theoretical_speedups(summary: Summary) -> tuple[Speedup, ...]:
    """Every MoE against every dense model of the run and against the twins that did not run, per phase."""
    found, lockstep = [], lockstep_pairs(summary.record)
    for moe, others in pairs(summary):
        load = own_load(summary, moe)
        for phase in PHASES:
            mine = phase_work(moe, phase)
            if mine is None:
                continue
            for other in others:
                theirs = phase_work(other, phase)
                if theirs is not None:
                    turn = in_turn(lockstep, moe.name, other.name, phase, load)
                    found.append(speedup(mine, theirs, why_not_measured(summary, moe, other), turn))
            for match in missing_twins(moe, others):
                computed = computed_work(moe, match, phase)
                if computed is not None:
                    found.append(speedup(mine, computed, NOT_RUN))
    return tuple(found)


def pairs(summary: Summary) -> list[tuple[ModelSummary, tuple[ModelSummary, ...]]]:
    """Each MoE that was measured, with the dense models that were."""
    known = [m for m in summary.models if m.facts is not None and m.priced]
    denses = tuple(m for m in known if m.facts is not None and not m.facts.is_moe)
    return [(m, denses) for m in known if m.facts is not None and m.facts.is_moe]


def missing_twins(moe: ModelSummary, others: Sequence[ModelSummary]) -> tuple[Match, ...]:
    """Twins of this MoE that did not run."""
    twins = [m.facts.twin for m in others if m.facts is not None and m.facts.twin is not None]
    mine = [twin for twin in twins if twin.of == moe.name]
    ran = {"active": any(t.is_active_matched for t in mine), "total": any(t.is_total_matched for t in mine)}
    matches: tuple[Match, ...] = ("active", "total")
    return tuple(match for match in matches if not ran[match])


def speedup(moe: PhaseWork, dense: PhaseWork, reason: str | None = None, turn: Estimate | None = None) -> Speedup:
    """The dense model's figures over the MoE's."""
    up, down = dense.rounds_s_per_token, moe.rounds_s_per_token
    if reason is None and not (up and down):
        reason = dense.step_s_per_token.reason or moe.step_s_per_token.reason
    launches = (dense.num_launches, moe.num_launches)
    measured = paired_times(up, down, launches) if reason is None else Estimate(value=None, reason=reason)
    return Speedup(
        moe=moe.model,
        dense=dense.model,
        phase=moe.phase,
        flops=_over(dense.flops_per_token, moe.flops_per_token),
        num_bytes=_over(dense.bytes_per_token, moe.bytes_per_token),
        roofline=_over(dense.roofline_s_per_token, moe.roofline_s_per_token),
        measured=measured,
        in_turn=turn or Estimate(value=None, reason=reason or NOT_IN_TURN),
        limits=limits_text(moe, dense),
        active_params=dense.active_params / moe.active_params,
        total_params=dense.total_params / moe.total_params,
    )


def limits_text(moe: PhaseWork, dense: PhaseWork) -> str:
    """``A ratio of least times is no limit: dense-16x takes 2.9 times its own, moe 2.1 times its own``."""
    sides = (dense, moe)
    reason = dense.roofline_s_per_token.reason or moe.roofline_s_per_token.reason
    if any(side.step_s_per_token.value is None for side in sides):
        return ""
    if all(side.over_least.value is None for side in sides):
        return f"No least time is known: {reason}" if reason else ""
    return f"A ratio of least times is no limit: {'; '.join(map(_distance, sides))}"


def _distance(side: PhaseWork) -> str:
    least, spent, why = side.from_memory_s_per_token, side.step_s_per_token.value, side.roofline_s_per_token.reason
    if side.over_least.value is not None:
        return f"{side.model} takes {side.over_least.value:.1f} times its own"
    if least is None or spent is None:
        return f"that of {side.model} is not known ({why})"
    return f"{side.model} {spent / least:.1f} times if all its bytes came from memory, but {why}"


def phase_work(model: ModelSummary, phase: str) -> PhaseWork | None:
    """A model's work and time per token, from the passes that headline dollars come from; None without such steps."""
    assert model.facts is not None, "only models that loaded have passes"
    works = [step_work(tables, model.facts, model.launch.engine) for tables in model.priced]
    return _phase_work(model.name, model.facts, model.launch, model.priced, works, phase, len(model.launch_splits))


def computed_work(moe: ModelSummary, match: Match, phase: str) -> PhaseWork | None:
    """A twin's work on the MoE's own batches, without a measured time; None where its first pass has no such steps."""
    assert moe.facts is not None, "only models that loaded have passes"
    facts = twin_facts(moe.facts, match)
    work = step_work(moe.priced[0], facts, moe.launch.engine)
    found = _phase_work(facts.name, facts, moe.launch, moe.priced[:1], [work], phase, 1)
    if found is None:
        return None
    return replace(found, step_s_per_token=Estimate(value=None, reason=NOT_RUN), rounds_s_per_token=())


def _phase_work(
    name: str,
    facts: ModelFacts,
    launch: LaunchHeader,
    rounds: Sequence[PassTables],
    works: Sequence[StepWork | str],
    phase: str,
    num_launches: int,
) -> PhaseWork | None:
    limits = limits_of(launch, facts)
    told = [(w, w.phase_mask(t, phase)) for w, t in zip(works, rounds, strict=True) if isinstance(w, StepWork)]
    told = [(work, mask) for work, mask in told if work.tokens_S[mask].sum() > 0]
    reason = next((work for work in works if isinstance(work, str)), None)
    if not told and reason is None:
        return None
    nothing = Estimate(value=None, reason=reason)
    flops, num_bytes, roofline, from_memory = nothing, nothing, nothing, None
    seconds: tuple[float, ...] = ()
    if told:
        work, mask = told[0]
        tokens = float(work.tokens_S[mask].sum())
        flops = Estimate(value=float(work.flops_S[mask].sum()) / tokens)
        num_bytes = Estimate(value=float(work.bytes_S[mask].sum()) / tokens)
        roofline, from_memory = _roofline(work, mask, limits)
        seconds = tuple(float(w.time_S[m].sum() / w.tokens_S[m].sum()) for w, m in told)
    return PhaseWork(
        model=name,
        phase=phase,
        flops_per_token=flops,
        bytes_per_token=num_bytes,
        roofline_s_per_token=roofline,
        from_memory_s_per_token=from_memory,
        step_s_per_token=_mean(seconds, reason),
        rounds_s_per_token=seconds,
        num_launches=max(num_launches, 1),
        active_params=facts.active_params,
        total_params=facts.total_params,
    )


def _roofline(work: StepWork, mask: Any, limits: Limits) -> tuple[Estimate, float | None]:
    """The least time per token, and what it would be from memory where the cache may have had the bytes."""
    least_S, cached = roofline_S(work, limits), limits.cached(work.bytes_S[mask])
    if least_S is None:
        return Estimate(value=None, reason=limits.bandwidth_reason or limits.flops_reason), None
    least = float(least_S[mask].sum() / work.tokens_S[mask].sum())
    return (Estimate(value=least), None) if cached is None else (Estimate(value=None, reason=cached), least)


def _mean(values: Sequence[float], reason: str | None) -> Estimate:
    return over_rounds([(0, value) for value in values], reason or "no steps")


def _over(above: Estimate, below: Estimate) -> Estimate:
    if above.value is None or not below.value:
        return Estimate(value=None, reason=above.reason or below.reason or "the denominator is 0")
    return Estimate(value=above.value / below.value)


def _times(value: Estimate) -> str:
    assert value.value is not None, "checked by the caller"
    if value.low is None or value.high is None:
        return f"{value.value:.3g}x" + (f" (cannot tell: {value.reason})" if value.reason else "")
    return f"{value.value:.3g}x [{value.low:.3g}, {value.high:.3g}]"


def _listed(**values: Estimate) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {_times(v)}" for name, v in values.items() if v.value is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OneToken:
    """Decode steps of one token, in which an MoE reads no expert but the active ones; at least FEWEST_STEPS a round.

    Attributes:
        moe, dense: the pair.
        num_moe, num_dense: steps behind the ratio.
        moe_params, dense_params: active parameters.
        ratio: seconds of the MoE's over the dense model's, paired by round.
    """

    moe: str
    dense: str
    num_moe: int
    num_dense: int
    moe_params: int
    dense_params: int
    ratio: Estimate

    @property
    def text(self) -> str:
        """``At one token a decode step of moe takes 1.42x [1.37, 1.47] as long as one of dense (...)``."""
        return (
            f"At one token a decode step of {self.moe} takes {_times(self.ratio)} as long as one of {self.dense} "
            f"({self.num_moe:,} and {self.num_dense:,} steps of the workload's own rounds; one token uses "
            f"{count(self.moe_params)} and {count(self.dense_params)} parameters): that much is there before any "
            "further expert is read"
        )


def one_token_steps(summary: Summary) -> tuple[OneToken, ...]:
    """Every MoE against every dense model that had enough such steps.

    A step of one token is the same work whatever else the traffic was, so rounds of an open loop may be compared.
    """
    found = [_one_token(summary, moe, dense) for moe, others in pairs(summary) for dense in others]
    return tuple(one for one in found if one is not None)


def _one_token(summary: Summary, moe: ModelSummary, dense: ModelSummary) -> OneToken | None:
    if summary.record.schedule(moe.name).sha256 != summary.record.schedule(dense.name).sha256:
        return None
    mine, theirs = ([_one_token_s(tables) for tables in model.rounds] for model in (moe, dense))
    if not mine or len(mine) != len(theirs) or min(map(len, (*mine, *theirs))) < FEWEST_STEPS:
        return None
    assert moe.facts is not None and dense.facts is not None, "pairs have facts"
    launches = (len(moe.launch_splits), len(dense.launch_splits))
    return OneToken(
        moe=moe.name,
        dense=dense.name,
        num_moe=sum(map(len, mine)),
        num_dense=sum(map(len, theirs)),
        moe_params=moe.facts.active_params,
        dense_params=dense.facts.active_params,
        ratio=paired_times([float(s.mean()) for s in mine], [float(s.mean()) for s in theirs], launches),
    )


def _one_token_s(tables: PassTables) -> FloatArray:
    steps = tables.steps
    own = is_phase(steps, "decode") & (column(steps, "decode_tokens") == 1)
    seconds: FloatArray = (column(steps, "end_s") - column(steps, "start_s"))[own]
    return seconds


def theory_metrics(speedups: Sequence[Speedup], alone: Sequence[OneToken] = ()) -> tuple[MetricValue, ...]:
    """Speedups bound by counting and measured, labelled by pair and phase, and steps of one token by pair."""
    values = [to_metric("one_token_step_ratio", one.ratio, moe=one.moe, against=one.dense) for one in alone]
    for one in speedups:
        labels = {"moe": one.moe, "against": one.dense, "phase": one.phase}
        for by, estimate in (("flops", one.flops), ("bytes", one.num_bytes), ("roofline", one.roofline)):
            values.append(to_metric("theoretical_speedup", estimate, **labels, by=by))
        for how, estimate in (("alone", one.measured), ("in turn", one.in_turn)):
            values.append(to_metric("measured_speedup", estimate, **labels, how=how))
    return tuple(values)
