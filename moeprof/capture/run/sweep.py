"""The sweep of one launch: every point, models in turn (A B, then B A), each row up to its first saturated rate.

Models that do not fit in memory together sweep one after the other instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from moeprof.capture.protocol import Order
from moeprof.capture.run.schedules import PointSchedule
from moeprof.core.record.headers import to_json
from moeprof.core.workload.studies import Sweep

Row = tuple[int | None, int | None]


class Runner(Protocol):
    """Carries out a pass of a model: gives the order, or finds that an earlier process of the run has done it."""

    def __call__(self, name: str, order: Order) -> dict[str, Any] | None:
        """What pass.json says; None when the pass was not run (the model failed, or the run is over)."""


@dataclass(slots=True)
class SweepRun:
    """One launch's sweep.

    Attributes:
        sweep: the points.
        points: model name -> its schedules, by point.
        private: folder of the schedules with content.
        run_pass: carries out one pass.
        note: writes keys into a model's launch.json.
    """

    sweep: Sweep
    points: dict[str, tuple[PointSchedule, ...]]
    private: Path
    run_pass: Runner
    note: Callable[[str, dict[str, Any]], None]
    _stopped: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def run(self, names: Sequence[str]) -> None:
        """All points of these models; the order of models turns around with every round."""
        for index in range(len(self.sweep.points)):
            verdicts: dict[str, list[bool | None]] = {}
            reasons: dict[str, str] = {}
            for number in range(self.sweep.rounds):
                for name in list(names)[:: -1 if number % 2 else 1]:
                    point = self.points[name][index]
                    if self._skipped(name, point):
                        continue
                    info = self.run_pass(name, self.order(point, number))
                    if info is not None and info.get("saturation"):
                        verdicts.setdefault(name, []).append(info["saturation"]["saturated"])
                        reasons[name] = info["saturation"]["reason"]
            for name, saturated in verdicts.items():
                if all(saturated):  # rounds that disagree are no ground to leave rates out
                    self._stop(name, self.points[name][index], reasons[name])

    def order(self, point: PointSchedule, number: int) -> Order:
        """The order for one pass of a point."""
        return Order(
            command="pass",
            name=f"sweep-{point.index}-{number}",
            schedule_file=self.private / point.file_name,
            max_batch_tokens=point.point.max_batch_tokens,
            max_seconds=self.sweep.max_seconds,
            extra={"sweep": to_json(point.point), "round": number, "schedule_sha256": point.measured.sha256()},
        )

    def _skipped(self, name: str, point: PointSchedule) -> bool:
        return any(point.index in row["skipped"] for row in self._stopped.get(name, []))

    def _stop(self, name: str, at: PointSchedule, reason: str) -> None:
        """Leave the higher rates of the row out, and say so in launch.json."""
        higher = [p.index for p in self.points[name] if _row(p) == _row(at) and p.index > at.index]
        rows = self._stopped.setdefault(name, [])
        rows.append(
            {
                "point": at.index,
                "request_rate": at.point.request_rate,
                "skipped": higher,
                "reason": reason,
            }
        )
        self.note(name, {"sweep_stopped": {"reason": "; ".join(_sentence(row) for row in rows), "rows": rows}})


def _sentence(row: dict[str, Any]) -> str:
    number = len(row["skipped"])
    left_out = "it is the highest" if not number else f"{number} higher rate{'s' * (number > 1)} left out"
    return f"{row['request_rate']:g} requests/s is saturated, {left_out}: {row['reason']}"


def _row(point: PointSchedule) -> Row:
    """Points of a row differ in load alone."""
    return point.point.input_tokens, point.point.max_batch_tokens
