"""What a workload's ``engine.parallel:`` says: one model shared by several processes, each with a device of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from moeprof.core.errors import WorkloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Several ranks run one model.

    In a workload: ``engine: {parallel: {plan: expert, ranks: 2}}``.

    Attributes:
        plan: ``tensor`` cuts every matrix, experts by width; ``expert`` gives each rank whole experts and cuts the rest
            as ``tensor`` does. The rules are those of transformers for the architecture.
        ranks: processes; on GPUs rank r takes device r.
    """

    plan: Literal["tensor", "expert"]
    ranks: int

    def __post_init__(self) -> None:
        if not 2 <= self.ranks <= 64:
            raise WorkloadError(f"ranks: found {self.ranks}; 2 to 64 is allowed (leave parallel out for one)")

    def check_alone(self, **settings: str) -> None:
        """Refuse engine settings that a shared model does not run with: key -> what the workload says."""
        for key, value in settings.items():
            if value not in ("auto", "off"):
                raise WorkloadError(f"{key}: found {value!r} beside parallel; ranks run eager steps, leave {key} out")
