"""What somebody put on a model's modules and did not take off: a wrapper of ``forward``, a torch hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def left_on(model: nn.Module) -> list[str]:
    """Each module with something on it, by its path: ``layers.0.experts: forward``."""
    from moeprof.capture.models.wrap import STATE

    return [
        f"{path}: {what}"
        for path, module in model.named_modules()
        for what in (STATE, "forward", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if module.__dict__.get(what)
    ]


def left_on_any(values: Mapping[str, object]) -> dict[str, list[str]]:
    """Of those values that are models: what is left on them, if anything."""
    from torch import nn

    found = {name: left_on(value) for name, value in values.items() if isinstance(value, nn.Module)}
    return {name: left for name, left in found.items() if left}
