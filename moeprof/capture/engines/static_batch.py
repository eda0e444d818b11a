"""One padded batch and its cache: the only file that speaks to the generation internals of transformers.

The same calls in the same order as ``generate`` makes them: prepare the cache, prepare the inputs, forward, update the
keyword arguments. Written for transformers 5.23; one whose inputs are prepared otherwise is refused.

Which models continuous batching cannot run, and which are not invariant to padding, by structure.

Continuous batching pages one key and one value per token and head through the attention interface. Anything else that
a layer remembers (a recurrent state, a compressed key, an index, a chunk) has no page. The reasons stand in the report.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from moeprof.capture import compat
from moeprof.capture.engines.base import BatchLayout, Model
from moeprof.core.errors import EngineError
from moeprof.core.trace import Request


@dataclass(slots=True)
class Row:
    """One request in the batch."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    finished: bool = False

    @property
    def past_tokens(self) -> int:
        """Tokens in the cache once the first forward has run: the prompt and all outputs but the newest."""
        return len(self.request.input_ids) + max(0, len(self.tokens) - 1)


class StaticBatch:
    """Requests that started together, left-padded to the longest prompt, and what the model remembers of them."""

    def __init__(self, model: Model, rows: list[Row]) -> None:
        self.model, self.rows = model, rows
        width = max(len(row.request.input_ids) for row in rows)
        pad = _pad_id(model)
        ids = [[pad] * (width - len(row.request.input_ids)) + list(row.request.input_ids) for row in rows]
        real = [[0] * (width - len(row.request.input_ids)) + [1] * len(row.request.input_ids) for row in rows]
        self._real = real
        self.input_ids = torch.tensor(ids, dtype=torch.long, device=model.device)
        mask = torch.tensor(real, dtype=torch.long, device=model.device)
        padded = any(0 in row for row in real)
        accepted = inspect.signature(model.forward).parameters
        self.kwargs: dict[str, Any] = {"use_cache": True, "attention_mask": mask if padded else None}
        if "position_ids" in accepted:
            self.kwargs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if "logits_to_keep" in accepted:
            self.kwargs["logits_to_keep"] = 1
        if "next_sequence_length" not in inspect.signature(model.prepare_inputs_for_generation).parameters:
            # Models may override it with **kwargs; what matters is the version of the mixin behind it.
            _check_version(model)
        self._prepare_cache(width + max(row.request.output_tokens for row in rows))
        self._width = width

    @property
    def live(self) -> list[Row]:
        """Rows whose request is not finished, in order."""
        return [row for row in self.rows if not row.finished]

    @property
    def slots(self) -> int:
        """Token slots that the cache holds, padding included."""
        return len(self.rows) * self._width

    def layout(self, prefill: bool) -> BatchLayout:
        """What the coming forward holds; finished rows and padding are masked."""
        live = self.live
        if prefill:
            query = tuple(len(row.request.input_ids) for row in live)
            mask = [bool(x) for row in self._real for x in row]
        else:
            query = (1,) * len(live)
            mask = [not row.finished for row in self.rows]
        return BatchLayout(
            query_tokens=query,
            requests=tuple(row.request.index for row in live),
            is_prefill=(prefill,) * len(live),
            token_mask=None if all(mask) else mask,
            past_tokens=(0,) * len(live) if prefill else tuple(row.past_tokens for row in live),
        )

    def forward(self, prefill: bool) -> torch.Tensor:
        """Run the model; the logits of the last position [B, V]."""
        inputs = self.model.prepare_inputs_for_generation(
            self.input_ids,
            next_sequence_length=None if prefill else 1,
            is_first_iteration=prefill,
            **self.kwargs,
        )
        outputs = self.model(**inputs, return_dict=True)
        self.kwargs = compat.next_generation_kwargs(self.model, outputs, self.kwargs)
        logits: torch.Tensor = outputs.logits[:, -1]
        return logits

    def append_newest(self) -> None:
        """Append the newest tokens before a decode step, and cut finished rows out when half of the batch is done."""
        pad = _pad_id(self.model)
        newest = [row.tokens[-1] if not row.finished else pad for row in self.rows]
        column = torch.tensor(newest, dtype=torch.long, device=self.model.device)[:, None]
        self.input_ids = torch.cat([self.input_ids, column], dim=-1)
        self._width += 1
        live = [i for i, row in enumerate(self.rows) if not row.finished]
        if 2 * len(live) <= len(self.rows) and _can_select(self.kwargs.get("past_key_values")):
            self._select(live)

    def _prepare_cache(self, max_tokens: int) -> None:
        config = GenerationConfig(do_sample=False, use_cache=True)
        mode = GenerationMode.GREEDY_SEARCH
        compat.prepare_generation_cache(self.model, config, self.kwargs, mode, len(self.rows), max_tokens)

    def _select(self, live: list[int]) -> None:
        index = torch.tensor(live, dtype=torch.long, device=self.model.device)
        self.rows = [self.rows[i] for i in live]
        self.input_ids = self.input_ids[index]
        self.kwargs["past_key_values"].reorder_cache(index)
        for name in ("attention_mask", "position_ids"):
            value = self.kwargs.get(name)
            if value is not None and value.shape[0] > 1:
                self.kwargs[name] = value[index]


def _pad_id(model: Model) -> int:
    pad = getattr(model.config.get_text_config(decoder=True), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0


def _can_select(cache: Any) -> bool:
    """True for a plain dynamic cache with stock layers, whose ``reorder_cache`` moves all they hold.

    ``batch_select_indices`` forgets the recurrent half of mixed layers, and layers of a model's own may hold more.
    """
    if type(cache) is not DynamicCache:
        return False
    return all(type(layer).__module__ == DynamicCache.__module__ for layer in cache.layers)


def _check_version(model: Model) -> None:
    import transformers
    from transformers import GenerationMixin

    if "next_sequence_length" not in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters:
        found = transformers.__version__
        raise EngineError(
            f"static batches of {type(model).__name__} need another version of transformers, found {found}"
        )


PAGED_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
REASONS = {
    "linear_attention": "linear attention or state-space layers keep a recurrent state",
    "hybrid": "its attention layers also keep a convolution state",
    "hybrid_sliding": "its attention layers also keep a convolution state",
    "conv": "convolution layers keep a state",
    "chunked_attention": "chunked attention",
    "indexed_attention": "sparse attention with an index",
    "deepseek_sparse_attention": "sparse attention with an index",  # its name in transformers 5.17
    "qwen_sparse_attention": "sparse attention with an index",  # likewise
    "minimax_m3_sparse": "sparse attention with an index",
    "compressed_sparse_attention": "compressed sparse attention",
    "heavily_compressed_attention": "compressed attention",
}


def needs_static(model: Any) -> str | None:
    """Why this model cannot run in continuous batches, or None when nothing in its structure forbids it.

    A model that passes can still fail on its first step; whoever selects an engine should try one step and fall back.
    """
    config = model.config.get_text_config(decoder=True)
    others = sorted({str(kind) for kind in layer_types(config)} - PAGED_LAYER_TYPES)
    if others:
        return REASONS.get(others[0], f"layers of type {others[0]}")
    if compat.keeps_recurrent_state(model):
        return "it keeps a recurrent state between forwards"
    if _has_indexer(model):
        return "sparse attention with an index"
    if not compat.has_default_cache(model):
        return "it has a cache of its own"
    return None


def needs_equal_lengths(model: Any) -> str | None:
    """Why batches must hold prompts of one length, or None when left padding changes nothing.

    Compressed caches pool neighbouring slots, padding included, and an index picks its top slots from padded rows.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = {str(kind) for kind in layer_types(config)}
    if kinds & {"compressed_sparse_attention", "heavily_compressed_attention"}:
        return "compressed attention is not invariant to padding: batches of equal prompt length only"
    if kinds & {"indexed_attention", "minimax_m3_sparse"} or _has_indexer(model):
        return "indexed attention is not invariant to padding: batches of equal prompt length only"
    return None


def _has_indexer(model: Any) -> bool:
    """Older configurations (transformers 5.17) do not name the kind of layer; its index is a module all the same."""
    return any("indexer" in name.rpartition(".")[2].lower() for name, _ in model.named_modules())


def layer_types(config: Any) -> list[str]:
    """The kinds of layers that a configuration names; empty when all are alike."""
    kinds = _global(config, "layer_types")
    return list(kinds) if isinstance(kinds, (list, tuple)) else []


def _global(config: Any, name: str) -> Any:
    """A value of the whole model, also where the configuration lets layers differ (then plain access raises)."""
    values = config.to_dict()
    return values[name] if name in values else getattr(config, name, None)
