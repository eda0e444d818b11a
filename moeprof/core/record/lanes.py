"""Lock-step measurements of a record: several lanes stepped in turn on one schedule (docs/metrics.md#lock-step-pairs).

    lockstep/launch-<l>/c<concurrency>/pass.json      kind, concurrency, lanes, pattern, num_requests, cycles, status...
    lockstep/launch-<l>/c<concurrency>/lanes.parquet  one row per step and lane (see LANE_COLUMNS)
    ladder/...                                        the same; lanes are the rungs of the sparsity ladder

A lane is a model with one way of routing. ``pass.json`` describes it:
``{"name", "model", "rung", "twin_of", "match"}`` with ``rung`` one of RUNGS, or ``distinct`` with ``"distinct": U``.
The concurrency of an offline measurement is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.core.jsonfile import read_json
from moeprof.core.record.tables import read_table

if TYPE_CHECKING:
    import pandas as pd

# dense: a model without routed experts; native: an MoE under its own router; the others go through the override.
RUNGS = ("dense", "concentrated", "balanced", "recorded", "native", "distinct")


@dataclass(frozen=True)
class LanePass:
    """One lock-step measurement: one launch, one concurrency."""

    path: Path

    @property
    def launch(self) -> int:
        """The l of launch-<l>."""
        return int(self.path.parent.name.rpartition("-")[2])

    @property
    def concurrency(self) -> int | None:
        """Requests in flight; None when all were sent at once."""
        return int(self.path.name[1:]) or None

    @cached_property
    def info(self) -> dict[str, Any]:
        """pass.json; empty when the measurement was killed before it could be written."""
        file = self.path / "pass.json"
        return read_json(file) if file.exists() else {}

    @property
    def lanes(self) -> tuple[dict[str, Any], ...]:
        """What each lane is, in order."""
        return tuple(self.info.get("lanes", ()))

    @cached_property
    def table(self) -> pd.DataFrame:
        """Table ``lanes``."""
        return read_table(self.path, "lanes")


def lane_passes(folder: Path) -> tuple[LanePass, ...]:
    """All measurements under ``<run>/lockstep`` or ``<run>/ladder``, by launch and concurrency; empty without it."""
    found = [LanePass(path) for path in folder.glob("launch-*/c*") if path.is_dir()]
    return tuple(sorted(found, key=lambda lane_pass: (lane_pass.launch, lane_pass.concurrency or 0)))
