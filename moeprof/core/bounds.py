"""Bounds of numbers in a workload, with one wording for all errors."""

from __future__ import annotations

from moeprof.core.errors import WorkloadError


def at_least(low: float, **values: float | None) -> None:
    """Raise WorkloadError for a value below ``low`` or not finite; None passes."""
    for name, value in values.items():
        if value is not None and not low <= value < float("inf"):
            raise WorkloadError(f"{name}: found {value}; {low:g} or more is allowed")


def more_than_zero(**values: float | None) -> None:
    """Raise WorkloadError for a value of 0 or less or not finite; None passes."""
    for name, value in values.items():
        if value is not None and not 0 < value < float("inf"):
            raise WorkloadError(f"{name}: found {value}; more than 0 is allowed")
