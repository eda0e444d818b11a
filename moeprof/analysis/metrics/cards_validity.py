"""Cards of what the run says about itself."""

from __future__ import annotations

from moeprof.core.metric import Card

LOCKSTEP = "lock-step pairs of an instrumented and a bare engine on the same weights and requests"

CARDS: tuple[Card, ...] = (
    Card(
        name="instrumentation_overhead_ratio",
        title="overhead of the instruments",
        unit="ratio",
        better="lower",
        formula="sum of step times with instruments / sum without, undisturbed pairs",
        source=f"measured in the run: {LOCKSTEP}",
        section="validity",
    ),
    Card(
        name="instrumentation_overhead_median_ratio",
        title="overhead of the instruments, median step",
        unit="ratio",
        better="lower",
        formula="median over pairs of step time with instruments / without",
        source=f"measured in the run: {LOCKSTEP}",
        section="validity",
    ),
    Card(
        name="overhead_pairs_set_aside_ratio",
        title="pairs of steps set aside",
        unit="ratio",
        better="lower",
        formula="pairs in which the machine took the processor away on either side / all pairs",
        source=f"measured in the run: {LOCKSTEP}",
        section="validity",
    ),
    Card(
        name="reference_kernel_s",
        title="reference kernel",
        unit="s",
        better="lower",
        formula="median time of a fixed piece of work just before each pass, mean over passes; it corrects no figure",
        source="measured in the run: float32 matrix products and a pass over a vector",
        section="validity",
    ),
    Card(
        name="bits_per_byte",
        title="bits per byte of text",
        unit="bits / byte",
        better="lower",
        formula="sum of -log2 p(output token | all before it) / UTF-8 bytes of the outputs, over forced outputs",
        source="METRICS 8",
        section="quality",
    ),
)
