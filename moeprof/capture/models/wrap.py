"""The one way onto a module: wrappers around its ``forward``, put on and taken off in any order.

From inside to outside: a ``kernel`` computes instead of the module's own code, a ``mirror`` tells other ranks to make
the same call, a ``watch`` looks at what is executed, an ``override`` changes the arguments, a ``probe`` looks at what
the model asked for. The first two are how the module runs; the others come and go.

Why no torch hooks: a hook sends every call of its module down torch's slow path (about 2 microseconds a call, 1.6 of
them for the machinery), and torch.compile does not guard on hooks, so one that goes on after the first compilation is
never called. A ``forward`` of the instance costs a fifth and is guarded on: on and off each get a compiled entry.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

Forward = Callable[..., Any]
Wrap = Callable[[Forward], Forward]
Role = Literal["kernel", "mirror", "watch", "override", "probe"]  # from inside to outside
ROLES: tuple[Role, ...] = get_args(Role)
OWN: tuple[Role, ...] = ("kernel", "mirror")
STATE = "_moeprof_wrappers"


class _Wrappers:
    """The wrappers of one module."""

    def __init__(self, module: nn.Module) -> None:
        self.own: Forward | None = module.__dict__.get("forward")  # some libraries put one on the instance
        self.inner: Forward = module.forward
        self.of: dict[Role, list[Wrap]] = {role: [] for role in ROLES}

    def forward(self, roles: Sequence[Role]) -> Forward:
        """The module's own code inside of these roles; in an override's role the first one put on is outermost."""
        forward = self.inner
        for role in roles:
            for wrap in reversed(self.of[role]) if role == "override" else self.of[role]:
                forward = wrap(forward)
        return forward


class WrapHandle:
    """Takes one wrapper off again."""

    def __init__(self, module: nn.Module, role: Role, wrap: Wrap) -> None:
        self._module, self._role, self._wrap = module, role, wrap

    def remove(self) -> None:
        """Take it off; nothing happens the second time."""
        state: _Wrappers | None = self._module.__dict__.get(STATE)
        if state is not None and self._wrap in state.of[self._role]:
            state.of[self._role].remove(self._wrap)
            _rebuild(self._module, state)


def put_on(module: nn.Module, role: Role, wrap: Wrap) -> WrapHandle:
    """Wrap the module's forward.

    Args:
        module: whose calls pass through.
        role: what the wrapper is, which decides where it stands.
        wrap: makes the new forward from the inner one. It must be another object for every call of ``put_on``.
    """
    state: _Wrappers | None = module.__dict__.get(STATE)
    if state is None:
        state = module.__dict__[STATE] = _Wrappers(module)
    state.of[role].append(wrap)
    _rebuild(module, state)
    return WrapHandle(module, role, wrap)


def take_off(module: nn.Module, role: Role) -> None:
    """Take off all wrappers of a role, whoever put them on."""
    state: _Wrappers | None = module.__dict__.get(STATE)
    if state is not None and state.of[role]:
        state.of[role].clear()
        _rebuild(module, state)


def plain_forward(module: nn.Module) -> Forward:
    """The module as it runs when nobody looks and nobody overrides: with its kernel, and mirrored to other ranks."""
    state: _Wrappers | None = module.__dict__.get(STATE)
    return module.forward if state is None else state.forward(OWN)


def _uncompiled(look: Any) -> Any:
    disable: Any = torch.compiler.disable  # not annotated in torch
    return disable(look)


def before(look: Callable[[tuple[Any, ...]], object]) -> Wrap:
    """A wrapper that shows the positional arguments of each call; what looks is no part of a compiled layer."""
    look = _uncompiled(look)

    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            look(args)
            return inner(*args, **kwargs)

        return forward

    return wrap


def after(look: Callable[[Any], object]) -> Wrap:
    """A wrapper that shows the output of each call; what looks is no part of a compiled layer."""
    look = _uncompiled(look)

    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            look(output)
            return output

        return forward

    return wrap


def _rebuild(module: nn.Module, state: _Wrappers) -> None:
    module.__dict__.pop("forward", None)
    if any(state.of.values()):
        module.__dict__["forward"] = state.forward(ROLES)
        return
    del module.__dict__[STATE]
    if state.own is not None:
        module.__dict__["forward"] = state.own
