"""What each layer of a language model keeps of a text and computes per pair of tokens, found by structure.

Widths come from the projections of each attention module, reach and sharing from what transformers itself caches for
the layer, the size of a constant state from its convolution and recurrence. Towers for images and sound are left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from moeprof.capture import compat
from moeprof.capture.models.groups import is_under
from moeprof.capture.models.language_model import other_parts
from moeprof.core.model_facts import KV_UNKNOWN, AttentionKind, LayerAttention
from moeprof.core.units import num_bytes

_STATE = re.compile(
    r"Mamba|DeltaNet|DeltaAttention|Lightning|LinearAttention|ShortConv|Recurrent|Kda|Rwkv", re.IGNORECASE
)
_KEEPS_STATE = re.compile(r"linear|mamba|conv|recurrent|state|hybrid")
_ATTENDS = re.compile(r"full|sliding|chunked")
_OUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "c_proj", "o", "linear_proj")
_FUSED = ("Wqkv", "qkv_proj", "query_key_value", "kv_proj", "c_attn", "qkv", "wqkv")
NO_SINGLE_STACK = "encoder and decoder"
# FLOPs per element of a recurrent state and token. A state S of heads * d_k * d_v is updated by an outer product, added
# to it (S = a S + k v^T: 2), and read by a product (o = S^T q: 2): linear attention (arXiv 2006.16236), lightning
# attention (arXiv 2401.04658), Mamba (arXiv 2312.00752; k and q are its B and C) and Mamba-2 (arXiv 2405.21060). The
# delta rule reads it once more, for what it holds of the key (S = a S + k (b (v - S^T k))^T: 2): gated delta net
# (arXiv 2412.06464), Kimi delta attention (arXiv 2510.26692). Only products and what is added to them count, as for
# attention: no decay, no gate, no norm. Kernels that take a prompt in chunks compute more. The convolution before it is
# counted by its weights.
STATE_FLOPS = {"linear": 4, "delta": 6}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAttention:
    """The layers of a model.

    Attributes:
        layers: by kind; empty where unknown.
        notes: why unknown, or how layers differ.
    """

    layers: tuple[LayerAttention, ...]
    notes: tuple[str, ...]

    @property
    def kv_bytes_per_token(self) -> int | None:
        """Kept of a token in reach of all layers; None where unknown."""
        return sum(layer.keeps_bytes_per_token for layer in self.layers) if self.layers else None

    @property
    def flops_per_pair(self) -> int | None:
        """Of all layers, heads as they are trained; None where unknown."""
        return sum(layer.layers * layer.flops_per_pair for layer in self.layers) if self.layers else None


@dataclass(frozen=True, slots=True)
class _Shape:
    """Of the attention modules of one layer: elements per token, FLOPs per pair, bytes and FLOPs of a state."""

    kv: int = 0
    flops: int = 0
    decode_flops: int = 0
    is_latent: bool = False
    state_bytes: int = 0
    state_flops: int = 0

    def __add__(self, other: _Shape) -> _Shape:
        return _Shape(
            self.kv + other.kv,
            self.flops + other.flops,
            self.decode_flops + other.decode_flops,
            self.is_latent or other.is_latent,
            self.state_bytes + other.state_bytes,
            self.state_flops + other.state_flops,
        )


class _NotUnderstoodError(Exception):
    """A module whose cache is of a kind that is not described; the message says which."""


def model_attention(model: nn.Module, towers: Sequence[str] = ()) -> ModelAttention:
    """The layers of a language model.

    Args:
        model: real or on the meta device.
        towers: paths of its parts for other modalities.
    """
    config: Any = getattr(model, "config", None)
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    if getattr(config, "is_encoder_decoder", False):
        return _unknown(NO_SINGLE_STACK)
    width = next((p.dtype.itemsize for p in model.parameters() if p.dtype.is_floating_point), 4)
    cached = compat.cached_layers(config) if config is not None else []
    try:
        shapes = _shapes(model, towers, config, cached, width)
    except _NotUnderstoodError as error:
        return _unknown(str(error))
    if not any(shape.kv or shape.state_bytes for shape in shapes.values()):
        return _unknown("no attention module understood")
    own_kinds = [str(kind) for kind in getattr(config, "layer_types", None) or ()]
    layers = _by_kind(_described(shapes, cached, own_kinds, width))
    return ModelAttention(layers=layers, notes=_notes(layers))


def windows_of(model: nn.Module) -> tuple[int, ...]:
    """The different windows of a model's layers, smallest first; as ``ModelFacts.windows``."""
    layers = model_attention(model, tuple(other_parts(model))).layers
    return tuple(sorted({layer.window for layer in layers if layer.window is not None}))


def _unknown(reason: str) -> ModelAttention:
    return ModelAttention(layers=(), notes=(f"{KV_UNKNOWN}: {reason}",))


def _shapes(
    model: nn.Module, towers: Sequence[str], config: Any, cached: Sequence[tuple[str, int | None]], width: int
) -> dict[int, _Shape]:
    """Number of a layer -> what its modules keep and compute."""
    found: dict[int, _Shape] = {}
    for path, module in model.named_modules(remove_duplicate=False):  # layers may share a module, not its cache
        if any(is_under(path, tower) for tower in towers):
            continue
        if isinstance(getattr(module, "indexer", None), nn.Module):
            raise _NotUnderstoodError("sparse attention keeps an index besides keys and values")
        number = _number_of(path)
        declared = cached[number][0] if 0 <= number < len(cached) else ""
        if "compress" in declared or "sparse" in declared or "indexed" in declared:
            raise _NotUnderstoodError(f"{declared.replace('_', ' ')} keeps more than keys and values")
        shape = _shape_in(path, module, declared, config, width)
        if shape is not None:
            found[number] = found.get(number, _Shape()) + shape
    return found


def _shape_in(path: str, module: nn.Module, declared: str, config: Any, width: int) -> _Shape | None:
    """What one module adds to its layer; None where it is no attention and keeps no state."""
    if "hybrid" in declared:  # both in one layer, in modules of their own
        is_convolution = isinstance(module, nn.Conv1d) or hasattr(module, "static_weight")
        own = _Shape(state_bytes=_convolution_bytes(module, width)) if is_convolution else _recurrence(module, width)
        return (_attention_shape(module, config) or _Shape()) + (own or _Shape())
    if _is_stateful(path, module, declared):
        recurrence = _recurrence(module, width)
        if recurrence is None:
            raise _NotUnderstoodError(f"{type(module).__name__} keeps a state whose size is not understood")
        return _Shape(state_bytes=_convolution_bytes(module, width)) + recurrence
    if _KEEPS_STATE.search(declared):
        return None
    shape = _attention_shape(module, config)
    if shape is None and declared == "dummy" and hasattr(module, "q_proj"):
        flops = 4 * (_out_width(module) or 0)
        return _Shape(flops=flops, decode_flops=flops)
    return shape


def _is_stateful(path: str, module: nn.Module, declared: str) -> bool:
    """True for a token mixer that keeps a state: by what the config says of its layer, else by its class's name."""
    kind = type(module).__name__
    if _ATTENDS.search(declared) or next(module.children(), None) is None:
        return False
    if _STATE.search(kind) and re.search(r"\.\d+\.[^.]+$", path):
        return "DecoderLayer" not in kind
    return (
        _KEEPS_STATE.search(declared) is not None
        and re.search(r"\.\d+\.[^.]*(attn|attention|mixer)$", path) is not None
    )


def _number_of(path: str) -> int:
    """The first number in a path: that of the layer; -1 where there is none."""
    match = re.search(r"\.(\d+)(\.|$)", f".{path}")
    return int(match.group(1)) if match else -1


def _described(
    shapes: dict[int, _Shape], cached: Sequence[tuple[str, int | None]], own_kinds: Sequence[str], width: int
) -> list[LayerAttention]:
    """One description per layer with attention or a state, and those without either."""
    found: list[LayerAttention] = []
    sources: dict[str, LayerAttention] = {}  # what layers of a kind share is what the last of them keeps
    uniform = cached[0] if len(set(cached)) == 1 else None
    for number, shape in sorted(shapes.items()):
        kind, window = uniform or (cached[number] if 0 <= number < len(cached) else ("", None))
        own: AttentionKind = "latent" if shape.is_latent else "window" if window else "full"
        layer = LayerAttention(
            kind=own if shape.kv else "state", layers=1, kv_bytes_per_token=shape.kv * width,
            flops_per_pair=shape.flops, decode_flops_per_pair=shape.decode_flops,
            window=window if shape.kv else None, state_bytes=shape.state_bytes,
            state_flops=shape.state_flops if shape.state_bytes else None,
        )  # fmt: skip
        if kind == "dummy":
            source = sources.get(own_kinds[number] if number < len(own_kinds) else "")
            if source is None:
                continue
            layer = replace(layer, kind="shared", kv_bytes_per_token=source.kv_bytes_per_token, window=source.window)
        elif shape.kv:
            sources[kind] = layer
        found.append(layer)
    without = len(cached) - len(found)
    if uniform is None and without > 0:
        found.append(LayerAttention(kind="none", layers=without))
    return found


def _by_kind(layers: Sequence[LayerAttention]) -> tuple[LayerAttention, ...]:
    """Equal layers once, with their number, in the order in which they first come."""
    return tuple(replace(one, layers=one.layers * count) for one, count in Counter(layers).items())


def _notes(layers: Sequence[LayerAttention]) -> tuple[str, ...]:
    """How layers differ, in one sentence; nothing where all see all tokens."""
    if all(layer.kind in ("full", "latent") and not layer.state_bytes for layer in layers):
        return ()
    counts: dict[str, int] = {}
    for layer in layers:
        words = _words(layer)
        counts[words] = counts.get(words, 0) + layer.layers
    return (f"layers by what they see: {'; '.join(f'{count} {words}' for words, count in counts.items())}",)


def _words(layer: LayerAttention) -> str:
    if layer.kind == "none":
        return "without attention"
    state = f"a state of {num_bytes(layer.state_bytes)} each a sequence, read and written in every step"
    if layer.kind == "state":
        return state
    reach = "all tokens" if layer.window is None else f"the last {layer.window} tokens"
    shared = ", in keys and values that another layer keeps" if layer.kind == "shared" else ""
    return f"{reach}{shared}{f' and {state}' if layer.state_bytes else ''}"


def _convolution_bytes(module: nn.Module, width: int) -> int:
    """Channels times kernel of every convolution over time, which keeps its inputs in the model's dtype."""
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv1d)]
    own = getattr(module, "static_weight", None)  # [kernel, channels] of one that makes the rest of its weights itself
    if not convolutions and isinstance(own, torch.Tensor):
        return own.numel() * width
    if any(m.groups not in (1, m.out_channels) for m in convolutions):
        raise _NotUnderstoodError("a convolution keeps a state whose size is not understood")
    return sum(m.out_channels * m.kernel_size[0] for m in convolutions) * width


def _recurrence(module: Any, width: int) -> _Shape | None:
    """A matrix per head, in float32 but for lightning attention; empty for a convolution alone, None for others."""

    def size(*names: str) -> int:
        found = [getattr(module, name, None) for name in names]
        return math.prod(found) if all(isinstance(value, int) for value in found) else 0  # type: ignore[arg-type]

    def matrix(elements: int, rule: str = "linear", itemsize: int = 4) -> _Shape:
        return _Shape(state_bytes=itemsize * elements, state_flops=STATE_FLOPS[rule] * elements)

    inner = size("num_heads", "head_dim") or size("intermediate_size")
    if size("ssm_state_size"):
        return matrix(inner * size("ssm_state_size"))
    if size("num_v_heads", "head_k_dim", "head_v_dim"):
        return matrix(size("num_v_heads", "head_k_dim", "head_v_dim"), "delta")
    if isinstance(getattr(module, "slope_rate", None), torch.Tensor):
        return matrix(size("num_attention_heads", "head_dim", "head_dim"), itemsize=width)
    if "Delta" in type(module).__name__ and size("num_heads", "head_dim"):
        return matrix(size("num_heads", "head_dim", "head_dim"), "delta")
    return _Shape() if "ShortConv" in type(module).__name__ else None


def _attention_shape(module: Any, config: Any) -> _Shape | None:
    """Of one attention module, else None. 2 FLOPs per element of q.k and 2 per element of p.v, per query-key pair."""
    if hasattr(module, "kv_a_proj_with_mqa"):
        return _latent_shape(module)
    key, value = getattr(module, "k_proj", None), getattr(module, "v_proj", None)
    if isinstance(key, nn.Module) and hasattr(key, "out_features"):
        key_width: int = getattr(key, "out_features")  # noqa: B009  (modules type every attribute as Tensor | Module)
        value_width: int = getattr(value, "out_features", key_width)
        width = _out_width(module) or _query_width(config)
        if width is None:
            return None
        # The output projection takes heads * value width; scores need heads * key width.
        flops = 2 * width + 2 * width * key_width // value_width
        return _Shape(key_width + value_width, flops, flops)
    if any(isinstance(getattr(module, name, None), nn.Module) for name in _FUSED):
        heads = getattr(config, "num_key_value_heads", None) or _kv_heads_elsewhere(config)
        head_dim, width = _head_dim(config), _out_width(module) or _query_width(config)
        if heads and head_dim and width:
            return _Shape(2 * heads * head_dim, 4 * width, 4 * width)
    return None


def _latent_shape(module: Any) -> _Shape:
    """Latent attention. Newer transformers cache the latent and expand it afterwards, older ones cache all heads.

    A decode step that reads latents works on them as they lie (queries and outputs absorb the expansion): a score
    needs the latent and the rotary part, an output the latent. Expanding all of the context anew costs more still.
    """
    heads, latent, rotary = int(module.num_heads), int(module.kv_lora_rank), int(module.qk_rope_head_dim)
    expanded = int(module.qk_head_dim) + int(module.v_head_dim)
    if not hasattr(module, "expand_kv"):
        return _Shape(heads * expanded, 2 * heads * expanded, 2 * heads * expanded)
    return _Shape(latent + rotary, 2 * heads * expanded, 2 * heads * (2 * latent + rotary), is_latent=True)


def expanded(layers: Sequence[LayerAttention], width: int) -> tuple[LayerAttention, ...]:
    """The same layers where an engine caches latents as keys and values of all heads, of so many bytes an element.

    A pair costs 2 FLOPs per element of a key and of a value, all heads together.
    """

    def whole(layer: LayerAttention) -> LayerAttention:
        kind: AttentionKind = "full" if layer.window is None else "window"
        own = layer.flops_per_pair // 2 * width
        return replace(layer, kind=kind, kv_bytes_per_token=own, decode_flops_per_pair=layer.flops_per_pair)

    return tuple(whole(layer) if layer.kind == "latent" else layer for layer in layers)


def _out_width(module: Any) -> int | None:
    """Heads * head_dim, as the output projection takes it."""
    for name in _OUT_PROJECTIONS:
        child = getattr(module, name, None)
        features = getattr(child, "in_features", None)
        if isinstance(features, int):
            return features
    return None


def _head_dim(config: Any) -> int | None:
    given = getattr(config, "head_dim", None) or getattr(config, "kv_channels", None)
    if given:
        return int(given)
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    return int(hidden // heads) if heads and hidden else None


def _query_width(config: Any) -> int | None:
    heads, head_dim = getattr(config, "num_attention_heads", None), _head_dim(config)
    return int(heads * head_dim) if heads and head_dim else None


def _kv_heads_elsewhere(config: Any) -> int | None:
    nested = getattr(config, "attn_config", None)
    heads = getattr(nested, "kv_n_heads", None) or getattr(config, "num_attention_heads", None)
    return int(heads) if heads else None
