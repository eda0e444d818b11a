"""Dense twins: the same network with every MoE block replaced by one dense MLP of the same kind.

Blocks, experts, routers and shared experts are found by structure. Where the block holds nothing but these, the whole
block becomes one MLP, the shared experts' width folded in. Where it holds more (a norm, projections around the experts,
or the block is the decoder layer itself) its own code stays: the experts become the MLP, the router an empty module,
and shared experts stay what they are, a dense MLP beside it. The kind (gating, activation, bias, dtype) is read off the
experts module; its activation is taken over as it is (a clamp, an interleaved gate and all), because it works on the
last dimension whatever the width.
Width of a multiple such as 0.5x: rounded to the nearest multiple of 8 where the active width is one, else to a unit.
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

from moeprof.capture import compat
from moeprof.capture.models.moe_layers import MoeLayer, find_moe_layers
from moeprof.capture.models.parameters import parameter_groups
from moeprof.capture.models.shapes import EXPERT_COUNT_KEYS
from moeprof.core.errors import ModelError, UnsupportedModelError
from moeprof.core.model_facts import TwinFacts
from moeprof.core.workload.models import ModelSpec

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


ALIGNMENT = 8
TOLERANCE = 0.005  # of the parameters aimed at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TwinLayer:
    """What becomes of one MoE layer.

    Attributes:
        layer: the layer.
        kind: of its experts.
        routers: its router's modules.
        shared: its shared experts.
        shared_gate: a gate of the shared experts, which a dense MLP does not have.
        shared_width: units of the shared experts.
        keeps_block: True when the block's own code stays.
    """

    layer: MoeLayer
    kind: ExpertKind
    routers: tuple[nn.Module, ...]
    shared: tuple[nn.Module, ...]
    shared_gate: nn.Module | None
    shared_width: int
    keeps_block: bool

    @property
    def active_width(self) -> int:
        """Of k experts and the shared ones."""
        return self.layer.top_k * self.kind.width + self.shared_width

    @property
    def total_width(self) -> int:
        """Of all experts and the shared ones."""
        return self.layer.num_experts * self.kind.width + self.shared_width

    def width(self, match: str) -> int:
        """Units of the twin's MLP, shared experts included."""
        if match == "active":
            return self.active_width
        if match == "total":
            return self.total_width
        if not match.endswith("x"):
            return int(match)
        exact = float(match[:-1]) * self.active_width
        step = ALIGNMENT if self.active_width % ALIGNMENT == 0 else 1
        return max(step, step * round(exact / step))

    def target_params(self, match: str) -> int:
        """Parameters that the MLP should have: those of the experts that it stands for, folded ones included."""
        experts = {"active": self.layer.top_k, "total": self.layer.num_experts}.get(match, 1)
        exact = float(match[:-1]) * self.active_width if match.endswith("x") else self.width(match)
        units = round(exact) - (self.shared_width if self.keeps_block else 0)
        # Each expert adds a bias to its output; the twin's MLP adds one.
        return units * self.kind.params_per_unit + (experts * self.kind.model_dim if self.kind.has_bias else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A twin that was built.

    Attributes:
        facts: how it relates to its MoE.
        notes: what a reader should know.
    """

    facts: TwinFacts
    notes: tuple[str, ...]


def read_layers(model: nn.Module, spec: ModelSpec) -> tuple[TwinLayer, ...]:
    """What each MoE layer of a model would become.

    Raises:
        ModelError: the model is dense.
        UnsupportedModelError: no dense MLP of the same kind exists for its experts.
    """
    layers = find_moe_layers(model)
    if not layers:
        raise ModelError(
            f"model {spec.name}: twin_of {spec.twin_of}, but that is a dense model ({type(model).__name__} has no "
            "routed experts); a twin needs an MoE"
        )
    groups = parameter_groups(model)
    return tuple(_read_layer(model, layer, groups, spec) for layer in layers)


def replace_experts(model: Any, layers: tuple[TwinLayer, ...], spec: ModelSpec) -> None:
    """Turn a model into its dense twin, on the meta device or a real one; the new weights are not drawn yet.

    Raises:
        ModelError: the asked width is smaller than what has to stay beside it.
        UnsupportedModelError: a module's code does not tell what it returns.
    """
    assert spec.match is not None
    for layer in layers:
        _replace(model, layer, layer.width(spec.match), spec)
    _forget_experts(model)


def describe_twin(model: nn.Module, layers: tuple[TwinLayer, ...], spec: ModelSpec) -> Twin:
    """What a twin became, once its tied weights are tied."""
    assert spec.match is not None and spec.twin_of is not None
    mlps = sum(p.numel() for mlp in twin_mlps(model) for p in mlp.parameters())
    params, first = sum(p.numel() for p in model.parameters()), layers[0]
    facts = TwinFacts(
        of=spec.twin_of,
        match=spec.match,
        width=first.width(spec.match),
        active_width=first.active_width,
        total_width=first.total_width,
        target_params=params - mlps + sum(layer.target_params(spec.match) for layer in layers),
        initialise=spec.initialise,
    )
    return Twin(facts=facts, notes=tuple(_notes(facts, layers, params)))


def twin_mlps(model: nn.Module) -> list[TwinMlp]:
    """The MLPs that stand for experts, in module order."""
    return [module for module in model.modules() if isinstance(module, TwinMlp)]


def draw_weights(model: nn.Module, spec: ModelSpec, *, residual_scale: float = 1.0) -> None:
    """Random weights for a twin's MLPs, drawn on the device in the dtype; the same ones in every launch.

    The output projection is drawn narrower, by the square root of how much wider the MLP is than one expert: what it
    adds to the residual stream has the size of one expert's output, whatever the width.

    Args:
        model: with the twin's MLPs in place.
        spec: of the twin; its name and width are the seed.
        residual_scale: of the output projections beside that; below 1 where the rest of the model is random too.
    """
    config: Any = getattr(model, "config", None)
    std = float(getattr(config.get_text_config(decoder=True), "initializer_range", None) or 0.02)
    generator = torch.Generator(device=next(model.parameters()).device)
    generator.manual_seed(int.from_bytes(f"{spec.name}/{spec.match}".encode(), "little") % 2**63)
    with torch.no_grad():
        for mlp in twin_mlps(model):
            mlp.up_proj.weight.normal_(0.0, std, generator=generator)
            mlp.down_proj.weight.normal_(0.0, std * mlp.down_scale * residual_scale, generator=generator)
            for linear in (mlp.up_proj, mlp.down_proj):
                if linear.bias is not None:
                    linear.bias.zero_()


def _read_layer(model: nn.Module, layer: MoeLayer, groups: dict[str, str], spec: ModelSpec) -> TwinLayer:
    kind = read_kind(layer, spec.name)
    routers, shared, gate, extra = [], [], None, False
    for attribute, child in layer.block.named_children():
        inside = {groups.get(f"{layer.name}.{attribute}.{name}") for name, _ in child.named_parameters()} - {None}
        if child is layer.experts:
            continue
        if inside == {"router"}:
            routers.append(child)
        elif inside == {"shared_experts"}:
            shared.append(child)
        elif isinstance(child, nn.Linear) and child.out_features == 1:
            gate = child
        elif inside:
            extra = True
    own = {groups.get(f"{layer.name}.{name}") for name, _ in layer.block.named_parameters(recurse=False)}
    width, is_whole = _shared_width(model, kind, shared)
    return TwinLayer(
        layer=layer,
        kind=kind,
        routers=tuple(routers),
        shared=tuple(shared),
        shared_gate=gate,
        shared_width=width,
        keeps_block=extra or not is_whole or bool(own - {"router"}),
    )


def _shared_width(model: nn.Module, kind: ExpertKind, shared: list[nn.Module]) -> tuple[int, bool]:
    """Units of the shared experts, and whether they are whole units of the routed ones' kind."""
    config: Any = model.config
    model_dim = int(getattr(config.get_text_config(decoder=True), "hidden_size", None) or kind.model_dim)
    weights = sum(p.numel() for module in shared for p in module.parameters() if p.ndim >= 2)
    width, rest = divmod(weights, (3 if kind.gated else 2) * model_dim)
    biases = any(p.ndim == 1 for module in shared for p in module.parameters())
    return width, not shared or (rest == 0 and model_dim == kind.model_dim and biases == kind.has_bias)


def _replace(model: nn.Module, twin: TwinLayer, width: int, spec: ModelSpec) -> None:
    layer, kind = twin.layer, twin.kind
    width -= twin.shared_width if twin.keeps_block else 0
    if width < 1:
        raise ModelError(
            f"model {spec.name}: match {spec.match} is narrower than the shared experts of {layer.name} "
            f"({twin.shared_width} units), which stay; ask for more"
        )
    if twin.keeps_block and any(_needs_more(module) for module in twin.shared):
        raise refusal(spec.name, layer, "its router also weighs its shared experts, which would stay without one")
    old = layer.experts if twin.keeps_block else layer.block
    returned = 1 if twin.keeps_block else num_returned(old)
    if returned is None:
        raise refusal(spec.name, layer, f"what {type(old).__name__}.forward returns is not told by its code")
    weight = next(layer.experts.parameters())
    with torch.device(weight.device):
        new = TwinMlp(kind, width, num_returned=returned).to(weight.dtype).eval()
    _swap(model, old, new)
    if not twin.keeps_block:
        return
    for router in twin.routers:
        values = num_returned(router)
        if values is None:
            raise refusal(spec.name, layer, f"what {type(router).__name__}.forward returns is not told by its code")
        _swap(model, router, NoRouter(values))


def _needs_more(module: nn.Module) -> bool:
    """True when forward takes more than hidden states."""
    parameters = inspect.signature(module.forward).parameters.values()
    return sum(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters) > 1


def _swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``old`` stands; a module can have several names."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is old:
                module._modules[name] = new


def _forget_experts(model: Any) -> None:
    """Nothing of the configuration speaks of experts any more, or the twin would be taken for an MoE."""
    for config in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
        for key in EXPERT_COUNT_KEYS:
            if isinstance(getattr(config, key, None), int):
                setattr(config, key, 0)
        if getattr(config, "output_router_logits", None):
            config.output_router_logits = False
        compat.forget_experts_of(config)


def _notes(facts: TwinFacts, layers: tuple[TwinLayer, ...], params: int) -> list[str]:
    notes = [f"a dense twin of {facts.of}: every MoE block is one MLP of {facts.width} units"]
    if facts.initialise == "random":
        notes.append("its MLPs hold random weights: speed and cost are measured, not quality")
    if any(layer.keeps_block and layer.shared for layer in layers):
        notes.append("its shared experts stay a dense MLP of their own, because their block holds more than experts")
    off = params - facts.target_params
    if off:
        share = abs(off) / facts.target_params
        word = "more" if off > 0 else "fewer"
        notes.append(f"{abs(off)} parameters {word} than aimed at ({share:.2%}): biases and rounding of the width")
    return notes


def check_unquantised(config: Any, spec: ModelSpec) -> None:
    """Quantised experts have no plain dense counterpart.

    Raises:
        UnsupportedModelError: the config names a quantisation.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(
            f"model {spec.name}: the weights of {spec.twin_of} are quantised; a dense MLP of the same kind and dtype "
            "cannot be built from them; use an unquantised checkpoint, or leave the twin out"
        )
