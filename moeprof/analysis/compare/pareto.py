"""Speed for one reader against speed of a device: the settings that no other setting beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moeprof.analysis.compare.sweeps import SweepResult
from moeprof.core.sparsity import SweepPoint


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One model at one setting.

    Attributes:
        model: its name.
        point: the setting.
        tokens_per_s_per_user: 1 / mean gap between tokens.
        tokens_per_s_per_device: output tokens per second and device.
        on_front: no other setting of this model is at least as fast in both and faster in one.
    """

    model: str
    point: SweepPoint
    tokens_per_s_per_user: float
    tokens_per_s_per_device: float
    on_front: bool


def pareto(result: SweepResult) -> tuple[ParetoPoint, ...]:
    """All points with both speeds, by model and then by speed for one reader, ascending."""
    found = []
    for model in result.models:
        for one in model.points:
            user, device = one.tokens_per_s_per_user.value, one.output_tokens_per_s.value
            if user is not None and device is not None:
                found.append((model.model, one.point, (user, device)))
    points = []
    for name, point, speed in sorted(found, key=lambda item: (item[0], item[2])):
        own = [other for model, _, other in found if model == name]
        points.append(
            ParetoPoint(
                model=name,
                point=point,
                tokens_per_s_per_user=speed[0],
                tokens_per_s_per_device=speed[1],
                on_front=is_on_front(speed, own),
            )
        )
    return tuple(points)


def is_on_front(speed: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    """True when none of the others is at least as fast in both and faster in one."""
    return not any(a >= speed[0] and b >= speed[1] and (a, b) != speed for a, b in others)
