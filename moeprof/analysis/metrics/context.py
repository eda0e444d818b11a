"""What the subjects of metrics are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from moeprof.analysis.metrics.tables import PassTables
from moeprof.core.metric import Card, MetricValue
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.experiment import ModelFit
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.record.layout import LaunchRecord
from moeprof.core.record.tables import read_table
from moeprof.core.workload.workload import Slo

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Context:
    """A model, or one launch of it, with the passes that figures are of.

    Attributes:
        facts: what the model is.
        pricing: what an hour of the machine costs.
        slo: objectives of the workload.
        idle_power: of the device, W; None, and why there is none.
        launches: of the model; one, unless the subject is of the model.
        info: launch.json of the first launch that measured anything, with the device's peaks.
        fit: the memory that the model was predicted to need; None where it was not.
        passes: with the same traffic; empty unless the subject is of rounds or of a traffic.
    """

    facts: ModelFacts
    pricing: Pricing
    slo: Slo
    idle_power: tuple[float | None, str]
    launches: tuple[LaunchRecord, ...]
    info: LaunchHeader
    passes: tuple[PassTables, ...] = ()
    fit: ModelFit | None = None
    _made: dict[Callable[[Context], Any], Any] = field(default_factory=dict, init=False)

    def once(self, make: Callable[[Context], T]) -> T:
        """What several subjects need and only one should work out."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast(T, self._made[make])

    def table(self, name: str) -> pd.DataFrame | None:
        """A table of the launch beside its passes, None where it is empty."""
        table = read_table(self.launches[0].path, name)
        return table if len(table) else None


class Subject(Protocol):
    """A file of metrics."""

    CARDS: tuple[Card, ...]

    def compute(self, context: Context) -> list[MetricValue]:
        """Every value of the cards."""
