"""How near the limits of the device a run came (docs/metrics.md#work): bandwidth, matrix rate, roofline.

Ratios are sums over sums, never means of ratios, with intervals over rounds: they hold measured time. Work per step
follows from the tokens, which every round repeats: it comes from one round, with intervals over its steps. The limits
are the ones measured on the device when the run started. Bandwidth is no limit of steps whose bytes fit the last-level
cache, whatever the size of the model: the next step may find them there.

Bytes and FLOPs of every step, from what ran (docs/metrics.md#work). Vectorised: S steps, L MoE layers.

A step reads every resident matrix once, the experts that its tokens chose, what each layer sees of its sequences' keys
and values (and reads and writes their states of constant size), and the head; it multiplies each token with the
matrices it passes. How many expert bytes are read depends on the kernel:
grouped kernels fetch each distinct expert once, gathering kernels fetch three times per token and pick, and code that
runs all experts fetches all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.routing.steps import LEAST_SHARE
from moeprof.analysis.metrics.samples import mean_of_steps, over_rounds
from moeprof.analysis.metrics.tables import ALL, BoolArray, PassTables, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core import units
from moeprof.core.metric import Card, MetricValue, Place, measured, missing
from moeprof.core.model_facts import OTHER_MODALITIES, ModelFacts
from moeprof.core.record.breakdown import GapPoint
from moeprof.core.record.launch import EngineHeader, LaunchHeader, PeaksHeader
from moeprof.core.record.tables import WINDOWED
from moeprof.core.units import num_bytes

if TYPE_CHECKING:
    import pandas as pd

ALWAYS_READ = ("attention", "dense_mlp", "router", "shared_experts", "norm", "other")
# bytes per (token, pick) relative to one expert, for kernels that copy weights per pick: read, write, read again.
GATHER_FACTOR = 3

_card = partial(Card, section="work", source="docs/metrics.md#work", needs="steps")
_counted = partial(_card, kind="routing", from_routing=True, of_batches=True)
_timed = partial(_card, kind="timed", counts_tokens=True, from_routing=True, of_batches=True)
_peak = partial(_card, kind="timed", counts_tokens=False)
CARDS: tuple[Card, ...] = (
    _counted("touched_params_per_step", "parameters a step reads", "parameters", "neither",
          "B with k/E replaced by measured distinct experts per layer, plus the embedding rows looked up",
          screen=(Place(170, "parameters touched per decode step", phase="decode", own=True),)),
    _counted("bytes_per_step", "bytes a step moves", "B", "neither",
          "resident weights + distinct experts * expert bytes (by kernel) + keys, values and states read and written, "
          "by layer + head once"),
    _counted("flops_per_step", "FLOPs of a step", "FLOP", "lower",
          "2 * tokens * (resident + k * expert) + attention pairs, by layer + head on the rows kept"),
    _timed("mbu_ratio", "bandwidth used (S-MBU)", "ratio", "higher",
          "sum(bytes) / sum(step s) / measured bandwidth; n/a where the bytes of a step fit the last-level cache",
          source="S-MBU and S-MFU of MoE-CAP; docs/metrics.md#work",
          screen=(Place(200, "memory bandwidth used (MBU)"),)),
    _timed("mfu_ratio", "matrix rate used (S-MFU)", "ratio", "higher",
          "sum(FLOPs) / sum(step s) / measured matrix rate", source="S-MBU and S-MFU of MoE-CAP; docs/metrics.md#work"),
    _counted("roofline_s", "least time of a step", "s", "neither",
          "mean of max(bytes / bandwidth, FLOPs / matrix rate)",
          source="Williams et al., Roofline (2009); docs/metrics.md#work"),
    _timed("time_over_roofline_ratio", "time over the limit", "ratio", "lower",
          "sum(step s) / sum(roofline s): 1 is the hardware's limit",
          source="Williams et al., Roofline (2009); docs/metrics.md#work"),
    _peak("peak_bandwidth_bytes_per_s", "bandwidth, measured", "B/s", "higher",
          "best of copy (counted both ways), read, matrix-vector; buffers beyond the cache"),
    _peak("peak_flops_per_s", "matrix rate, measured", "FLOP/s", "higher",
          "large product in the run's dtype, random data"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Work and limits of passes with the same traffic."""
    return work_metrics(context.info, context.facts, context.passes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """Work of the steps of a pass that were counted.

    Attributes:
        bytes_S: bytes moved per step.
        flops_S: FLOPs per step.
        time_S: wall time per step, seconds.
        tokens_S: tokens computed per step.
        touched_params_S: parameters read per step, the embedding rows looked up included.
        kept_S: which rows of table ``steps`` these are.
    """

    bytes_S: FloatArray
    flops_S: FloatArray
    time_S: FloatArray
    tokens_S: FloatArray
    touched_params_S: FloatArray
    kept_S: BoolArray

    def phase_mask(self, tables: PassTables, phase: str) -> BoolArray:
        """Which of the counted steps are of this phase (``all`` = every one)."""
        mask: BoolArray = is_phase(tables.steps, phase)[self.kept_S]
        return mask


def step_work(tables: PassTables, facts: ModelFacts, engine: EngineHeader) -> StepWork | str:
    """The work of a pass, or the reason why it is unknown.

    Args:
        tables: the pass.
        facts: the model.
        engine: of launch.json; ``experts`` names the experts implementation.
    """
    steps = tables.steps
    attention = attention_work(facts, SeenTokens.of(steps, facts))
    if isinstance(attention, str):
        return attention
    distinct = distinct_experts(tables, facts)
    if isinstance(distinct, str):
        return distinct
    distinct_SL, kept_S = distinct
    tokens = (column(steps, "prefill_tokens") + column(steps, "decode_tokens"))[kept_S]
    rows = column(steps, "new_tokens")[kept_S]
    kv_bytes_S, attention_flops_S = attention[0][kept_S], attention[1][kept_S]
    size, params = facts.bytes_by_group, facts.params_by_group
    head = "embedding" if facts.tied_embeddings else "lm_head"
    expert_bytes, expert_params_read, expert_flops = _experts(facts, distinct_SL, tokens, engine.experts)
    resident = sum(size.get(group, 0) for group in ALWAYS_READ)
    bytes_S = resident + expert_bytes + kv_bytes_S + (rows > 0) * size.get(head, 0)
    through = sum(params.get(group, 0) for group in ALWAYS_READ if group != "norm")
    flops_S = 2 * (tokens * through + expert_flops + rows * params.get(head, 0))
    flops_S = flops_S + attention_flops_S
    looked_up = 0.0 if facts.tied_embeddings else tokens * facts.hidden_size
    not_routed = facts.total_params - params.get("routed_experts", 0) - params.get(OTHER_MODALITIES, 0)
    touched = not_routed - (0 if facts.tied_embeddings else params.get("embedding", 0)) + expert_params_read + looked_up
    return StepWork(
        bytes_S=bytes_S,
        flops_S=flops_S,
        time_S=(column(steps, "end_s") - column(steps, "start_s"))[kept_S],
        tokens_S=tokens,
        touched_params_S=np.broadcast_to(touched, tokens.shape).astype(np.float64),
        kept_S=kept_S,
    )


ByWindow = dict[int | None, FloatArray]  # what layers of each window saw; None: of those that see all
NO_WINDOWS = "the record does not say what layers with a window saw"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenTokens:
    """What the tokens of each step saw, by the window of a layer (None: all tokens).

    Attributes:
        written_S: tokens whose keys and values are new.
        sequences_S: sequences in the step.
        keys_S: keys read, summed over sequences.
        prefill_pairs_S, decode_pairs_S: query-key pairs.
        prefill_keys_S, prefill_sequences_S: the prefill sequences' part of keys and of sequences.
    """

    written_S: FloatArray
    sequences_S: FloatArray
    keys_S: ByWindow
    prefill_pairs_S: ByWindow
    decode_pairs_S: ByWindow
    prefill_keys_S: ByWindow
    prefill_sequences_S: FloatArray

    @classmethod
    def of(cls, steps: pd.DataFrame, facts: ModelFacts) -> SeenTokens:
        """From a table of steps; without the windows that an older record did not keep.

        A decoded token makes one pair with each key that is read for it.
        """
        names = ("context_tokens", "prefill_context_tokens", "attention_pairs")
        keys, prefill_keys, pairs = tables = [ByWindow({None: column(steps, name)}) for name in names]
        for number, window in enumerate(facts.windows):
            for name, found in zip(names, tables, strict=True):
                values = steps.get(WINDOWED[name])
                if values is not None and values.notna().all():
                    found[window] = np.array([row[number] for row in values], dtype=np.float64)
        prefill_keys = ByWindow({window: np.nan_to_num(found) for window, found in prefill_keys.items()})
        decode: ByWindow = {window: keys[window] - prefill_keys[window] for window in pairs}
        return cls(
            written_S=column(steps, "prefill_tokens") + column(steps, "decode_tokens"),
            sequences_S=column(steps, "num_requests"),
            keys_S=keys,
            prefill_pairs_S={window: pairs[window] - decode[window] for window in pairs},
            decode_pairs_S=decode,
            prefill_keys_S=prefill_keys,
            prefill_sequences_S=column(steps, "num_prefill_requests"),
        )

    @classmethod
    def of_point(cls, point: GapPoint, facts: ModelFacts) -> SeenTokens:
        """From repeated steps of one size and phase: arrays of one step."""
        windows = facts.windows[: len(point.window_context_W)]
        keys = (point.context_tokens, *point.window_context_W)
        pairs = (point.attention_pairs, *point.window_pairs_W)
        keys_S, pairs_S = (
            ByWindow({window: np.array([n]) for window, n in zip((None, *windows), found, strict=True)})
            for found in (keys, pairs)
        )
        none_S = ByWindow(dict.fromkeys(pairs_S, np.zeros(1)))
        is_decode = point.phase == "decode"
        return cls(
            written_S=np.array([float(point.tokens)]),
            sequences_S=np.array([float(point.sequences)]),
            keys_S=keys_S,
            prefill_pairs_S=none_S if is_decode else pairs_S,
            decode_pairs_S=pairs_S if is_decode else none_S,
            prefill_keys_S=none_S if is_decode else keys_S,
            prefill_sequences_S=np.array([0.0 if is_decode else float(point.sequences)]),
        )


def attention_work(facts: ModelFacts, seen: SeenTokens) -> tuple[FloatArray, FloatArray] | str:
    """(bytes, FLOPs) per step of all layers' attention, or the reason why they are unknown.

    Keys and values in reach are read and those of the step's tokens written, where the layer keeps its own; a state of
    constant size is read and written once a sequence.
    """
    layers, read = facts.layers_of_attention, read_bytes(facts, seen.keys_S, seen.sequences_S)
    if isinstance(layers, str) or isinstance(read, str):
        return layers if isinstance(layers, str) else str(read)
    written = sum(layer.keeps_bytes_per_token for layer in layers) * seen.written_S
    states = facts.state_bytes_per_sequence * seen.sequences_S
    flops = np.zeros_like(seen.written_S)
    for layer in layers:
        flops += layer.layers * layer.flops_per_pair * seen.prefill_pairs_S[layer.window]
        flops += layer.layers * layer.decode_flops_per_pair * seen.decode_pairs_S[layer.window]
    return read + written + states, flops


def read_bytes(facts: ModelFacts, keys_S: ByWindow, sequences_S: FloatArray) -> FloatArray | str:
    """Bytes of keys, values and states that each step reads, or the reason why they are unknown."""
    layers = facts.layers_of_attention
    if isinstance(layers, str):
        return layers
    if any(layer.window not in keys_S for layer in layers):
        return NO_WINDOWS
    found: FloatArray = facts.state_bytes_per_sequence * sequences_S
    for layer in layers:
        found = found + layer.layers * layer.kv_bytes_per_token * keys_S[layer.window]
    return found


def distinct_experts(tables: PassTables, facts: ModelFacts) -> tuple[FloatArray, BoolArray] | str:
    """U per counted step and MoE layer, in the order of ``facts.moe_layers``, and which steps were counted."""
    num = len(tables.steps)
    if num == 0:
        return "no steps"
    if not facts.is_moe:
        return np.zeros((num, 0)), np.ones(num, dtype=np.bool_)
    routing = tables.routing
    if routing is None:
        return "routing was not recorded"
    known = {name: i for i, name in enumerate(routing.layer_names)}
    if any(layer.name not in known for layer in facts.moe_layers):
        return "routing was recorded for other layers than the model has"
    counted = min(num, len(routing.distinct_SL))
    kept = (np.arange(num) < counted) & tables.steps["instrumented"].fillna(True).to_numpy(dtype=np.bool_)
    if not kept.any():
        return "routing was recorded for no step"
    order = [known[layer.name] for layer in facts.moe_layers]
    return routing.distinct_SL[:counted][kept[:counted]][:, order].astype(np.float64), kept


def _experts(
    facts: ModelFacts, distinct_SL: FloatArray, tokens_S: FloatArray, kernel: str | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Expert bytes moved, distinct expert parameters read, and multiply-adds of experts, per step."""
    num_bytes, params, macs = (np.zeros(len(tokens_S)) for _ in range(3))
    for i, layer in enumerate(facts.moe_layers):
        everyone = layer.executes_all_experts
        touched_S = np.full(len(tokens_S), float(layer.num_experts)) if everyone else distinct_SL[:, i]
        picks_S = tokens_S * (layer.num_experts if everyone else layer.top_k)
        gathers = kernel == "batched_mm" and not everyone
        num_bytes += layer.expert_bytes * (GATHER_FACTOR * picks_S if gathers else touched_S)
        params += layer.expert_params * touched_S
        macs += layer.expert_params * picks_S
    return num_bytes, params, macs


PHASES = (ALL, "prefill", "decode")
PER_STEP = ("bytes_per_step", "flops_per_step", "touched_params_per_step")
CACHED_SHARE = 0.05  # of the bytes, moved by steps that fit the cache: with more, bandwidth is not said to be the limit
OF_LIMITS = ("mbu_ratio", "mfu_ratio", "roofline_s", "time_over_roofline_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the device can do; each None has its reason.

    Attributes:
        bandwidth_bytes_per_s: measured; of which steps it is a limit, :meth:`cached` says.
        flops_per_s: measured, in the run's dtype.
        bandwidth_reason, flops_reason: why one is None.
        cache_bytes: of the last-level cache; None where that is not known.
    """

    bandwidth_bytes_per_s: float | None
    flops_per_s: float | None
    bandwidth_reason: str = ""
    flops_reason: str = ""
    cache_bytes: float | None = None

    def cached(self, bytes_S: FloatArray) -> str | None:
        """Why bandwidth is no limit of these steps; None where nearly all of their bytes come from memory."""
        if self.cache_bytes is None or not len(bytes_S):
            return None
        within = bytes_S <= self.cache_bytes
        cache = f"the last-level cache ({num_bytes(self.cache_bytes)})"
        if within.all():
            return f"the bytes of a step ({num_bytes(float(bytes_S.mean()))}) fit {cache}"
        share = float(bytes_S[within].sum() / bytes_S.sum())
        return f"{share:.0%} of the bytes are moved by steps that fit {cache}" if share > CACHED_SHARE else None


def limits_of(launch: LaunchHeader, facts: ModelFacts) -> Limits:
    """The measured peaks. They are those of one device; a model that several GPUs share has them all."""
    peaks, engine = launch.peaks or PeaksHeader(), launch.engine
    dtype = (engine.dtype or facts.dtype).removeprefix("torch.")
    devices = engine.ranks if (engine.device or "").startswith("cuda") else 1
    bandwidth = _times(peaks.bandwidth_bytes_per_s, devices)
    flops = _times(peaks.flops_per_s.get(dtype), devices)
    unmeasured = "peaks were not measured"
    return Limits(
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=flops,
        bandwidth_reason="" if bandwidth else peaks.bandwidth_reason or unmeasured,
        cache_bytes=_times(peaks.cache_bytes, devices),
        flops_reason="" if flops else (f"no matrix rate was measured in {dtype}" if launch.peaks else unmeasured),
    )


def _times(value: float | None, devices: int) -> float | None:
    return None if value is None else value * devices


def peaks_of(launch: LaunchHeader, facts: ModelFacts) -> tuple[float, float] | None:
    """(bytes/s, FLOP/s) for the cost split's last resort; None unless both are known and the weights miss the cache."""
    limits = limits_of(launch, facts)
    if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
        return None
    if limits.cache_bytes is not None and sum(facts.bytes_by_group.values()) <= limits.cache_bytes:
        return None
    return limits.bandwidth_bytes_per_s, limits.flops_per_s


def work_metrics(launch: LaunchHeader, facts: ModelFacts, rounds: Sequence[PassTables]) -> list[MetricValue]:
    """Bytes, FLOPs and touched parameters per step, MBU, MFU and the distance to the roofline, by phase.

    Args:
        launch: ``engine`` and ``peaks`` are read.
        facts: the model.
        rounds: passes with the same traffic.
    """
    if not rounds:
        return []
    works = [step_work(tables, facts, launch.engine) for tables in rounds]
    limits = limits_of(launch, facts)
    values = _peak_values(limits, {"traffic": rounds[0].traffic})
    for phase in PHASES:
        labels = {"traffic": rounds[0].traffic} | ({} if phase == ALL else {"phase": phase})
        reason = next((work for work in works if isinstance(work, str)), None)
        if reason is not None:
            values += [missing(name, reason, **labels) for name in (*PER_STEP, *OF_LIMITS)]
            continue
        parts = [
            _phase_of(work, tables, phase, limits)
            for work, tables in zip(works, rounds, strict=True)
            if isinstance(work, StepWork)
        ]
        values += _with_share(_of_phase(parts, labels, limits, phase), rounds, phase)
    return values


@dataclass(frozen=True, slots=True)
class _Phase:
    """The steps of one phase of one round, shape [S]."""

    num_bytes: FloatArray
    flops: FloatArray
    touched: FloatArray
    seconds: FloatArray
    roofline_s: FloatArray | None


def _phase_of(work: StepWork, tables: PassTables, phase: str, limits: Limits) -> _Phase:
    mask = work.phase_mask(tables, phase)
    roofline = roofline_S(work, limits)
    return _Phase(
        num_bytes=work.bytes_S[mask],
        flops=work.flops_S[mask],
        touched=work.touched_params_S[mask],
        seconds=work.time_S[mask],
        roofline_s=None if roofline is None else roofline[mask],
    )


def roofline_S(work: StepWork, limits: Limits) -> FloatArray | None:  # noqa: N802 - the suffix is the shape
    """Seconds a step takes at least: bytes over bandwidth or FLOPs over matrix rate; None unless both are known."""
    if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
        return None
    roofline: FloatArray = np.maximum(work.bytes_S / limits.bandwidth_bytes_per_s, work.flops_S / limits.flops_per_s)
    return roofline


def _with_share(values: list[MetricValue], rounds: Sequence[PassTables], phase: str) -> list[MetricValue]:
    """Figures per step of a phase say which share of its tokens pure steps hold; one of the first screen needs a fifth.

    A step's work is not known by phase, so that mixed steps cannot stand in, as they do for experts touched.
    """
    if phase == ALL:
        return values
    pure, total = 0.0, 0.0
    for tables in rounds:
        tokens = np.nan_to_num(column(tables.steps, f"{phase}_tokens"))
        pure, total = pure + float(tokens[is_phase(tables.steps, phase)].sum()), total + float(tokens.sum())
    if pure in (0, total):
        return values
    note = f"steps that hold nothing else have {units.percent(pure / total)} of the {phase} tokens"
    too_few = f"{note}: too few to speak for it"
    return [
        missing(value.name, too_few, **value.labels)
        if value.name == "touched_params_per_step" and pure < LEAST_SHARE * total
        else replace(value, reasons=(*value.reasons, note))
        if value.name in PER_STEP and value.value is not None
        else value
        for value in values
    ]


def _of_phase(parts: Sequence[_Phase], labels: dict[str, str], limits: Limits, phase: str) -> list[MetricValue]:
    none = f"no pure {phase} steps" if phase != ALL else "no steps"
    rate = limits.flops_per_s
    filled = [part for part in parts if len(part.seconds)]
    cached = limits.cached(np.concatenate([p.num_bytes for p in filled])) if filled else None
    no_bandwidth = limits.bandwidth_reason or cached or ""
    bandwidth, both = (
        None if no_bandwidth else limits.bandwidth_bytes_per_s,
        no_bandwidth or limits.flops_reason or none,
    )
    rooflines = [part.roofline_s for part in filled if part.roofline_s is not None and not no_bandwidth]
    return [
        mean_of_steps("bytes_per_step", [p.num_bytes for p in filled], labels, none),
        mean_of_steps("flops_per_step", [p.flops for p in filled], labels, none),
        mean_of_steps("touched_params_per_step", [p.touched for p in filled], labels, none),
        over_rounds(
            "mbu_ratio",
            [_ratio(p.num_bytes, p.seconds) / bandwidth for p in filled] if bandwidth else [],
            labels,
            no_bandwidth or none,
        ),
        over_rounds(
            "mfu_ratio",
            [_ratio(p.flops, p.seconds) / rate for p in filled] if rate else [],
            labels,
            limits.flops_reason or none,
        ),
        mean_of_steps("roofline_s", rooflines, labels, both),
        over_rounds(
            "time_over_roofline_ratio",
            [_ratio(p.seconds, p.roofline_s) for p in filled if p.roofline_s is not None and not no_bandwidth],
            labels,
            both,
        ),
    ]


def _ratio(above_S: FloatArray, below_S: FloatArray) -> float:
    """Sum over sum."""
    return float(above_S.sum() / below_S.sum())


def _peak_values(limits: Limits, labels: dict[str, str]) -> list[MetricValue]:
    """What the device was measured to do; the same for all traffic of a launch."""
    pairs = (
        ("peak_bandwidth_bytes_per_s", limits.bandwidth_bytes_per_s, limits.bandwidth_reason),
        ("peak_flops_per_s", limits.flops_per_s, limits.flops_reason),
    )
    return [measured(name, value, reason, labels) for name, value, reason in pairs]
