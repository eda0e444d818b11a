"""A twin's MLPs made of the experts that the router uses most."""

from __future__ import annotations

from typing import Any

from moeprof.capture.twins import Twin
from moeprof.core.errors import UnsupportedModelError
from moeprof.core.trace import Schedule
from moeprof.core.workload import ModelSpec


def popular_twin(model: Any, spec: ModelSpec, warmup: Schedule | None) -> Twin:
    """Replace the experts of a loaded MoE by an MLP of its most used experts.

    Raises:
        UnsupportedModelError: always, so far.
    """
    raise UnsupportedModelError(f"model {spec.name}: initialise: popular_experts is being built")
