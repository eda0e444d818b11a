"""From which load on? What a sweep over loads says of the crossing; one load says nothing of others."""

from __future__ import annotations

from moeprof.analysis.report.answer.sides import Sides
from moeprof.analysis.report.document import Finding
from moeprof.analysis.sparsity.crossover import AXIS_NAMES, Crossover, crossovers
from moeprof.analysis.sparsity.sweeps import sweep_results
from moeprof.core import units

QUESTION, NAME = "from which load on?", "usd_per_1m_total_tokens"
ONE_LOAD = "one load was measured"
UNITS = {"concurrency": " requests at once", "request_rate": " requests/s", "input_tokens": " prompt tokens",
         "max_batch_tokens": " tokens a batch"}  # fmt: skip


def find(sides: Sides) -> Finding | None:
    """None for a model alone; of a sweep with further settings the first line of loads."""
    if sides.rival is None:
        return None
    swept = sweep_results(sides.summary)
    if swept is None:
        return Finding(question=QUESTION, outcome="cannot tell", text=ONE_LOAD)
    pair = (sides.model.name, sides.rival.name)
    own = next((one for one in crossovers(swept) if (one.moe, one.dense) == pair), None)
    if own is None or not own.points:
        return Finding(question=QUESTION, outcome="cannot tell", text="no load was measured for both models")
    told = {point.told for point in own.points}
    where = _range(own)
    than = f" than {sides.called(sides.rival)}" if sides.is_twin else ""
    if own.kind == "crossing" and own.batch.value is not None:
        side = "below" if own.cheaper_below else "above"
        at = f"about {units.significant(own.batch.value, 2)}{UNITS[own.axis]}"
        return Finding(question=QUESTION, outcome="depends", text=f"cheaper {side} {at}: {own.text}", figures=(NAME,),
                       aside=f"It is cheaper{than} {side} {at}.")  # fmt: skip
    if told == {"cheaper"}:
        return Finding(question=QUESTION, outcome="yes", text=own.text, figures=(NAME,), lean=1,
                       aside=f"It is cheaper{than} at every load tried ({where}).")  # fmt: skip
    if told == {"dearer"}:
        return Finding(question=QUESTION, outcome="no", text=own.text, figures=(NAME,), lean=-1,
                       aside=f"It is dearer{than} at every load tried ({where}).")  # fmt: skip
    return Finding(question=QUESTION, outcome="cannot tell", text=own.text, figures=(NAME,))


def _range(found: Crossover) -> str:
    loads = [units.significant(point.load) for point in found.points]
    axis = AXIS_NAMES[found.axis]
    return f"{axis} {loads[0]}" if len(loads) == 1 else f"{axis} {loads[0]} to {loads[-1]}"
