"""Time in which other programs had the processor: on a shared machine most of the noise, and none of the code's doing.

Where Linux tells it step by step (``queued_s`` of table ``lanes``) it is taken off both sides: what is left is what a
step computed and what it waited for by itself. Waits for locks, sleep and disk stay in, so no regression hides there.
One could hide in the queue itself: a side that starts helpers of its own waits for a processor because of them. So
where one side waited longer than chance between launch pairs allows, nothing is taken off and wall time decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moeprof.analysis.tables import FloatArray

ONE_SIDED_P = 0.01
WORTH_SAYING = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What was done about it.

    Attributes:
        is_off: it was taken off both sides.
        share_ratio: of the own time of (base, new), over all pairs; None where it was not told.
        is_one_sided: one side waited longer than chance allows, so it counts.
    """

    is_off: bool
    share_ratio: tuple[float, float] | None
    is_one_sided: bool = False

    @property
    def note(self) -> str:
        """For people; empty where there was nothing."""
        if self.share_ratio is None or max(self.share_ratio) < WORTH_SAYING:
            return ""
        base, new = (f"{100 * share:.3g} %" for share in self.share_ratio)
        if self.is_one_sided:
            return f"waiting for a processor took {base} of base's own time and {new} of new's: no chance, so it counts"
        return (
            f"waiting for a processor that other programs had is taken off: {base} of base's own time, {new} of new's"
        )


def queue_of(walls: Sequence[FloatArray], waits: Sequence[FloatArray]) -> Queue:
    """Whether waiting is known, and alike on both sides.

    Args:
        walls: seconds of the turns of each measurement, shape [turns, (base, new)].
        waits: the part of them in the queue; NaN where it is not known.
    """
    held = [i for i, wall in enumerate(walls) if len(wall)]
    if not held or not all(np.isfinite(waits[i]).all() for i in held):
        return Queue(is_off=False, share_ratio=None)
    shares = np.array([waits[i].sum(axis=0) / (walls[i] - waits[i]).sum(axis=0) for i in held])
    together = np.sum([waits[i].sum(axis=0) for i in held], axis=0) / np.sum(
        [(walls[i] - waits[i]).sum(axis=0) for i in held], axis=0
    )
    one_sided = _differs(shares[:, 1] - shares[:, 0])
    return Queue(is_off=not one_sided, share_ratio=(float(together[0]), float(together[1])), is_one_sided=one_sided)


def _differs(differences: FloatArray) -> bool:
    """Student's test of launch pairs, two-sided; a difference too small to matter is none."""
    num, mean = len(differences), float(differences.mean())
    if num < 2 or abs(mean) < WORTH_SAYING:
        return False
    error = float(differences.std(ddof=1)) / math.sqrt(num)
    if error == 0:
        return True
    from scipy.special import stdtr

    return bool(2 * stdtr(num - 1, -abs(mean) / error) < ONE_SIDED_P)
