"""torch.compile on the decoder layers: norms, rotations, routers and activations become few kernels.

Layers are compiled one by one because they are alike: what is compiled for the first serves all. The attention stays
outside (its plan changes with every step), so a layer is two pieces.
"""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from moeprof.capture import compat

RECOMPILES = 64  # batch sizes and layers of a kind; beyond it a piece runs uncompiled, silently


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The stack of layers: the list of modules whose length is the number of layers; None when there is no such."""
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == num_layers]
    return lists[0] if lists else None


def compile_layers(model: Any, backend: str = "inductor") -> str | None:
    """Compile in place; once is enough for all engines of a model. ``layers``, or None when no stack was found."""
    layers = decoder_layers(model)
    if layers is None:
        return None
    compat.allow_recompiles(RECOMPILES)
    for layer in layers:
        if not compat.is_compiled(layer):
            cast("Any", layer).compile(backend=backend)
    return "layers"


def as_written(model: Any) -> None:
    """Take the compiled form away: the layers run as they are written."""
    for layer in decoder_layers(model) or ():
        compat.forget_compiled(layer)
