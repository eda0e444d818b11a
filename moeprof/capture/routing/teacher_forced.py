"""Record where a model sends a fixed text, one request at a time (the noun is in core/record/picks.py).

The first requests of the schedule, prompt and forced output, each alone through a plain forward pass without a cache:
no batch, no chunks, no timing can change a pick. A routing override that is in force stays so.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moeprof.capture.engines.base import BatchLayout, ForwardListener
from moeprof.capture.models.moe_layers import MoeLayer
from moeprof.capture.routing.adapters import Cell, attach
from moeprof.capture.routing.gate_scores import GateScores
from moeprof.core.record.picks import MAX_TOKENS, ForcedPicks
from moeprof.core.trace import Schedule

MAX_S = 60.0
NO_EXPERT = -1
NO_PICKS = "a plain forward pass of this architecture shows no picks"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedText:
    """One request's tokens.

    Attributes:
        row: in the schedule.
        ids: prompt, then the forced output without its last token, which no engine feeds back either.
        prompt_tokens: how many of them are the prompt's.
    """

    row: int
    ids: npt.NDArray[np.int32]
    prompt_tokens: int


def forced_texts(schedule: Schedule, max_tokens: int = MAX_TOKENS, longest: int | None = None) -> Iterator[ForcedText]:
    """The first requests until ``max_tokens`` tokens; the last one is cut there, each at ``longest``."""
    left = max_tokens
    for row in range(len(schedule)):
        prompt = schedule.input_ids[row]
        output = schedule.output_ids[row][:-1] if schedule.output_ids is not None else prompt[:0]
        ids = np.concatenate([prompt, output])[: left if longest is None else min(left, longest)]
        if len(ids):
            yield ForcedText(row=row, ids=ids, prompt_tokens=min(len(prompt), len(ids)))
        left -= len(ids)
        if left <= 0:
            return


def record_forced_picks(
    model: Any,
    layers: Sequence[MoeLayer],
    schedule: Schedule,
    classes: Sequence[str],
    *,
    listeners: Sequence[ForwardListener] = (),
    should_stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> ForcedPicks | str:
    """Run the texts and keep every pick, or say why there are none.

    Args:
        model: a causal language model in eval mode; no engine is at work on it.
        layers: its MoE layers, at least one.
        schedule: with content.
        classes: names of request classes.
        listeners: told of each forward (replayed picks need that).
        should_stop: asked after every request.
        clock: seconds; no request is begun after MAX_S of them.
    """
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    whole = tuple(forced_texts(schedule, longest=longest))
    texts, parts, begin = [], [], clock()
    with ExitStack() as hooks:
        scores = hooks.enter_context(GateScores(layers))
        cells: list[Cell] = [[None] for _ in layers]
        for cell, layer in zip(cells, layers, strict=True):
            hooks.callback(attach(layer, cell, NO_EXPERT).remove)
        for text in whole:
            scores.expect(len(text.ids))
            try:
                _forward(model, text, listeners)
            except (torch.OutOfMemoryError, MemoryError):
                return f"no memory for one forward pass of {len(text.ids)} tokens"  # the rounds stay good
            slots = [cell[0] for cell in cells]
            part = _picks(layers, slots, len(text.ids))
            if part is None:
                return NO_PICKS
            for i, picks in enumerate(slots):
                if picks is not None:
                    scores.add(i, picks)
            for cell in cells:
                cell[0] = None
            texts.append(text)
            parts.append(part)
            if clock() - begin >= MAX_S or should_stop():
                break
    if not texts:
        return "the schedule holds no token"
    picks_TLK = np.concatenate(parts)
    margin_TL = scores.margins(len(picks_TLK))
    return _assembled(texts, _text_sha256(whole), picks_TLK, margin_TL, layers, schedule, classes)


def _forward(model: Any, text: ForcedText, listeners: Sequence[ForwardListener]) -> None:
    ids = torch.from_numpy(text.ids.astype(np.int64))[None].to(next(model.parameters()).device)
    kwargs: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kwargs["logits_to_keep"] = 1  # the vocabulary is wide, and no logit is looked at
    layout = BatchLayout(query_tokens=(len(text.ids),), requests=(text.row,), is_prefill=(True,), past_tokens=(0,))
    for listener in listeners:
        listener.before_forward(layout)
    with torch.inference_mode():
        model(ids, **kwargs)
    for listener in listeners:
        listener.after_forward()


def _picks(
    layers: Sequence[MoeLayer], slots: Sequence[torch.Tensor | None], tokens: int
) -> npt.NDArray[np.int16] | None:
    """Picks of one forward [T, L, K], -1 where a layer has fewer; None where a layer showed none of that shape."""
    found = np.full((tokens, len(layers), max(layer.top_k for layer in layers)), NO_EXPERT, dtype=np.int16)
    for i, (layer, picks) in enumerate(zip(layers, slots, strict=True)):
        if picks is None or picks.shape != (tokens, layer.top_k):
            return None
        found[:, i, : layer.top_k] = picks.cpu().numpy()
    return found


def _text_sha256(texts: Sequence[ForcedText]) -> str:
    """Of all texts, those included that there was no time for: what was recorded is compared with a longer record."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text.ids).to_bytes(8, "little") + text.ids.astype("<i4").tobytes())
    return digest.hexdigest()


def _assembled(
    texts: Sequence[ForcedText],
    text_sha256: str,
    picks_TLK: npt.NDArray[np.int16],
    margin_TL: npt.NDArray[np.float32],
    layers: Sequence[MoeLayer],
    schedule: Schedule,
    classes: Sequence[str],
) -> ForcedPicks:
    lengths = [len(text.ids) for text in texts]
    position_T = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
    prompt_T = np.repeat([text.prompt_tokens for text in texts], lengths)
    class_of = {name: i for i, name in enumerate(classes)}
    return ForcedPicks(
        picks_TLK=picks_TLK,
        request_T=np.repeat(np.array([text.row for text in texts], dtype=np.int32), lengths),
        position_T=position_T,
        class_T=np.repeat(np.array([class_of[schedule.request_class[t.row]] for t in texts], dtype=np.int16), lengths),
        is_output_T=position_T >= prompt_T,
        margin_TL=margin_TL,
        layers=tuple(layer.name for layer in layers),
        classes=tuple(classes),
        tokens_sha256=text_sha256,
    )
