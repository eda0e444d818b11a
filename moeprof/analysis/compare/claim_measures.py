"""What a claim can be measured by: from a run to one number with its interval.

Each takes (of, against) and answers with an Estimate; counted facts have low = high = value. Timed ratios come from
lock-step where the run has it, else from paired launches or rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moeprof.analysis.compare.claim_counted import (
    compute_saved,
    expert_share,
    memory_over_active,
    weights,
    weights_ratio,
)
from moeprof.analysis.compare.claim_sides import Sides, exactly
from moeprof.analysis.compare.claim_timed import dispatch_share, paired, realised, speed, step_cv
from moeprof.analysis.compare.estimate import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One way to test a claim.

    Attributes:
        text: what it is, for people.
        unit: of the value, as in core/units.py.
        is_pair: True when it needs a second model.
        measure: from the models to the value.
    """

    text: str
    unit: str
    is_pair: bool
    measure: Callable[[Sides], Estimate]


MEASURED: dict[str, Measure] = {
    "speed_ratio": Measure(text="speed on the same requests", unit="ratio", is_pair=True, measure=speed(None)),
    "prefill_speed_ratio": Measure(
        text="speed of prefill steps on the same requests", unit="ratio", is_pair=True, measure=speed("prefill")
    ),
    "decode_speed_ratio": Measure(
        text="speed of decode steps on the same requests", unit="ratio", is_pair=True, measure=speed("decode")
    ),
    "cost_ratio": Measure(
        text="dollars for the same requests",
        unit="ratio",
        is_pair=True,
        measure=lambda sides: paired(sides, "usd_per_1m_total_tokens"),
    ),
    "compute_saved_ratio": Measure(
        text="share of the FLOPs saved on the same requests", unit="ratio", is_pair=True, measure=compute_saved
    ),
    "weights_bytes": Measure(
        text="memory of the weights", unit="B", is_pair=False, measure=lambda sides: exactly(weights(sides.of))
    ),
    "weights_ratio": Measure(text="memory of the weights", unit="ratio", is_pair=True, measure=weights_ratio),
    "memory_over_active_ratio": Measure(
        text="memory of the weights over that of its active parameters",
        unit="ratio",
        is_pair=False,
        measure=memory_over_active,
    ),
    "expert_share_max": Measure(
        text="largest share of a layer's picks that one expert takes",
        unit="ratio",
        is_pair=False,
        measure=expert_share(over_busiest=False),
    ),
    "expert_share_min_over_max": Measure(
        text="picks of a layer's least busy expert over those of its busiest",
        unit="ratio",
        is_pair=False,
        measure=expert_share(over_busiest=True),
    ),
    "step_cv_ratio": Measure(
        text="spread of decode step times at a fixed batch", unit="ratio", is_pair=True, measure=step_cv
    ),
    "dispatch_share_ratio": Measure(
        text="share of the promised saving that dispatch, coverage and imbalance take",
        unit="ratio",
        is_pair=False,
        measure=dispatch_share,
    ),
    "sparsity_realised_ratio": Measure(
        text="share of the promised saving that is realised", unit="ratio", is_pair=False, measure=realised
    ),
}
