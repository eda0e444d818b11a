"""Random weights of one rank's part: each module is drawn whole, as on one device, and this rank's share is kept.

Seeds belong to modules and not to devices (random_weights.py), so the ranks together hold exactly the model that one
device would have. At its worst a rank needs its own part and one whole module, for a Mixtral layer 2.8 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from moeprof.capture.random_weights import module_seed, random_model


def draw_part(outline: Any, plan: Any, device: torch.device, *, seed: int, name: str) -> Any:
    """Cut a model without memory by ``plan``, then draw it.

    Args:
        outline: the whole model on the meta device; it is used up.
        plan: transformers' DistributedConfig; the group is joined.
        device: of this rank.
        seed: same seed, same weights, on any number of ranks.
        name: what messages call the model.
    """

    def cut(model: Any) -> None:
        config, _, mesh = type(model).prepare_distribute_model(plan)
        type(model).maybe_distribute_model(model, config, mesh)

    std = float(getattr(outline.config.get_text_config(decoder=True), "initializer_range", None) or 0.02)
    return random_model(
        lambda: outline, device, seed=seed, name=name, reshape=cut, around_module=_drawn_whole(seed, std)
    )


def _drawn_whole(seed: int, std: float) -> Callable[[str, nn.Module], AbstractContextManager[None]]:
    """While a module's class gives its weights values, they stand there whole; what is left of them is the share."""

    @contextmanager
    def around(path: str, module: nn.Module) -> Iterator[None]:
        parts: dict[str, Any] = {k: part for k, part in module._parameters.items() if isinstance(part, DTensor)}
        for key, part in parts.items():
            module._parameters[key] = nn.Parameter(_unset(part), requires_grad=False)
        yield
        for key, part in parts.items():
            whole: Any = module._parameters[key]
            if bool(whole.view(-1)[0].isnan()):  # the class forgot it
                torch.manual_seed(module_seed(seed, f"{path}.{key}" if path else key))
                whole.normal_(0.0, std)
            share = distribute_tensor(whole.data, part.device_mesh, part.placements, src_data_rank=None)
            part.to_local().copy_(share.to_local())
            module._parameters[key] = part

    return around


def _unset(part: DTensor) -> torch.Tensor:
    whole = torch.empty(part.shape, dtype=part.dtype, device=part.to_local().device)
    whole.view(-1)[0] = math.nan
    return whole
