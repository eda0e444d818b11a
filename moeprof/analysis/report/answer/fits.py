"""Fits? Memory of the weights of both, and what the device had left."""

from __future__ import annotations

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.answer.words import as_much
from moeprof.analysis.report.document import Finding
from moeprof.core import units

QUESTION = "fits?"
WEIGHTS, PEAK, ROOM = "weights_bytes", "peak_memory_bytes", "max_concurrent_sequences"


def find(sides: Sides) -> Finding | None:
    """A model that served its requests fits; how much room it left is told where it was measured."""
    own, other = (None if m is None else number(m, WEIGHTS) for m in (sides.model, sides.rival))
    if not own:
        return None
    texts = [f"weights {units.num_bytes(own)}" + (f" against {units.num_bytes(other)}" if other else "")]
    peaks = [number(m, PEAK) for m in (sides.model, sides.rival) if m is not None]
    if all(peaks):
        texts.append(f"at its fullest {' against '.join(units.num_bytes(peak) for peak in peaks if peak)}")
    total = sides.summary.record.experiment.fit.total_bytes if sides.summary.record.experiment.fit else None
    total = total or sides.summary.record.environment.memory_bytes
    if total:
        texts.append(f"of {units.num_bytes(total)} of this device")
    if (room := number(sides.model, ROOM)) is not None:
        texts.append(f"room for {units.significant(room)} requests of this traffic at once")
    clause = f"needs {units.num_bytes(own)} of memory for its weights"
    if other:
        assert sides.rival is not None
        rival = sides.called(sides.rival)
        much = as_much(own / other, rival, "memory for its weights")
        clause = f"needs {f'about as much memory for its weights as {rival}' if _alike(own, other) else much}"
    return Finding(
        question=QUESTION, outcome="yes", text=", ".join(texts), figures=(WEIGHTS, PEAK), clause=clause,
        lean=0 if not other or _alike(own, other) else (1 if own < other else -1),
    )  # fmt: skip


def _alike(own: float, other: float) -> bool:
    """Within a twentieth: no reason to choose one of them."""
    return abs(own / other - 1) <= 0.05
