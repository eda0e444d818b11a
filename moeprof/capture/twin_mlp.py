"""The dense MLP that stands in for a block of experts, of the same kind: gating, activation, bias, dtype.

The kind is read off the experts module itself. Its activation is taken over as it is (a clamp, an interleaved gate and
all), because it works on the last dimension whatever the width.
Suffix legend: E experts, I units of one expert, d model width, W units of the dense MLP.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moeprof.capture.moe_structure import MoeLayer
from moeprof.core.errors import UnsupportedModelError

Activation = Callable[[torch.Tensor], torch.Tensor]
_ACTIVATIONS = ("act_fn", "activation_fn", "act", "activation")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertKind:
    """What one expert of a layer is.

    Attributes:
        width: I, units of its hidden layer.
        model_dim: d, what goes in and comes out.
        gated: True when it has a gate beside the up projection, of the same width.
        has_bias: True when its projections add one.
        transposed: True when the weights lie as [E, in, out].
        activation: from [.., 2 I] (gated) or [.., I] to [.., I].
    """

    width: int
    model_dim: int
    gated: bool
    has_bias: bool
    transposed: bool
    activation: Activation

    @property
    def params_per_unit(self) -> int:
        """Weights of one unit: a row of up (and gate), a column of down; biases of up and gate."""
        matrices = 3 if self.gated else 2
        return matrices * self.model_dim + (matrices - 1 if self.has_bias else 0)


class TwinMlp(nn.Module):
    """``down(activation(up(x)))``, gate and up in one matrix like the experts have them.

    Args:
        kind: of the experts that it replaces.
        width: W.
        num_returned: what the replaced module's forward returned: 1 for a tensor, n for a tuple (the rest is None).
    """

    def __init__(self, kind: ExpertKind, width: int, *, num_returned: int = 1) -> None:
        super().__init__()
        # Experts that share a matrix with their gate are one product here too, so that the kernels are alike.
        self.up_proj = nn.Linear(kind.model_dim, (2 if kind.gated else 1) * width, bias=kind.has_bias)
        self.down_proj = nn.Linear(width, kind.model_dim, bias=kind.has_bias)
        self._activate = kind.activation
        self._num_returned = num_returned
        # Of the standard deviation of its weights: a wide MLP sums more units than one expert does.
        self.down_scale = (kind.width / width) ** 0.5

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Hidden states first; whatever else the block was given (picks, a router's state) is not needed."""
        hidden = args[0] if args else next(iter(kwargs.values()))
        out = self.down_proj(self._activate(self.up_proj(hidden)))
        return out if self._num_returned == 1 else (out, *(None,) * (self._num_returned - 1))


class NoRouter(nn.Module):
    """Stands where a router was, for a block whose own code stays: returns as many values, all None."""

    def __init__(self, num_returned: int) -> None:
        super().__init__()
        self._returned = None if num_returned == 1 else (None,) * num_returned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing is routed."""
        return self._returned


def read_kind(layer: MoeLayer, model_name: str) -> ExpertKind:
    """What the experts of a layer are.

    Raises:
        UnsupportedModelError: their form is not understood, so that a dense MLP "of the same kind" cannot be built.
    """
    experts: Any = layer.experts
    if type(layer.block).__name__ in ("JetMoeMoE", "JetMoeMoA"):
        raise refusal(model_name, layer, "a JetMoE also has experts in its attention, which no dense MLP replaces")
    if getattr(experts, "has_post_expert_norm", False):
        raise refusal(model_name, layer, "each expert has a norm of its own behind it")
    stacked = {name: p for name, p in experts.named_parameters(recurse=False) if p.ndim == 3}
    up = stacked.get("gate_up_proj", stacked.get("up_proj"))
    if up is not None and "down_proj" in stacked:
        return _stacked_kind(layer, model_name, experts, up, stacked["down_proj"])
    glu = getattr(experts, "mlp", None)
    if glu is not None and all(getattr(glu, name, None) is not None for name in ("w1", "v1", "w2")):
        return _flat_kind(layer, model_name, glu)
    found = ", ".join(name for name, _ in experts.named_parameters()) or "no parameters"
    raise refusal(model_name, layer, f"neither gate_up_proj nor up_proj beside down_proj was found, but {found[:120]}")


def refusal(model_name: str, layer: MoeLayer, why: str) -> UnsupportedModelError:
    """One line: which model, which module, why."""
    return UnsupportedModelError(
        f"model {model_name}: no dense twin of {layer.name} ({type(layer.experts).__name__}) can be built: {why}; "
        "leave the twin out"
    )


def _stacked_kind(layer: MoeLayer, model_name: str, experts: Any, up: torch.Tensor, down: torch.Tensor) -> ExpertKind:
    gated = "gate_up_proj" in experts._parameters
    rows = 2 if gated else 1
    straight = up.shape[2] == down.shape[1] and up.shape[1] == rows * down.shape[2]
    turned = up.shape[1] == down.shape[2] and up.shape[2] == rows * down.shape[1]
    transposed = bool(getattr(experts, "is_transposed", turned and not straight))
    if not (turned if transposed else straight):
        raise refusal(model_name, layer, f"weights of shapes {tuple(up.shape)} and {tuple(down.shape)} do not belong")
    return ExpertKind(
        width=int(down.shape[1] if transposed else down.shape[2]),
        model_dim=int(up.shape[1] if transposed else up.shape[2]),
        gated=gated,
        has_bias=any(name.endswith("bias") for name, _ in experts.named_parameters(recurse=False)),
        transposed=transposed,
        activation=_activation(layer, model_name, experts, gated=gated),
    )


def _flat_kind(layer: MoeLayer, model_name: str, glu: Any) -> ExpertKind:
    """Weights [E * I, d], down transposed (dbrx)."""
    rows, model_dim = glu.w1.shape
    return ExpertKind(
        width=rows // layer.num_experts,
        model_dim=model_dim,
        gated=True,
        has_bias=False,
        transposed=False,
        activation=_activation(layer, model_name, glu, gated=True),
    )


def _activation(layer: MoeLayer, model_name: str, experts: Any, *, gated: bool) -> Activation:
    """The experts' own activation, with nothing of their weights left in memory."""
    own = next((getattr(experts, name) for name in _ACTIVATIONS if callable(getattr(experts, name, None))), None)
    if gated and hasattr(experts, "_apply_gate"):
        shell = copy.copy(experts)
        shell.__dict__ = {**experts.__dict__, "_parameters": {}}
        gate: Activation = shell._apply_gate
        return gate
    if own is None:
        raise refusal(model_name, layer, "its activation function was not found")
    if not gated:
        plain: Activation = own
        return plain

    def default_gate(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        product: torch.Tensor = own(gate) * up
        return product

    return default_gate


def num_returned(module: nn.Module) -> int | None:
    """How many values a module's forward returns, read from its code; None when the code cannot be read.

    Several returns must agree; ``return a`` counts as one.
    """
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(type(module).forward)))
    except (OSError, TypeError):
        return None
    function = ast.parse(source).body[0]
    found = {len(node.value.elts) if isinstance(node.value, ast.Tuple) else 1 for node in _returns(function)}
    return found.pop() if len(found) == 1 else None


def _returns(node: ast.AST) -> list[ast.Return]:
    """Return statements of a function, those of functions inside it left out."""
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            found.append(child)
        elif not isinstance(child, (ast.FunctionDef, ast.Lambda, ast.AsyncFunctionDef)):
            found += _returns(child)
    return found
