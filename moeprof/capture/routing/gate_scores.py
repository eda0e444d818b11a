"""How near each token's routing was to another choice: margins of the gate's selection scores.

A margin is the lowest score among the chosen experts less the highest among the others: p_(k) - p_(k+1), where the
scores' top-k is what was executed. Which scores a gate selects by is not told by its code in one form: logits, softmax
or sigmoid, with or without a correction bias. So every floating tensor [T, E] that a module of the block gives is tried
in each form, and one form is taken for all layers: that which gives the executed picks in most layers and is in
proportion to the weights that the model gives to its picks. Group limits, hash routing and overrides are given by no
form; those layers have no margin. Suffix legend: T tokens, L MoE layers, W ids that a gate chooses from, K top-k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moeprof.capture.models.moe_layers import MoeLayer
from moeprof.capture.models.wrap import Wrap, after, before, put_on

REPRODUCED_RATIO = 0.999  # of a layer's tokens whose picks the scores must give
PROPORTIONAL = 0.03  # bfloat16 weights are off by 0.8 % at most
FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda x: x.softmax(-1),
    "sigmoid": lambda x: x.sigmoid(),
    "as given": lambda x: x,
    "sqrt softplus": lambda x: nn.functional.softplus(x).sqrt(),
}
FloatArray = npt.NDArray[np.float32]
# (module within the block, number of its output, form, name of a bias or "")
Form = tuple[str, int, str, str]


@dataclass(slots=True, kw_only=True)
class _Tried:
    """One form in one layer: a part per forward.

    Attributes:
        margins: shape [T] each; negative where the form does not give the picks.
        evidence: shape [T] each: for K > 1 how far weights are from proportional to scores, for K = 1 their ratio.
        given_as_shares: the tensor itself lies on the simplex.
    """

    margins: list[FloatArray]
    evidence: list[FloatArray]
    given_as_shares: bool = True


class GateScores:
    """Watches the gates of all layers during plain forwards of one sequence each; a context manager of its probes."""

    def __init__(self, layers: Sequence[MoeLayer]) -> None:
        self._layers = tuple(layers)
        self._tokens = 0
        self._seen: list[dict[tuple[str, int], torch.Tensor]] = [{} for _ in layers]
        self._weights: list[torch.Tensor | None] = [None] * len(layers)
        self._tried: list[dict[Form, _Tried]] = [{} for _ in layers]
        self._total = 0
        self._probes = ExitStack()

    def __enter__(self) -> GateScores:
        for index, layer in enumerate(self._layers):
            for name, module in _gate_modules(layer):
                self._probe(module, after(self._keep(index, name, _widths(layer))))
            if layer.hook == "experts_arguments":
                self._probe(layer.experts, before(self._keep_weights(index)))
        return self

    def __exit__(self, *exception: object) -> None:
        self._probes.close()

    def _probe(self, module: nn.Module, wrap: Wrap) -> None:
        self._probes.callback(put_on(module, "probe", wrap).remove)

    def expect(self, tokens: int) -> None:
        """Say how many tokens the coming forward holds."""
        self._tokens = tokens
        for index, seen in enumerate(self._seen):
            seen.clear()
            self._weights[index] = None

    def add(self, index: int, picks_TK: torch.Tensor) -> None:
        """Try every form on one layer of the forward that just ran.

        Args:
            index: of the layer.
            picks_TK: what it executed; -1 where a pick stands for no expert.
        """
        layer = self._layers[index]
        picks = picks_TK.long()
        if layer.skips_zero_weight:
            picks = torch.where(picks < 0, layer.num_experts, picks)  # the router's class beyond its experts
        weights = self._weights[index]
        whole = {key: scores for key, scores in self._seen[index].items() if int(picks.max()) < scores.shape[1]}
        for key, scores in list(whole.items()):
            others = scores.scatter(1, picks, 0.0)
            if bool(((others == 0) | others.isneginf()).all()):  # zero but for the picks: no scores but weights
                weights = scores.gather(1, picks) if weights is None else weights
                del whole[key]
        for (name, number), scores in whole.items():
            biases = _biases(layer, scores.shape[1])
            for form, function in FORMS.items():
                self._try(index, (name, number, form), function(scores), biases, picks, weights, _is_shares(scores))

    def _try(
        self,
        index: int,
        key: tuple[str, int, str],
        scores_TW: torch.Tensor,
        biases: dict[str, torch.Tensor],
        picks_TK: torch.Tensor,
        weights_TK: torch.Tensor | None,
        is_shares: bool,
    ) -> None:
        evidence = _host(_proportion(scores_TW.gather(1, picks_TK), weights_TK))
        for bias_name, bias in ({"": None} | biases).items():
            tried = self._tried[index].setdefault((*key, bias_name), _Tried(margins=[], evidence=[]))
            tried.margins.append(_host(_margins(scores_TW if bias is None else scores_TW + bias, picks_TK)))
            tried.evidence.append(evidence)
            tried.given_as_shares &= is_shares

    def margins(self, tokens: int) -> FloatArray:
        """Margins of all that was added, shape [tokens, L]; NaN in layers that the chosen form does not explain."""
        found = np.full((tokens, len(self._layers)), np.nan, dtype=np.float32)
        form = self._chosen(tokens)
        for index in range(len(self._layers)):
            if form is not None and self._share(index, form, tokens) >= REPRODUCED_RATIO:
                column = np.concatenate(self._tried[index][form].margins)
                found[:, index] = np.where(column >= 0, column, np.nan)
        return found

    def _share(self, index: int, form: Form, tokens: int) -> float:
        tried = self._tried[index].get(form)
        margins = np.concatenate(tried.margins) if tried is not None else np.empty(0)
        return float((margins >= 0).mean()) if len(margins) == tokens > 0 else 0.0

    def _chosen(self, tokens: int) -> Form | None:
        """The form of all layers."""
        best: tuple[tuple[float, ...], Form] | None = None
        order = list(FORMS)
        for form in sorted({form for tried in self._tried for form in tried}):
            shares = [self._share(index, form, tokens) for index in range(len(self._layers))]
            explained = [index for index, share in enumerate(shares) if share >= REPRODUCED_RATIO]
            if not explained:
                continue
            told = [self._tried[index][form] for index in explained]
            off = float(
                np.median([_spread(tried, self._layers[i].top_k) for i, tried in zip(explained, told, strict=True)])
            )
            as_given = form[2] == "as given" and all(tried.given_as_shares for tried in told)
            rank = -1 if as_given else order.index(form[2])
            proportional = off <= PROPORTIONAL
            key = (-len(explained), not proportional, -sum(shares), off if proportional else 0.0, rank, bool(form[3]))
            if best is None or key < best[0]:
                best = (key, form)
        return None if best is None else best[1]

    def _keep(self, index: int, name: str, widths: frozenset[int]) -> Callable[[Any], None]:
        def look(output: Any) -> None:
            for number, tensor in enumerate(_tensors(output)):
                if tensor.shape[-1] in widths and tensor.numel() == self._tokens * tensor.shape[-1]:
                    self._seen[index][name, number] = tensor.detach().reshape(self._tokens, -1).float()

        return look

    def _keep_weights(self, index: int) -> Callable[[tuple[Any, ...]], None]:
        def look(args: tuple[Any, ...]) -> None:
            if len(args) > 2 and args[2].shape == args[1].shape:
                self._weights[index] = args[2].detach().float()

        return look


def _gate_modules(layer: MoeLayer) -> Iterable[tuple[str, nn.Module]]:
    inside = {id(module) for module in layer.experts.modules()} if layer.experts is not layer.block else set()
    for name, module in layer.block.named_modules():
        if module is not layer.block and id(module) not in inside:
            yield name, module


def _widths(layer: MoeLayer) -> frozenset[int]:
    """Ids that a gate may choose from: experts, identity experts too, a class for "no expert"."""
    return frozenset(
        {layer.num_experts, layer.num_experts + layer.num_identity, layer.num_experts + layer.skips_zero_weight}
    )


def _biases(layer: MoeLayer, width: int) -> dict[str, torch.Tensor]:
    """Vectors of the block with one value per id."""
    found: dict[str, torch.Tensor] = {}
    for prefix, module in _gate_modules(layer):
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.numel() == width and tensor.is_floating_point():
                found[f"{prefix}.{name}"] = tensor.detach().float().reshape(-1)
    for name, tensor in (*layer.block.named_parameters(recurse=False), *layer.block.named_buffers(recurse=False)):
        if tensor.numel() == width and tensor.is_floating_point():
            found[name] = tensor.detach().float().reshape(-1)
    return found


def _tensors(output: Any) -> list[torch.Tensor]:
    items = output if isinstance(output, (tuple, list)) else (output,)
    return [item for item in items if isinstance(item, torch.Tensor) and item.is_floating_point() and item.ndim]


def _margins(scores_TW: torch.Tensor, picks_TK: torch.Tensor) -> torch.Tensor:
    """Lowest chosen less highest other, shape [T]; NaN where nothing is left to choose."""
    chosen = scores_TW.gather(1, picks_TK).amin(dim=1)
    others = scores_TW.scatter(1, picks_TK, float("-inf")).amax(dim=1)
    return torch.where(others.isneginf(), torch.nan, chosen - others)


def _proportion(chosen_TK: torch.Tensor, weights_TK: torch.Tensor | None) -> torch.Tensor:
    """Of weights to scores: largest over smallest within a token, less 1; for K = 1 the ratio itself. Shape [T]."""
    if weights_TK is None:
        return torch.full((len(chosen_TK),), torch.nan, device=chosen_TK.device)
    ratios = torch.where((chosen_TK > 0) & (weights_TK > 0), weights_TK / chosen_TK, torch.nan)
    return ratios[:, 0] if ratios.shape[1] == 1 else ratios.amax(dim=1) / ratios.amin(dim=1) - 1


def _spread(tried: _Tried, top_k: int) -> float:
    """How far weights are from proportional to scores in the middle token; infinite where nothing tells."""
    evidence = np.concatenate(tried.evidence)
    if not np.isfinite(evidence).mean() > 0.5:
        return float("inf")
    if top_k > 1:
        return float(np.nanmedian(evidence))
    low, high = np.nanquantile(evidence, [0.25, 0.75])
    return float(high / low - 1)


def _is_shares(scores_TW: torch.Tensor) -> bool:
    return bool((scores_TW >= 0).all()) and bool(((scores_TW.sum(dim=1) - 1).abs() < 0.02).all())


def _host(values: torch.Tensor) -> FloatArray:
    return values.float().cpu().numpy()
