"""Wrappers around a module's ``forward``, put on and taken off in any order: overrides outside, watchers inside.

Why no torch hooks: a hook sends every call of its module down torch's slow path (about 2 microseconds a call, 1.6 of
them for the machinery), and torch.compile does not guard on hooks, so one that goes on after the first compilation is
never called. A ``forward`` of the instance costs a fifth and is guarded on: on and off each get a compiled entry.

Wrappers of modules' forwards that are put on and taken off together; what replaces the router's picks is such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

Forward = Callable[..., Any]
Wrap = Callable[[Forward], Forward]
Role = Literal["override", "watch"]
STATE = "_moeprof_seam"


class _Seam:
    """The wrappers of one module. Watchers are next to the module's own code: they see what is executed."""

    def __init__(self, module: nn.Module) -> None:
        self.own: Forward | None = module.__dict__.get("forward")  # some libraries put one on the instance
        self.inner: Forward = module.forward
        self.wraps: dict[Role, list[Wrap]] = {"watch": [], "override": []}


class SeamHandle:
    """Takes one wrapper off again."""

    def __init__(self, module: nn.Module, role: Role, wrap: Wrap) -> None:
        self._module, self._role, self._wrap = module, role, wrap

    def remove(self) -> None:
        """Take it off; nothing happens the second time."""
        seam: _Seam | None = self._module.__dict__.get(STATE)
        if seam is not None and self._wrap in seam.wraps[self._role]:
            seam.wraps[self._role].remove(self._wrap)
            _rebuild(self._module, seam)


def put_on(module: nn.Module, role: Role, wrap: Wrap) -> SeamHandle:
    """Wrap the module's forward.

    Args:
        module: whose calls pass through.
        role: ``override`` changes arguments, ``watch`` looks at them; overrides come first, whoever was first here.
        wrap: makes the new forward from the inner one. It must be another object for every call of ``put_on``.
    """
    seam: _Seam | None = module.__dict__.get(STATE)
    if seam is None:
        seam = module.__dict__[STATE] = _Seam(module)
    seam.wraps[role].append(wrap)
    _rebuild(module, seam)
    return SeamHandle(module, role, wrap)


def plain_forward(module: nn.Module) -> Forward:
    """The module's forward without any of these wrappers."""
    seam: _Seam | None = module.__dict__.get(STATE)
    forward: Forward = module.forward if seam is None else seam.inner
    return forward


def _rebuild(module: nn.Module, seam: _Seam) -> None:
    forward = seam.inner
    for wrap in (*seam.wraps["watch"], *reversed(seam.wraps["override"])):
        forward = wrap(forward)
    module.__dict__.pop("forward", None)
    if forward is not seam.inner:
        module.__dict__["forward"] = forward
        return
    del module.__dict__[STATE]
    if seam.own is not None:
        module.__dict__["forward"] = seam.own


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
