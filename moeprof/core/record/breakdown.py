"""Where the time of a step goes, as measured: the nouns of launch.json's ``gap``.

A step of known size is run some times as the engine is configured (wall and device time), then some times eagerly under
a profiler that knows which part of the model each operation belongs to. Kernels are the same whether Python launches
them one by one or a captured graph does, so their times say what the parts cost, and what is left of the step is
launching and the host. On a CPU an operation is what a kernel is on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# In the order of a step. Whatever of the model is in no other stage (norms, residual sums) is ``elementwise``.
STAGES = (
    "batch",
    "embedding",
    "attention_projections",
    "attention",
    "router",
    "dispatch",
    "experts",
    "mlp",
    "elementwise",
    "lm_head",
    "sampling",
)
Clock = Literal["kernels", "operations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfiledStep:
    """One eager step under the profiler.

    Attributes:
        wall_s: its wall time, profiling included.
        stage_s: seconds per stage of STAGES: of kernels on a device, of operations on a CPU; stages without are absent.
        launches: kernels launched, or operations run.
        unplaced_s: seconds of kernels whose launch was not found, so that no stage owns them.
    """

    wall_s: float
    stage_s: dict[str, float]
    launches: int
    unplaced_s: float = 0.0

    @property
    def itemised_s(self) -> float:
        """Seconds that some stage owns."""
        return sum(self.stage_s.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class GapPoint:
    """Steps of one size. Suffix legend: S timed steps, P profiled steps, L MoE layers, W windows.

    Attributes:
        phase: ``decode`` or ``prefill``.
        sequences: in the step.
        tokens: computed in the step.
        new_tokens: produced by it.
        context_tokens: keys attended to, summed over sequences; mean over the timed steps.
        attention_pairs: query-key pairs; mean over the timed steps.
        distinct_L: experts touched per MoE layer, mean over the timed steps; None where routing was not seen.
        wall_S: from the end of the step before to the end of this one, instruments on.
        device_S: by device events, or None (CPU).
        profiled_P: the eager steps under the profiler.
        reason: why there are none.
        window_context_W, window_pairs_W: the same two for layers that see a window; one number per window of the model,
            smallest first.
    """

    phase: Literal["decode", "prefill"]
    sequences: int
    tokens: int
    new_tokens: int
    context_tokens: float
    attention_pairs: float
    distinct_L: tuple[float, ...] | None
    wall_S: tuple[float, ...]
    device_S: tuple[float, ...] | None = None
    profiled_P: tuple[ProfiledStep, ...] = ()
    reason: str | None = None
    window_context_W: tuple[float, ...] = ()
    window_pairs_W: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What one launch learnt of its steps.

    Attributes:
        clock: what the profiled seconds are of: ``kernels`` of a device, ``operations`` of a CPU.
        layers: names of the MoE layers, the order of ``distinct_L``.
        points: one per size of step.
        spent_s: how long it took.
        notes: sizes that were left out, and why.
    """

    clock: Clock
    layers: tuple[str, ...]
    points: tuple[GapPoint, ...]
    spent_s: float
    notes: tuple[str, ...] = ()
