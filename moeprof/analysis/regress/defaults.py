"""The gates in force where nobody names any: few, and each for a reason.

Exact ones count what every token costs. Timed ones are few because they share one error (Holm, METRICS section 9); no
threshold is written for them: theirs is the floor of how they were measured (see floors in timed.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from moeprof.core.gate_text import parse_gate
from moeprof.core.gates import Gate

Group = Literal["exact", "routing", "quality", "timed"]
FLOOR = "floor"  # stands for the threshold of a default timed gate
SOURCE = "default"

TEXTS: dict[Group, tuple[str, ...]] = {
    "exact": (
        "total_params:+0%",
        "active_params:+0%",
        "weights_bytes:0%",
        "kv_bytes_per_token:0%",
        "kv_cache_bytes:+1%",  # the space that was allocated; where memory bounds it, by a few blocks more or less
        "attention_flops_per_pair:+0%",
    ),
    "routing": (
        "routing_agreement_ratio:-1%",
        "dead_experts:0",
        "router_load_max_over_mean{phase=prefill}:+0.2",
        "router_load_max_over_mean{phase=decode}:+0.2",
    ),
    "quality": ("bits_per_byte:1%",),
    "timed": (
        f"step_mean_s{{phase=decode}}:{FLOOR}",
        f"step_mean_s{{phase=prefill}}:{FLOOR}",
        f"energy_j_per_output_token:{FLOOR}",
    ),
}


def default_gates(group: str = "default", *, floor_ratio: float) -> tuple[Gate, ...]:
    """The gates of a group; ``default``: of all groups.

    Args:
        group: one of :data:`moeprof.core.gates.GROUPS`.
        floor_ratio: what a default timed gate allows: 0.10 against a stored run, 0.015 in lock-step, 0.05 between two
            processes.
    """
    groups = list(TEXTS) if group == "default" else [group]
    return tuple(_gate(text, floor_ratio) for name, texts in TEXTS.items() if name in groups for text in texts)


def _gate(text: str, floor_ratio: float) -> Gate:
    gate = parse_gate(text.replace(FLOOR, f"{100 * floor_ratio:g}%"), SOURCE)
    assert isinstance(gate, Gate), "no default is a word"
    return replace(gate, source=SOURCE)
