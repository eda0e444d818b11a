"""What the distance between a step and its roofline consists of: its parts, launching, and the host.

A step's wall time W is split so that the parts add up to it exactly. On a device: each stage's kernels; ``launches``,
the device's time between kernels; ``host``, W beyond the device's time. On a CPU: each stage's operations; ``host``,
what Python does between them. ``not_itemised`` is what is left, and negative where profiling made the parts longer.
A part's excess is its time over its own floor; the excesses add up to the gap.

Bytes and FLOPs of each part of a step: docs/metrics.md#work, one stage of core/record/breakdown.py at a time.

The sum over stages is that of work.py, plus the embedding rows looked up. A part's floor is the longer of moving
its bytes at the measured bandwidth and multiplying at the measured rate; parts follow each other, so the sum of the
floors is at least the floor of the whole step, and more where some parts wait for memory and others for arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.resources.work import GATHER_FACTOR, Limits, SeenTokens, attention_work, limits_of
from moeprof.core.metric import Card, MetricValue, measured
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.breakdown import STAGES, Gap, GapPoint, ProfiledStep
from moeprof.core.record.launch import EngineHeader, LaunchHeader

_card = partial(Card, section="gap", source="docs/metrics.md#breakdown", kind="timed", counts_tokens=True)
CARDS: tuple[Card, ...] = (
    _card("gap_step_s", "step of this size", "s", "lower",
          "median wall time of repeated steps, as the engine is configured"),
    _card("gap_step_device_s", "of it on the device", "s", "lower",
          "median time between device events around the step"),
    _card("gap_roofline_s", "least time", "s", "lower",
          "max(bytes / measured bandwidth, FLOPs / measured matrix rate) of the step"),
    _card("gap_time_over_roofline_ratio", "time over the limit", "ratio", "lower", "gap_step_s / gap_roofline_s"),
    _card("gap_s", "gap", "s", "lower",
          "gap_step_s - sum over parts of gap_part_roofline_s: the sum of the parts' excesses"),
    _card("gap_part_s", "part of a step", "s", "lower",
          "seconds of the part's kernels (device) or operations (CPU), median over profiled steps; launches: device "
          "time - kernels; host: wall - device time (CPU: between operations); not_itemised: what is left of "
          "gap_step_s"),
    _card("gap_part_roofline_s", "least time of a part", "s", "lower",
          "max(bytes / measured bandwidth, FLOPs / measured matrix rate) of the part; launches and host need 0"),
    _card("gap_launches_per_step", "launches per step", "launches", "lower",
          "kernels (device) or outermost operations (CPU) of one eager step"),
    _card("gap_profiled_over_plain_ratio", "profiled over plain step", "ratio", "neither",
          "median wall time of the profiled, eager steps / gap_step_s: how far profiling stretched what it shows"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Of the first launch that measured anything."""
    return gap_metrics(context.info, context.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one part of a step has to do. Bytes are moved, FLOPs computed."""

    num_bytes: float = 0.0
    flops: float = 0.0

    def floor_s(self, limits: Limits) -> float | None:
        """Seconds it takes at least; None unless both limits are known and apply."""
        if limits.bandwidth_bytes_per_s is None or limits.flops_per_s is None:
            return None
        return max(self.num_bytes / limits.bandwidth_bytes_per_s, self.flops / limits.flops_per_s)

    def __add__(self, other: Work) -> Work:
        return Work(num_bytes=self.num_bytes + other.num_bytes, flops=self.flops + other.flops)


def total_of(works: Mapping[str, Work]) -> Work:
    """The work of the whole step."""
    return sum(works.values(), Work())


def stage_work(
    point: GapPoint, layers: tuple[str, ...], facts: ModelFacts, engine: EngineHeader
) -> dict[str, Work] | str:
    """The work of every stage of a step of this size, or the reason why it is unknown.

    Args:
        point: the size, with what its steps touched.
        layers: names of the MoE layers, the order of ``point.distinct_L``.
        facts: the model.
        engine: EngineFacts as in launch.json; the experts kernel says how often an expert is read.
    """
    attention = attention_work(facts, SeenTokens.of_point(point, facts))
    if isinstance(attention, str):
        return attention
    distinct = _distinct(point, layers, facts)
    if isinstance(distinct, str):
        return distinct
    size, params, tokens = facts.bytes_by_group, facts.params_by_group, point.tokens

    def dense(*groups: str) -> Work:
        """Matrices that are read once and multiply every token."""
        through = sum(params.get(group, 0) for group in groups if group != "norm")
        return Work(num_bytes=sum(size.get(group, 0) for group in groups), flops=2 * tokens * through)

    head, rows = "embedding" if facts.tied_embeddings else "lm_head", point.new_tokens
    per_param = size.get("embedding", 0) / max(1, params.get("embedding", 0))
    gathers = _kernel(point, engine) == "batched_mm"
    experts, copied = _experts(point, facts, distinct, gathers)
    works = dict.fromkeys(STAGES, Work()) | {
        "embedding": Work(num_bytes=tokens * facts.hidden_size * per_param),
        "attention_projections": dense("attention"),
        "attention": Work(num_bytes=float(attention[0][0]), flops=float(attention[1][0])),
        "router": dense("router"),
        "dispatch": Work(num_bytes=copied),
        "experts": experts,
        "mlp": dense("dense_mlp", "shared_experts"),
        "elementwise": dense("norm", "other"),
        "lm_head": Work(num_bytes=size.get(head, 0) if rows else 0, flops=2 * rows * params.get(head, 0)),
    }
    return works


def _kernel(point: GapPoint, engine: EngineHeader) -> str | None:
    own = engine.decode_experts if point.phase == "decode" else None
    return own or engine.experts


def _distinct(point: GapPoint, layers: tuple[str, ...], facts: ModelFacts) -> tuple[float, ...] | str:
    """Experts touched per MoE layer, in the order of ``facts.moe_layers``."""
    if not facts.is_moe:
        return ()
    if point.distinct_L is None:
        return "routing was not recorded"
    known = dict(zip(layers, point.distinct_L, strict=True))
    if any(layer.name not in known for layer in facts.moe_layers):
        return "routing was recorded for other layers than the model has"
    return tuple(known[layer.name] for layer in facts.moe_layers)


def _experts(point: GapPoint, facts: ModelFacts, distinct: tuple[float, ...], gathers: bool) -> tuple[Work, float]:
    """The experts' products, and bytes copied for them: kernels that gather weights read and write them once before."""
    products, copied = Work(), 0.0
    for layer, touched in zip(facts.moe_layers, distinct, strict=True):
        everyone = layer.executes_all_experts
        picks = point.tokens * (layer.num_experts if everyone else layer.top_k)
        read = layer.num_experts if everyone else picks if gathers else touched
        products += Work(num_bytes=layer.expert_bytes * read, flops=2 * layer.expert_params * picks)
        copied += layer.expert_bytes * (GATHER_FACTOR - 1) * picks if gathers and not everyone else 0.0
    return products, copied


LAUNCHES, HOST, REST = "launches", "host", "not_itemised"
PARTS = (*STAGES, LAUNCHES, HOST, REST)
FUSED = {"attention_projections": "attention", "router": "experts"}  # one kernel may compute a stage with another
DUST_S = 1e-12  # what floating point leaves over


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a step. ``floor_s`` is None where the limits are unknown or do not apply; launching and host need 0."""

    name: str
    seconds: float
    floor_s: float | None

    @property
    def excess_s(self) -> float | None:
        """Time over the floor."""
        return None if self.floor_s is None else self.seconds - self.floor_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemisedStep:
    """One size of step, taken apart.

    Attributes:
        point: as measured.
        wall_s: median wall time of its steps.
        device_s: median device time, or None.
        roofline_s: least time of the whole step, or None with ``reason``.
        parts: in the order of PARTS; they add up to ``wall_s``.
        profiled: the typical profiled step that the parts come from, or None.
        reason: why there is no roofline.
    """

    point: GapPoint
    wall_s: float
    device_s: float | None
    roofline_s: float | None
    parts: tuple[Part, ...]
    profiled: ProfiledStep | None
    reason: str

    @property
    def time_over_roofline_ratio(self) -> float | None:
        """How many times its roofline the step takes."""
        return None if not self.roofline_s else self.wall_s / self.roofline_s

    @property
    def gap_s(self) -> float | None:
        """Wall time over the sum of the parts' floors: the sum of their excesses."""
        floors = [part.floor_s for part in self.parts]
        known = [floor for floor in floors if floor is not None]
        return self.wall_s - sum(known) if len(known) == len(floors) else None

    @property
    def labels(self) -> dict[str, str]:
        """Phase, and the batch (decode) or the tokens (prefill)."""
        size = {"batch": self.point.sequences} if self.point.phase == "decode" else {"tokens": self.point.tokens}
        return {"phase": self.point.phase} | {key: str(value) for key, value in size.items()}


def itemised_steps(launch: LaunchHeader, facts: ModelFacts) -> tuple[ItemisedStep, ...]:
    """Every size that a launch measured; empty where it measured none, or its engine offers no module.

    Args:
        launch: ``gap``, ``engine`` and ``peaks`` are read.
        facts: the model.
    """
    gap = None if launch.gap is None else launch.gap.found
    if gap is None:
        return ()
    limits = limits_of(launch, facts)
    return tuple(_itemised(point, gap, limits, facts, launch.engine) for point in gap.points)


def _itemised(point: GapPoint, gap: Gap, limits: Limits, facts: ModelFacts, engine: EngineHeader) -> ItemisedStep:
    works = stage_work(point, gap.layers, facts, engine)
    wall_s, device_s = median(point.wall_S), median(point.device_S) if point.device_S else None
    profiled = _typical(point.profiled_P)
    seconds = dict.fromkeys(PARTS, 0.0) | _split(wall_s, device_s, profiled, gap)
    floors: Mapping[str, float | None] = dict.fromkeys(PARTS)
    roofline_s, reason = None, works if isinstance(works, str) else _no_floor(total_of(works), limits)
    if not isinstance(works, str) and not reason:
        roofline_s = total_of(works).floor_s(limits)
        works = _as_run(works, profiled)
        floors = {name: works[name].floor_s(limits) if name in works else 0.0 for name in PARTS}
    if profiled is None:  # nothing to hold the floors against: they are of what was not itemised
        floors = dict.fromkeys((HOST, REST)) if roofline_s is None else {HOST: 0.0, REST: roofline_s}
    return ItemisedStep(
        point=point,
        wall_s=wall_s,
        device_s=device_s,
        roofline_s=roofline_s,
        parts=tuple(
            Part(name=name, seconds=seconds[name], floor_s=floors.get(name))
            for name in PARTS
            if abs(seconds[name]) > DUST_S or floors.get(name)
        ),
        profiled=profiled,
        reason=reason,
    )


def _no_floor(work: Work, limits: Limits) -> str:
    """Why the device's limits say nothing of a step of this size; "" where they do."""
    return limits.bandwidth_reason or limits.flops_reason or limits.cached(np.array([work.num_bytes])) or ""


def _as_run(works: dict[str, Work], profiled: ProfiledStep | None) -> dict[str, Work]:
    """Work of stages that took no time of their own goes to the stage whose kernel did it."""
    ran = {} if profiled is None else profiled.stage_s
    merged = dict(works)
    for stage, other in FUSED.items():
        if stage not in ran and other in ran:
            merged |= {stage: Work(), other: merged[other] + merged[stage]}
    return merged


def _typical(steps: tuple[ProfiledStep, ...]) -> ProfiledStep | None:
    """The median of every stage: where something else took the processor in one step, another step tells."""
    if not steps:
        return None
    names = [name for name in STAGES if any(name in step.stage_s for step in steps)]
    return ProfiledStep(
        wall_s=median(step.wall_s for step in steps),
        stage_s={name: median(step.stage_s.get(name, 0.0) for step in steps) for name in names},
        launches=round(median(step.launches for step in steps)),
        unplaced_s=median(step.unplaced_s for step in steps),
    )


def _split(wall_s: float, device_s: float | None, profiled: ProfiledStep | None, gap: Gap) -> dict[str, float]:
    """Seconds of the parts that are there; they add up to ``wall_s``."""
    if profiled is None:
        return {REST: wall_s} if device_s is None else {REST: device_s, HOST: wall_s - device_s}
    stages, itemised_s = profiled.stage_s, profiled.itemised_s
    if gap.clock == "kernels" and device_s is not None:
        launches = max(0.0, device_s - itemised_s - profiled.unplaced_s)
        host = max(0.0, wall_s - device_s)
        parts = {**stages, LAUNCHES: launches, HOST: host}
    else:  # no more is the host's than the profiled step had between its operations
        parts = {**stages, HOST: max(0.0, min(wall_s, profiled.wall_s) - itemised_s)}
    return {**parts, REST: wall_s - sum(parts.values())}


def gap_metrics(launch: LaunchHeader, facts: ModelFacts) -> list[MetricValue]:
    """Time, roofline and parts of every size of step that a launch itemised."""
    values = []
    for step in itemised_steps(launch, facts):
        n, labels = len(step.point.wall_S), step.labels
        reason = step.reason or "no work was counted"
        values += [
            MetricValue(name="gap_step_s", value=step.wall_s, n=n, labels=labels),
            measured("gap_step_device_s", step.device_s, "device time needs a device with events", labels),
            measured("gap_roofline_s", step.roofline_s, reason, labels),
            measured("gap_time_over_roofline_ratio", step.time_over_roofline_ratio, reason, labels),
            measured("gap_s", step.gap_s, reason, labels),
        ]
        why = step.point.reason or "no step was profiled"
        ratio = None if step.profiled is None else step.profiled.wall_s / step.wall_s
        launched = None if step.profiled is None else step.profiled.launches
        values += [
            measured("gap_launches_per_step", launched, why, labels),
            measured("gap_profiled_over_plain_ratio", ratio, why, labels),
        ]
        for part in step.parts:
            own = labels | {"part": part.name}
            values.append(MetricValue(name="gap_part_s", value=part.seconds, labels=own))
            values.append(measured("gap_part_roofline_s", part.floor_s, reason, own))
    return values
