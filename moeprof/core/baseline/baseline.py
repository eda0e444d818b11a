"""A baseline: what a run is judged against later, small enough for a git repository.

    <folder>/<workload>/<device>/<name>.json   facts that must match, metrics with each launch's value, routing load
    <folder>/<workload>/<device>/<name>.npz    sums of step times per launch and phase, picks of forced tokens

Every comparison with something stored goes through this noun: a run is made a baseline in memory first (see
moeprof/analysis/regress/baseline.py), so that a record and a saved file cannot be judged differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.core.metric import MetricValue
from moeprof.core.record.picks import ForcedPicks

FORMAT_VERSION = 1
STEP_PHASES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """Step times of each launch, rounds together.

    Attributes:
        launches: number of each launch, counted from 0 as in the label ``launch``: launches that measured nothing have
            none.
        seconds_LP: summed step time, shape [launches, STEP_PHASES], in seconds.
        steps_LP: steps behind them, same shape.
    """

    launches: tuple[int, ...]
    seconds_LP: npt.NDArray[np.float64]
    steps_LP: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingLoad:
    """Tokens sent to each expert of each MoE layer over a launch's rounds (the first launch that has them).

    Attributes:
        layers: names.
        counts: phase (prefill, decode) -> one row of counts per layer; layers may differ in experts.
        tokens: phase -> real tokens routed.
    """

    layers: tuple[str, ...]
    counts: Mapping[str, tuple[tuple[int, ...], ...]]
    tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineModel:
    """One model of a baseline.

    Attributes:
        name: the workload's name for it.
        facts: what must match for which figures, by name of the fact: see moeprof/analysis/compare/comparable.py.
        metrics: every value without the finest cuts (no label ``layer`` or ``experts``); those of single launches carry
            the label ``launch``.
        routing: load per layer; None for dense models.
        steps: summed step times; None where nothing was measured.
        picks: of forced tokens; None where they were not recorded.
        top_k: per MoE layer.
        num_experts: per MoE layer.
        own_traffic: label ``traffic`` of the workload's own traffic; None where nothing was measured.
        priced_traffic: label ``traffic`` of the passes that dollars come from (offline for an open-loop run with
            capacity passes); ``steps`` is of them.
    """

    name: str
    facts: Mapping[str, Any]
    metrics: tuple[MetricValue, ...]
    routing: RoutingLoad | None = None
    steps: StepSums | None = None
    picks: ForcedPicks | None = None
    top_k: tuple[int, ...] = ()
    num_experts: tuple[int, ...] = ()
    own_traffic: str | None = None
    priced_traffic: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A frozen run.

    Attributes:
        name: of the baseline; of the run where none was saved.
        run: name of the run that it was made from.
        created_at: ISO time at which that run began.
        moeprof: version that measured.
        workload: its name.
        device: ``2 x NVIDIA H200``, or the CPU's name and what it computes with.
        device_kind: ``cpu`` or ``cuda``.
        status: done | failed | interrupted.
        facts: facts of the run that must match, by name.
        usd_per_second: price that its dollars were made with; None where no hour was billed (a hosted API).
        models: in the workload's order.
        label: the run's note, or None.
        format_version: of the file that it was read from.
        notes: sentences on what is missing of it (its npz file), for pages.
    """

    name: str
    run: str
    created_at: str
    moeprof: str
    workload: str
    device: str
    device_kind: str
    status: str
    facts: Mapping[str, Any]
    usd_per_second: float | None
    models: tuple[BaselineModel, ...]
    label: str | None = None
    format_version: int = FORMAT_VERSION
    notes: tuple[str, ...] = ()

    @property
    def usd_per_hour(self) -> float | None:
        """The same, of an hour."""
        return None if self.usd_per_second is None else 3600 * self.usd_per_second

    def model(self, name: str) -> BaselineModel | None:
        """By name."""
        return next((model for model in self.models if model.name == name), None)
