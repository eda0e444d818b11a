"""Settings of the dense-against-sparse measurements: lock-step, the sparsity ladder, sweeps over load, claims.

What each measures: docs/metrics.md. All are off unless the workload names them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from moeprof.core.errors import WorkloadError

DEFAULT_LADDER = (1, 8)
# What a claim may measure; each is described in moeprof/analysis/sparsity/claims.py.
MEASURES = (
    "speed_ratio",
    "prefill_speed_ratio",
    "decode_speed_ratio",
    "cost_ratio",
    "compute_saved_ratio",
    "weights_bytes",
    "weights_ratio",
    "memory_over_active_ratio",
    "expert_share_max",
    "expert_share_min_over_max",
    "step_cv_ratio",
    "dispatch_share_ratio",
    "sparsity_realised_ratio",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lockstep:
    """All models of the workload stepped in turn on one schedule, in one process, where memory allows it.

    Attributes:
        models: names; empty: all of the workload.
        concurrency: requests in flight, one measurement each; empty: the workload's own (an open loop runs offline).
        num_requests: the first so many requests of the schedule; None: twice the concurrency, at least 8.
        max_seconds: bound on each measurement; the schedule is replayed until it is reached.
    """

    models: tuple[str, ...] = ()
    concurrency: tuple[int, ...] = ()
    num_requests: int | None = None
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        _at_least_one("concurrency", self.concurrency)
        _at_least_one("num_requests", (self.num_requests,))
        _positive("max_seconds", self.max_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    """The sparsity ladder: one MoE under overridden routing, beside its two twins, all in lock-step.

    Attributes:
        model: the MoE; None: the first one of the workload.
        concurrency: requests in flight, one ladder each.
        distinct: further rungs in which every step touches so many distinct experts (balanced), to see what one more
            expert costs.
        num_requests: as in Lockstep.
        max_seconds: as in Lockstep.
    """

    model: str | None = None
    concurrency: tuple[int, ...] = DEFAULT_LADDER
    distinct: tuple[int, ...] = ()
    num_requests: int | None = None
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not self.concurrency:
            raise WorkloadError("concurrency: found an empty list; at least one number of requests in flight is needed")
        _at_least_one("concurrency", self.concurrency)
        _at_least_one("distinct", self.distinct)
        _at_least_one("num_requests", (self.num_requests,))
        _positive("max_seconds", self.max_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One setting of a sweep; None: as the workload has it."""

    concurrency: int | None = None
    request_rate: float | None = None
    input_tokens: int | None = None
    max_batch_tokens: int | None = None

    @property
    def label(self) -> str:
        """For people: ``concurrency 8, input 256``."""
        titles = {"concurrency": "concurrency", "request_rate": "rate", "input_tokens": "input",
                  "max_batch_tokens": "batch tokens"}  # fmt: skip
        return ", ".join(f"{title} {getattr(self, name):g}" for name, title in titles.items() if getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Models at several loads; the points are the product of the lists.

    Attributes:
        models: names; empty: all of the workload.
        concurrency: requests in flight (closed loop), ascending.
        request_rate: requests per second (open loop), ascending; a model stops at its first saturated rate.
        input_tokens: prompt lengths; prompts of the schedule are cut or prolonged to them.
        max_batch_tokens: engine settings.
        num_requests: requests of a point; None: four times the concurrency, at least 16, at most the schedule's.
        rounds: passes per point.
        max_seconds: bound on one pass of a point.
    """

    models: tuple[str, ...] = ()
    concurrency: tuple[int, ...] = ()
    request_rate: tuple[float, ...] = ()
    input_tokens: tuple[int, ...] = ()
    max_batch_tokens: tuple[int, ...] = ()
    num_requests: int | None = None
    rounds: int = 3
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.concurrency and self.request_rate:
            raise WorkloadError("give concurrency (closed loop) or request_rate (open loop), one of them")
        if not (self.concurrency or self.request_rate or self.input_tokens or self.max_batch_tokens):
            raise WorkloadError("nothing to sweep; give concurrency, request_rate, input_tokens or max_batch_tokens")
        for name in ("concurrency", "input_tokens", "max_batch_tokens"):
            _at_least_one(name, getattr(self, name))
        for rate in self.request_rate:
            _positive("request_rate", rate)
        for name in ("concurrency", "request_rate", "input_tokens", "max_batch_tokens"):
            values = getattr(self, name)
            if list(values) != sorted(set(values)):
                raise WorkloadError(f"{name}: found {list(values)}; ascending values, each once, are allowed")
        _at_least_one("num_requests", (self.num_requests,))
        _at_least_one("rounds", (self.rounds,))
        _positive("max_seconds", self.max_seconds)

    @property
    def points(self) -> tuple[SweepPoint, ...]:
        """All settings; load varies fastest, so that a saturated rate ends one row."""
        loads: list[tuple[int | None, float | None]] = [(c, None) for c in self.concurrency]
        loads += [(None, rate) for rate in self.request_rate]
        return tuple(
            SweepPoint(concurrency=c, request_rate=rate, input_tokens=tokens, max_batch_tokens=batch)
            for batch, tokens, (c, rate) in product(
                self.max_batch_tokens or (None,), self.input_tokens or (None,), loads or [(None, None)]
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement that the run puts to the test; the report ends in its verdict.

    Attributes:
        text: what is claimed.
        source: who says so.
        measure: one of MEASURES.
        of: the model that it is about; None: the first MoE.
        against: the model that it is compared with; None: the first dense model.
        at_least: the claim holds when the measure is at least this.
        at_most: the claim holds when the measure is at most this.
    """

    text: str
    measure: str
    source: str = ""
    of: str | None = None
    against: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise WorkloadError(f"measure: found {self.measure!r}; allowed: {', '.join(MEASURES)}")
        if self.at_least is None and self.at_most is None:
            raise WorkloadError("at_least or at_most: one of them says where the claim holds")
        if self.at_least is not None and self.at_most is not None and self.at_least > self.at_most:
            raise WorkloadError(f"at_least: {self.at_least:g}, above at_most ({self.at_most:g})")

    def check_names(self, models: Sequence[str]) -> None:
        """Is it about models of this workload?

        Raises:
            WorkloadError: it names another.
        """
        for key, name in (("of", self.of), ("against", self.against)):
            if name is not None and name not in models:
                raise WorkloadError(
                    f"claim.{key}: found {name!r}, no model of this workload; allowed: {', '.join(models)}"
                )


def _at_least_one(name: str, values: tuple[int | None, ...]) -> None:
    for value in values:
        if value is not None and value < 1:
            raise WorkloadError(f"{name}: found {value}; 1 or more is allowed")


def _positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise WorkloadError(f"{name}: found {value:g}; more than 0 is allowed")
