"""Forward pre-hooks that are put on and taken off together; what replaces the router's picks is switched so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]


class SwitchableHooks:
    """Hooks on modules, off at first. They must go on before the tap's, which then sees what is executed.

    Args:
        hooks: modules and the hook that each gets.
    """

    def __init__(self, hooks: Sequence[tuple[nn.Module, Hook]]) -> None:
        self._hooks = tuple(hooks)
        self._handles: list[RemovableHandle] = []

    def enable(self) -> None:
        """Put the hooks on; nothing happens when they are."""
        if not self._handles:
            self._handles = [module.register_forward_pre_hook(hook) for module, hook in self._hooks]

    def close(self) -> None:
        """Take the hooks off: the model has its own routing back."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        """Hooks on inside, off outside."""
        self.enable()
        try:
            yield
        finally:
            self.close()
