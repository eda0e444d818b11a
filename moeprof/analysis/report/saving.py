"""The saving in one sentence: what the MoE costs against its rivals, what was realised, which dense size it equals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moeprof.analysis.compare.models import cost_ratio
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.metrics.sweep.points import to_metric
from moeprof.analysis.report.sections.lockstep import parameters_text, ratio_text
from moeprof.analysis.sparsity.realised import DenseEquivalent, equivalent_of_rounds, realised_of_rounds
from moeprof.analysis.sparsity.roles import Roles
from moeprof.analysis.stats.estimate import Estimate, Ratio
from moeprof.core.metric import MetricValue, missing

UNSETTLED = ("no difference shown", "cannot tell")
NO_TWINS = "needs an active- and a total-matched twin in the workload (`twin_of: <moe>, match: active` and `total`)"
NO_LADDER = "needs dense twins of at least 3 sizes in the workload (`twin_of: <moe>, ladder: [0.5, 1, 2, 4]`)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What an MoE costs against its dense models, and what of the saving that they promise was realised.

    Attributes:
        sentence: the headline.
        realised: ``sparsity_realised_ratio`` from lone runs.
        equivalent: ``dense_equivalent_params`` from lone runs.
        load: that they speak for.
    """

    sentence: str
    realised: Estimate
    equivalent: DenseEquivalent
    load: str

    @property
    def metrics(self) -> tuple[MetricValue, ...]:
        """Both figures as metrics of the MoE."""
        labels = {"phase": "all", "concurrency": self.load, "measured": "alone"}
        values = [to_metric("sparsity_realised_ratio", self.realised, **labels)]
        if self.equivalent.params.value is None:
            values.append(missing("dense_equivalent_params", self.equivalent.reason or "not measured"))
        else:
            values.append(to_metric("dense_equivalent_params", self.equivalent.params))
        return tuple(values)


def saving(summary: Summary, parts: Roles) -> Saving | None:
    """That of a run with an MoE and at least one dense model that did the same work; None for other runs."""
    moe = parts.moe
    if moe is None:
        return None
    twins = [m for m in (parts.total, parts.active) if m is not None] or list(parts.twins[:2])
    asked = twins or list(parts.rivals)
    ratios = {m.name: cost_ratio(summary, moe, m) for m in asked}
    rivals = [m for m in asked if ratios[m.name].verdict != "incomparable"][:2]
    if not rivals:
        return None
    launch = " (this launch)" if any(ratios[dense.name].by for dense in rivals) else ""
    settled = any(ratios[dense.name].verdict not in UNSETTLED for dense in rivals)
    costs = _costs(moe.name, [(parts.called(d), ratios[d.name]) for d in rivals], "" if settled else launch)
    realised, equivalent = _realised(parts), _equivalent(parts)
    tail = [text for text in (_realised_text(realised, parts), _equivalent_text(equivalent)) if text]
    where = "On this traffic" if not moe.capacity else "On the same requests, sent all at once,"
    between = ": " if tail and all(ratios[dense.name].verdict not in UNSETTLED for dense in rivals) else "; "
    clauses = between.join(text for text in ("; ".join(costs), "; ".join(tail)) if text)
    sentence = f"{where} {clauses}{launch * settled}."
    if realised.value is not None and parts.cache_note is not None:
        sentence += f" {parts.cache_note}."
    return Saving(sentence=sentence, realised=realised, equivalent=equivalent, load=parts.load)


def unit_costs(model: ModelSummary) -> list[float]:
    """Dollars for the same requests, once per launch, or once per round of a single launch."""
    bills = [[split.run_cost_usd for split in splits] for splits in model.launch_splits]
    # A launch that was cut off has fewer rounds: their mean, so that launches and models bill the same requests.
    return [sum(bill) / len(bill) for bill in bills] if len(bills) > 1 else [cost for bill in bills for cost in bill]


def _costs(moe: str, rivals: Sequence[tuple[str, Ratio]], launch: str) -> list[str]:
    """Clauses: the ratios that say something in one, then one for each that does not."""
    told = [f"{ratio_text(ratio)} of {dense}" for dense, ratio in rivals if ratio.verdict not in UNSETTLED]
    first = [f"{moe} costs {' and '.join(told)}"] if told else []
    rest = [unsettled(moe, dense, ratio, launch) for dense, ratio in rivals if ratio.verdict in UNSETTLED]
    again = f"it cannot be said whether {moe} costs more or less than "
    both = len(rest) > 1 and all(text.startswith(again) for text in rest)
    return [*first, ", or than ".join([rest[0], rest[1].removeprefix(again)])] if both else [*first, *rest]


def unsettled(moe: str, dense: str, ratio: Ratio, launch: str = "") -> str:
    """The clause on a cost ratio of which no direction can be said."""
    if ratio.verdict == "no difference shown":
        return f"no difference in cost is shown between {moe} and {dense}{launch}: {ratio_text(ratio)}"
    why = f" ({ratio.reason})" if ratio.reason else ""
    return f"it cannot be said whether {moe} costs more or less than {dense}{launch}: {ratio_text(ratio)}{why}"


def _realised(parts: Roles) -> Estimate:
    if parts.moe is None or parts.active is None or parts.total is None:
        return Estimate(value=None, reason=NO_TWINS)
    share = realised_of_rounds(*(unit_costs(model) for model in (parts.total, parts.moe, parts.active)))
    return share if share.reason else replace(share, reason=parts.cache_note)


def _equivalent(parts: Roles) -> DenseEquivalent:
    by_size = {m.facts.total_params: unit_costs(m) for m in parts.twins if m.facts is not None}
    if parts.moe is None or len(by_size) < 3:
        return DenseEquivalent(params=Estimate(value=None, reason=NO_LADDER), reason=NO_LADDER)
    return equivalent_of_rounds(tuple(by_size.items()), unit_costs(parts.moe))


def _realised_text(realised: Estimate, parts: Roles) -> str:
    if realised.value is None:
        return ""
    where = f"all steps, {parts.load}"
    between = ""
    if realised.low is not None and realised.high is not None:
        between = f" [{100 * realised.low:.0f}, {100 * realised.high:.0f}]"
    share = f"{100 * realised.value:.0f} %{between}"
    if realised.high is not None and realised.high <= 0:
        return f"of the saving between the two dense twins none is realised ({share}, {where})"
    if realised.low is None or realised.low <= 0:
        return f"that any of the saving between the two dense twins is realised is not shown ({share}, {where})"
    return f"of the saving between the two dense twins, {share} is realised ({where})"


def _equivalent_text(equivalent: DenseEquivalent) -> str:
    size = equivalent.params
    if size.value is not None:
        text = f"it costs as much as a dense model of {parameters_text(size.value)}"
        if size.low is not None and size.high is not None:
            return text + f" [{parameters_text(size.low)}, {parameters_text(size.high)}]".replace(" parameters", "")
        return f"{text} ({equivalent.reason})" if equivalent.reason else text
    if equivalent.bound is not None and equivalent.bound_params is not None:
        if not equivalent.bound_told:
            return f"which dense size it costs as much as cannot be said ({equivalent.reason})"
        how = "less than the smallest" if equivalent.bound == "below" else "more than the largest"
        return f"it costs {how} dense size tried ({parameters_text(equivalent.bound_params)})"
    return ""
