"""The model in question and what it is held against."""

from __future__ import annotations

from dataclasses import dataclass

from moeprof.analysis.compare.models import ModelRatios, cost_ratio
from moeprof.analysis.compare.ratios import priced_models
from moeprof.analysis.metrics.lookup import key_of, pick
from moeprof.analysis.metrics.samples import too_few_requests
from moeprof.analysis.metrics.summary import ModelSummary, Summary
from moeprof.analysis.sparsity.roles import Roles, roles
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Who is compared.

    Attributes:
        summary: the run.
        parts: roles of its models.
        model: in question: the MoE, else the first model with a price.
        rival: a dense model in its own right, else the total-matched twin, else any other; None: it stands alone.
    """

    summary: Summary
    parts: Roles
    model: ModelSummary
    rival: ModelSummary | None

    @property
    def is_moe_against_dense(self) -> bool:
        """Whether this is the question that the tool is for."""
        return self.parts.moe is self.model and self._is_dense(self.rival)

    @property
    def is_twin(self) -> bool:
        """Whether the rival is a dense twin: it shows what sparsity costs, and has no text of its own."""
        return self.rival is not None and self.rival.facts is not None and self.rival.facts.twin is not None

    @property
    def priced_against(self) -> tuple[ModelSummary, ...]:
        """The rival; of twins the total- and the active-matched one, between which an MoE stands."""
        twins = tuple(twin for twin in (self.parts.total, self.parts.active) if twin is not None)
        return twins if self.is_twin and twins else () if self.rival is None else (self.rival,)

    @property
    def launch(self) -> str:
        """`` (this launch)`` where the ratios of dollars speak for one launch alone."""
        ratios = (cost_ratio(self.summary, self.model, rival) for rival in self.priced_against)
        return " (this launch)" if any(ratio.by for ratio in ratios) else ""

    def called(self, model: ModelSummary) -> str:
        """What a sentence calls a rival."""
        if model is self.parts.total:
            return "a dense model of its total size"
        return "a dense model of its active size" if model is self.parts.active else model.name

    def figure(self, name: str) -> tuple[MetricValue | None, MetricValue | None, Ratio | None]:
        """A figure of the model, of its rival, and their ratio as every page has it."""
        own = pick(self.model, name)
        if self.rival is None:
            return own, None, None
        other = pick(self.rival, name)
        if own is None or other is None:
            return own, other, None
        ratio = self.summary.once(ModelRatios).ratio(key_of(own), self.model.name, self.rival.name)
        return own, other, ratio

    @staticmethod
    def _is_dense(model: ModelSummary | None) -> bool:
        return model is not None and model.facts is not None and not model.facts.is_moe


def sides_of(summary: Summary) -> Sides | None:
    """The sides of a run; None where no model served enough requests for a price."""
    parts = roles(summary)
    done = [model for model in priced_models(summary) if too_few_requests(model.priced) is None]
    if not done:
        return None
    model = parts.moe if parts.moe in done else done[0]
    assert model is not None
    ranked = [*parts.rivals, parts.total, parts.active, *parts.twins, *done]
    rivals = [one for one in ranked if one is not None and one is not model and one in done]
    alike = [one for one in rivals if cost_ratio(summary, model, one).verdict != "incomparable"]
    return Sides(summary=summary, parts=parts, model=model, rival=next(iter((*alike, *rivals)), None))
