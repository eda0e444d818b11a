"""Wrappers of modules' forwards that are put on and taken off together; what replaces the router's picks is such."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from moeprof.capture.forward_seam import SeamHandle, Wrap, put_on


class SwitchableHooks:
    """Overrides on modules, off at first. Watchers see what these make of the arguments, whoever was first.

    Args:
        hooks: modules and the wrapper that each gets.
    """

    def __init__(self, hooks: Sequence[tuple[nn.Module, Wrap]]) -> None:
        self._hooks = tuple(hooks)
        self._handles: list[SeamHandle] = []

    @property
    def enabled(self) -> bool:
        """True while they are on."""
        return bool(self._handles)

    def enable(self) -> None:
        """Put them on; nothing happens when they are."""
        if not self._handles:
            self._handles = [put_on(module, "override", wrap) for module, wrap in self._hooks]

    def close(self) -> None:
        """Take them off: the model has its own routing back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """On inside, off outside."""
        self.enable()
        try:
            yield
        finally:
            self.close()
