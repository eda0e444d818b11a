"""Gates: which figures may get worse, and by how much, before a job fails.

    usd_per_1m_output_tokens:3%              worse by more than 3 % fails
    router_load_max_over_mean{phase=decode}:+0.2   worse by more than 0.2 (absolute)
    dead_experts:0                           any increase fails
    routing_agreement_ratio:-1%              a fall of more than 1 %
    itl_p99_s<=0.05                          a bound on the value itself; needs no baseline

The sign is optional where the metric's card says which direction is worse, and needed where neither is. Words stand
for groups of default gates: ``default``, ``exact``, ``routing``, ``quality``, ``timed``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

GROUPS = ("default", "exact", "routing", "quality", "timed")
GateKind = Literal["ratio", "absolute", "at_most", "at_least"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One threshold, as written.

    Attributes:
        text: what was written.
        metric: full metric name.
        labels: which of its values: phase, traffic, model...; empty: the plain one of each model.
        kind: ``ratio`` (a share of the reference), ``absolute`` (in the metric's unit), or a bound on the value.
        amount: what is allowed, 0 or more; for a bound the bound itself.
        sign: ``+`` a rise is worse, ``-`` a fall is worse, ``+-`` both; None: as the card says.
        source: where it was written: ``--fail-on``, a file with line, ``default``.
    """

    text: str
    metric: str
    labels: tuple[tuple[str, str], ...] = ()
    kind: GateKind = "ratio"
    amount: float = 0.0
    sign: Literal["+", "-", "+-"] | None = None
    source: str = "default"


def check_text(text: str) -> None:
    """Raises InputError where a text is no gate; the grammar is in core/gate_text.py, which needs the nouns here."""
    from moeprof.core.gate_text import parse_gate

    parse_gate(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """Key ``gates`` of a workload, and the whole of a regress.yaml.

    Attributes:
        fail_on: thresholds and groups; empty: the defaults.
        allow_undecided: exit 0 where a gate cannot tell.
        allow: facts that may differ.
    """

    fail_on: tuple[Annotated[str, check_text], ...] = ()
    allow_undecided: bool = False
    allow: tuple[str, ...] = ()
