"""What is measured once a launch, after its rounds: one row each, and one function in a file of its own.

The parent reads which of them are owed, the worker runs them by their names, ``instruments`` of the workload switches
them off, and launch.json holds each result under its key. A result is what JSON can hold; ``{"reason": ...}`` says why
there is none. No torch here: functions are named by text and imported in the worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from moeprof.core.errors import WorkloadError
from moeprof.core.workload.workload import Instruments

if TYPE_CHECKING:
    from moeprof.capture.instrumented import Launched


MODULE, ROUTING = frozenset({"module"}), frozenset({"routing"})  # what an engine may offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row.

    Attributes:
        name: under ``instruments`` of the workload.
        key: in launch.json.
        title: what the worker is at, for people.
        run: ``module:function``; the function takes what :class:`moeprof.capture.instrumented.Launched` holds.
        needs: what the engine must offer; where it lacks one, the result is the reason.
        every_launch: False measures in the first launch only: what another process would find again.
    """

    name: str
    key: str
    title: str
    run: str
    needs: frozenset[str] = MODULE
    every_launch: bool = False

    def measure(self, launched: Launched) -> Any:
        """Run it; its result, or why there is none."""
        reasons = (launched.model.why_not(need) for need in sorted(self.needs))
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is not None:
            return {"reason": reason}
        module, _, function = self.run.partition(":")
        return getattr(import_module(module), function)(launched)


_HERE = "moeprof.capture.measure"

MEASUREMENTS: tuple[Measurement, ...] = (
    Measurement(name="gap", key="gap", title="where a step goes", run=f"{_HERE}.breakdown:measure"),
    Measurement(name="quality", key="quality", title="quality", run=f"{_HERE}.quality:measure"),
    Measurement(
        name="forced_picks", key="forced_picks", title="picks of forced tokens", needs=MODULE | ROUTING,
        run=f"{_HERE}.teacher_forced:measure",
    ),
    Measurement(
        name="overhead", key="overhead_pairs", title="overhead", needs=frozenset({"steps"}), every_launch=True,
        run=f"{_HERE}.overhead:measure",
    ),
)  # fmt: skip


def measurement(name: str) -> Measurement:
    """The row of a name."""
    return next(row for row in MEASUREMENTS if row.name == name)


def owed(instruments: Instruments, launch: int) -> list[Measurement]:
    """What a launch has to measure after its rounds, in order."""
    return [row for row in MEASUREMENTS if instruments.wants(row.name) and (row.every_launch or launch == 0)]


def check_skipped(instruments: Instruments) -> None:
    """Refuse names under ``instruments.skip`` that are none.

    Raises:
        WorkloadError: the name, and those that there are.
    """
    names = [row.name for row in MEASUREMENTS]
    unknown = next((name for name in instruments.skip or () if name not in names), None)
    if unknown is not None:
        raise WorkloadError(f"instruments.skip: {unknown!r} is no measurement; there are {', '.join(names)}")
