"""How near the limits of the device a run came (docs/metrics.md#work): bandwidth, matrix rate, roofline.

Ratios are sums over sums, never means of ratios, with intervals over rounds: they hold measured time. Work per step
follows from the tokens, which every round repeats: it comes from one round, with intervals over its steps. The limits
are the ones measured on the device when the run started.

Bytes and FLOPs of every step, from what ran (docs/metrics.md#work). Vectorised: S steps, L MoE layers.

A step reads every resident matrix once, the experts that its tokens chose, the keys and values of its sequences, and
the head; it multiplies each token with the matrices it passes. How many expert bytes are read depends on the kernel:
grouped kernels fetch each distinct expert once, gathering kernels fetch three times per token and pick, and code that
runs all experts fetches all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.samples import mean_of_steps, over_rounds
from moeprof.analysis.metrics.tables import ALL, BoolArray, PassTables, column, is_phase
from moeprof.analysis.stats.arrays import FloatArray
from moeprof.core.metric import Card, MetricValue, Place, measured, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.launch import EngineHeader, LaunchHeader, PeaksHeader
from moeprof.core.units import num_bytes

ALWAYS_READ = ("attention", "dense_mlp", "router", "shared_experts", "norm", "other")
# bytes per (token, pick) relative to one expert, for kernels that copy weights per pick: read, write, read again.
GATHER_FACTOR = 3

_card = partial(Card, section="work", source="docs/metrics.md#work")
_counted = partial(_card, kind="routing", from_routing=True, of_batches=True)
_timed = partial(_card, kind="timed", counts_tokens=True, from_routing=True, of_batches=True)
_peak = partial(_card, kind="timed", counts_tokens=False)
CARDS: tuple[Card, ...] = (
    _counted("touched_params_per_step", "parameters a step reads", "parameters", "neither",
          "B with k/E replaced by measured distinct experts per layer, plus the embedding rows looked up",
          screen=(Place(150, "parameters touched per decode step", phase="decode", own=True),)),
    _counted("bytes_per_step", "bytes a step moves", "B", "neither",
          "resident weights + distinct experts * expert bytes (by kernel) + KV read and write + head once"),
    _counted("flops_per_step", "FLOPs of a step", "FLOP", "lower",
          "2 * tokens * (resident + k * expert) + attention pairs + head on the rows kept"),
    _timed("mbu_ratio", "bandwidth used (S-MBU)", "ratio", "higher", "sum(bytes) / sum(step s) / measured bandwidth",
          source="S-MBU and S-MFU of MoE-CAP; docs/metrics.md#work",
          screen=(Place(180, "memory bandwidth used (MBU)"),)),
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
    if facts.kv_bytes_per_token is None or facts.attention_flops_per_pair is None:
        return next((n for n in facts.notes if n.startswith("KV bytes unknown")), "KV bytes per token are unknown")
    distinct = distinct_experts(tables, facts)
    if isinstance(distinct, str):
        return distinct
    distinct_SL, kept_S = distinct
    tokens = (column(steps, "prefill_tokens") + column(steps, "decode_tokens"))[kept_S]
    rows = column(steps, "new_tokens")[kept_S]
    pairs, context = column(steps, "attention_pairs")[kept_S], column(steps, "context_tokens")[kept_S]
    size, params = facts.bytes_by_group, facts.params_by_group
    head = "embedding" if facts.tied_embeddings else "lm_head"
    expert_bytes, expert_params_read, expert_flops = _experts(facts, distinct_SL, tokens, engine.experts)
    resident = sum(size.get(group, 0) for group in ALWAYS_READ)
    bytes_S = resident + expert_bytes + facts.kv_bytes_per_token * (context + tokens) + (rows > 0) * size.get(head, 0)
    through = sum(params.get(group, 0) for group in ALWAYS_READ if group != "norm")
    flops_S = 2 * (tokens * through + expert_flops + rows * params.get(head, 0))
    flops_S = flops_S + facts.attention_flops_per_pair * pairs
    looked_up = 0.0 if facts.tied_embeddings else tokens * facts.hidden_size
    not_routed = facts.total_params - params.get("routed_experts", 0)
    touched = not_routed - (0 if facts.tied_embeddings else params.get("embedding", 0)) + expert_params_read + looked_up
    return StepWork(
        bytes_S=bytes_S,
        flops_S=flops_S,
        time_S=(column(steps, "end_s") - column(steps, "start_s"))[kept_S],
        tokens_S=tokens,
        touched_params_S=np.broadcast_to(touched, tokens.shape).astype(np.float64),
        kept_S=kept_S,
    )


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
OF_LIMITS = ("mbu_ratio", "mfu_ratio", "roofline_s", "time_over_roofline_ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the device can do; each None has its reason.

    Attributes:
        bandwidth_bytes_per_s: measured, where it is a limit at all.
        measured_bandwidth_bytes_per_s: measured, whether it limits this model or not.
        flops_per_s: measured, in the run's dtype.
        bandwidth_reason, flops_reason: why one is None.
    """

    bandwidth_bytes_per_s: float | None
    flops_per_s: float | None
    bandwidth_reason: str = ""
    flops_reason: str = ""
    measured_bandwidth_bytes_per_s: float | None = None


def limits_of(launch: LaunchHeader, facts: ModelFacts) -> Limits:
    """The measured peaks that apply to this model: bandwidth is no limit for weights that fit the cache.

    Peaks are those of one device; a model that several GPUs share has them all.
    """
    peaks, engine = launch.peaks or PeaksHeader(), launch.engine
    dtype = (engine.dtype or facts.dtype).removeprefix("torch.")
    devices = engine.ranks if (engine.device or "").startswith("cuda") else 1
    measured = _times(peaks.bandwidth_bytes_per_s, devices)
    bandwidth, bandwidth_reason = measured, peaks.bandwidth_reason or ""
    cache, weights = _times(peaks.cache_bytes, devices), sum(facts.bytes_by_group.values())
    if cache is not None and weights <= cache:
        sizes = f"the weights ({num_bytes(weights)}) fit the last-level cache ({num_bytes(cache)})"
        bandwidth, bandwidth_reason = None, sizes
    flops = _times(peaks.flops_per_s.get(dtype), devices)
    unmeasured = "peaks were not measured"
    return Limits(
        bandwidth_bytes_per_s=bandwidth,
        flops_per_s=flops,
        bandwidth_reason="" if bandwidth else bandwidth_reason or unmeasured,
        measured_bandwidth_bytes_per_s=measured,
        flops_reason="" if flops else (f"no matrix rate was measured in {dtype}" if launch.peaks else unmeasured),
    )


def _times(value: float | None, devices: int) -> float | None:
    return None if value is None else value * devices


def peaks_of(launch: LaunchHeader, facts: ModelFacts) -> tuple[float, float] | None:
    """(bytes/s, FLOP/s) for the cost split's last resort; None unless both limits apply to this model."""
    limits = limits_of(launch, facts)
    if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
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
        values += _of_phase(parts, labels, limits, phase)
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


def _of_phase(parts: Sequence[_Phase], labels: dict[str, str], limits: Limits, phase: str) -> list[MetricValue]:
    none = f"no pure {phase} steps" if phase != ALL else "no steps"
    bandwidth, rate = limits.bandwidth_bytes_per_s, limits.flops_per_s
    both = limits.bandwidth_reason or limits.flops_reason or none
    filled = [part for part in parts if len(part.seconds)]
    rooflines = [part.roofline_s for part in filled if part.roofline_s is not None]
    return [
        mean_of_steps("bytes_per_step", [p.num_bytes for p in filled], labels, none),
        mean_of_steps("flops_per_step", [p.flops for p in filled], labels, none),
        mean_of_steps("touched_params_per_step", [p.touched for p in filled], labels, none),
        over_rounds(
            "mbu_ratio",
            [_ratio(p.num_bytes, p.seconds) / bandwidth for p in filled] if bandwidth else [],
            labels,
            limits.bandwidth_reason or none,
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
            [_ratio(p.seconds, p.roofline_s) for p in filled if p.roofline_s is not None],
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
        ("peak_bandwidth_bytes_per_s", limits.measured_bandwidth_bytes_per_s, limits.bandwidth_reason),
        ("peak_flops_per_s", limits.flops_per_s, limits.flops_reason),
    )
    return [measured(name, value, reason, labels) for name, value, reason in pairs]
