"""Whose second was it? Splits the busy time of a pass between prompts and outputs (docs/metrics.md#cost-split).

A pure step belongs wholly to its phase. A mixed step of t seconds is a game of two players, prefill and decode, whose
stand-alone costs f_p and f_d are learnt from pure steps; its Shapley value is
``prefill = (f_p + t - f_d) / 2, decode = (f_d + t - f_p) / 2``, which always adds up to t. A share outside [0, t] (the
stand-alone costs are estimates) is put on the border, and how often that happened is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from moeprof.analysis.metrics.resources.work import SeenTokens, read_bytes
from moeprof.analysis.metrics.tables import PassTables, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.model_facts import OTHER_MODALITIES, ModelFacts

if TYPE_CHECKING:
    import pandas as pd

SplitMethod = Literal["pure", "calibration", "run", "roofline", "tokens"]
FEWEST_STEPS = 6
FEWEST_SIZES = 2  # distinct token counts, so that a slope can be told from an intercept


@dataclass(frozen=True, slots=True, kw_only=True)
class BusySplit:
    """Seconds of every step by phase.

    Attributes:
        prefill_S: seconds per step that belong to prompts, S = steps.
        decode_S: seconds per step that belong to outputs; both add up to the step.
        least_prefill_s, most_prefill_s: bounds of the prefill sum: mixed steps at its marginal and its stand-alone
            cost.
        method: ``pure`` (nothing to split), or where the stand-alone costs came from.
        mixed_steps: steps that were split.
        clamped_steps: of these, shares that fell outside [0, t].
        has_decode: some step processed decode tokens; else all output tokens are first tokens, made in prefill.
    """

    prefill_S: FloatArray
    decode_S: FloatArray
    least_prefill_s: float
    most_prefill_s: float
    method: SplitMethod
    mixed_steps: int
    clamped_steps: int
    has_decode: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StandAlone:
    """Cost in seconds that each phase of a mixed step would have alone, shape [S mixed]."""

    prefill: FloatArray
    decode: FloatArray
    method: SplitMethod


def split_busy(
    tables: PassTables,
    calibration: pd.DataFrame | None = None,
    *,
    facts: ModelFacts | None = None,
    peaks: tuple[float, float] | None = None,
) -> BusySplit:
    """Split the steps of a pass.

    Args:
        tables: the pass; time outside its window is cut off.
        calibration: pure steps measured at the end of warm-up, columns of table ``steps``; or None.
        facts: the model, for the roofline.
        peaks: (bandwidth in bytes/s, matrix rate in FLOP/s) for the roofline, or None.
    """
    steps = tables.steps
    seconds = _inside(tables)
    prefill = np.where(is_phase(steps, "prefill"), seconds, 0.0)
    decode = np.where(is_phase(steps, "decode"), seconds, 0.0)
    mixed = is_phase(steps, "mixed")
    pure_s = float(prefill.sum())
    if not mixed.any():
        return BusySplit(
            prefill_S=prefill,
            decode_S=decode,
            least_prefill_s=pure_s,
            most_prefill_s=pure_s,
            method="pure",
            mixed_steps=0,
            clamped_steps=0,
            has_decode=bool(is_phase(steps, "decode").any()),
        )
    t = seconds[mixed]
    alone = _stand_alone(steps, steps[mixed], t, facts, calibration, peaks)
    share = (alone.prefill + t - alone.decode) / 2
    inside = np.clip(share, 0.0, t)
    prefill[mixed], decode[mixed] = inside, t - inside
    marginal, whole = np.clip(t - alone.decode, 0.0, t), np.clip(alone.prefill, 0.0, t)
    return BusySplit(
        prefill_S=prefill,
        decode_S=decode,
        least_prefill_s=pure_s + float(np.minimum(marginal, whole).sum()),
        most_prefill_s=pure_s + float(np.maximum(marginal, whole).sum()),
        method=alone.method,
        mixed_steps=int(mixed.sum()),
        clamped_steps=int((inside != share).sum()),
    )


def _inside(tables: PassTables) -> FloatArray:
    """Seconds of each step that lie in the measured window."""
    start_s, end_s = tables.window_s
    start, end = column(tables.steps, "start_s"), column(tables.steps, "end_s")
    inside: FloatArray = np.maximum(np.minimum(end, end_s) - np.maximum(start, start_s), 0.0)
    return inside


def _stand_alone(
    steps: pd.DataFrame,
    mixed: pd.DataFrame,
    t: FloatArray,
    facts: ModelFacts | None,
    calibration: pd.DataFrame | None,
    peaks: tuple[float, float] | None,
) -> StandAlone:
    """From the best source there is: calibration steps, pure steps of the run, the roofline, else token counts."""
    sources: tuple[tuple[SplitMethod, pd.DataFrame | None], ...] = (("calibration", calibration), ("run", steps))
    for method, table in sources:
        models = None if table is None else _learn(table)
        if models is not None:
            return StandAlone(prefill=models[0](mixed), decode=models[1](mixed), method=method)
    by_roofline = None if peaks is None or facts is None else _by_roofline(mixed, t, facts, peaks)
    if by_roofline is not None:
        return by_roofline
    prefill, decode = column(mixed, "prefill_tokens"), column(mixed, "decode_tokens")
    share = prefill / (prefill + decode)
    return StandAlone(prefill=t * share, decode=t * (1 - share), method="tokens")


Model = Callable[["pd.DataFrame"], FloatArray]


def _learn(table: pd.DataFrame) -> tuple[Model, Model] | None:
    """f_p = a + b * tokens and f_d = a + b * tokens + c * context, coefficients >= 0; None with too few pure steps."""
    prefill = _fit(table[is_phase(table, "prefill")], _prefill_terms, "prefill_tokens")
    decode = _fit(table[is_phase(table, "decode")], _decode_terms, "decode_tokens")
    return None if prefill is None or decode is None else (prefill, decode)


def _prefill_terms(table: pd.DataFrame) -> FloatArray:
    tokens = column(table, "prefill_tokens")
    return np.stack([np.ones_like(tokens), tokens], axis=1)


def _decode_terms(table: pd.DataFrame) -> FloatArray:
    tokens = column(table, "decode_tokens")
    context = column(table, "context_tokens") - np.nan_to_num(column(table, "prefill_context_tokens"))
    return np.stack([np.ones_like(tokens), tokens, np.nan_to_num(context)], axis=1)


def _fit(table: pd.DataFrame, terms: Callable[[pd.DataFrame], FloatArray], tokens: str) -> Model | None:
    """Least squares of relative errors, so that small steps count as much as large ones."""
    from scipy.optimize import nnls

    seconds = column(table, "end_s") - column(table, "start_s")
    good = seconds > 0
    if good.sum() < FEWEST_STEPS or len(np.unique(column(table, tokens)[good])) < FEWEST_SIZES:
        return None
    design = terms(table)[good] / seconds[good, None]
    scale = np.maximum(np.abs(design).max(axis=0), 1e-300)
    weights, _ = nnls(design / scale, np.ones(len(design)))
    coefficients = weights / scale
    return lambda rows: cast(FloatArray, terms(rows) @ coefficients)


def _by_roofline(
    mixed: pd.DataFrame, t: FloatArray, facts: ModelFacts, peaks: tuple[float, float]
) -> StandAlone | None:
    """Roofline of each side alone, scaled by how far the joint step is from its own; None where it is unknown."""
    prefill, decode = column(mixed, "prefill_tokens"), column(mixed, "decode_tokens")
    seen = SeenTokens.of(mixed, facts)
    joint = read_bytes(facts, seen.keys_S, seen.sequences_S)
    own = read_bytes(facts, seen.prefill_keys_S, seen.prefill_sequences_S)
    if isinstance(joint, str) or isinstance(own, str):
        return None
    factor = t / _roofline(prefill + decode, joint, facts, peaks)
    return StandAlone(
        prefill=factor * _roofline(prefill, own, facts, peaks),
        decode=factor * _roofline(decode, joint - own, facts, peaks),
        method="roofline",
    )


def _roofline(tokens: FloatArray, kv_bytes: FloatArray, facts: ModelFacts, peaks: tuple[float, float]) -> FloatArray:
    """Seconds at least, with as many distinct experts as uniform routing expects: E * (1 - (1 - k/E)^T)."""
    size: Mapping[str, Any] = facts.bytes_by_group
    elsewhere = sum(size.get(group, 0) for group in ("routed_experts", "embedding", OTHER_MODALITIES))
    num_bytes = sum(size.values()) - elsewhere + kv_bytes
    for layer in facts.moe_layers:
        distinct = layer.num_experts * (1 - (1 - layer.top_k / layer.num_experts) ** tokens)
        num_bytes = num_bytes + layer.expert_bytes * distinct
    flops = 2 * facts.active_params_no_embedding * tokens
    return cast(FloatArray, np.maximum(num_bytes / peaks[0], flops / peaks[1]))
