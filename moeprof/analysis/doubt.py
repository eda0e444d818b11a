"""A reason to doubt a result, and how grave it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """A reason to distrust something in the report.

    Attributes:
        code: stable identifier, for example ``few_samples``.
        flag: latency, schedule, steady_state, energy, memory, routing, realism, isolation, overhead, cost.
        severity: ``error`` makes figures invalid, ``warning`` weakens them, ``note`` should be known.
        model: the model concerned, or None for the whole run.
        text: a sentence that says what was seen and what to do.
    """

    code: str
    flag: str
    severity: Severity
    model: str | None
    text: str
