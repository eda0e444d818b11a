"""Where the memory went: weights by group, cache, activations, and what idle experts occupy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from moeprof.analysis.metrics.context import Context
from moeprof.analysis.metrics.resources.work import distinct_experts
from moeprof.analysis.metrics.samples import mean_of_steps
from moeprof.analysis.metrics.tables import PassTables, column
from moeprof.analysis.stats.arrays import FloatArray, IntArray
from moeprof.core.metric import Card, MetricValue, Place, measured, missing
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record.experiment import ModelFit
from moeprof.core.record.launch import EngineHeader, LaunchHeader, MemoryHeader

HOT_SHARES = {"hot_set_bytes_90": 0.90, "hot_set_bytes_99": 0.99}
USABLE_SHARE = 0.9  # of a device's memory, for weights and cache; activations and reserve take the rest
DENSE = "dense model: no routed experts"
NO_ROUTING = "routing was not recorded"
UNMEASURED = "not measured"
NOT_ONE_MOMENT = "at most: reserved memory changed in the pass, so its peak may be of another moment than allocated's"

_card = partial(Card, section="memory", source="docs/metrics.md#memory")
_of_run = partial(_card, kind="timed", counts_tokens=False)
_of_routing = partial(_card, kind="routing", from_routing=True)
CARDS: tuple[Card, ...] = (
    _card("weights_bytes", "weights", "B", "lower", "bytes as stored; by group with label group", kind="exact",
          screen=(Place(70, "weights"),), gates=(Place(30, "0%"),), baseline=(Place(30),)),
    _card("kv_cache_bytes", "KV cache, allocated", "B", "neither", "bytes allocated for keys and values", kind="exact",
          gates=(Place(50, "+1%"),), needs="memory"),
    _of_run("kv_cache_peak_used_bytes", "KV cache, most used", "B", "lower",
          "largest kv_tokens_used at the end of a step * kv_bytes_per_token", counts_tokens=True, needs="memory"),
    _of_run("activation_peak_bytes", "activations, peak", "B", "lower",
          "peak allocated - allocated after weights and cache", needs="memory"),
    _of_run("reserved_bytes", "reserved by the allocator", "B", "lower", "peak of reserved memory", needs="memory"),
    _of_run("fragmentation_ratio", "fragmentation", "ratio", "lower", "1 - allocated / reserved at the allocated peak",
          needs="memory"),
    _of_run("load_peak_bytes", "peak while loading", "B", "lower", "largest memory while weights were loaded",
          needs="memory"),
    _of_run("host_rss_peak_bytes", "host memory, peak", "B", "lower", "largest resident set of the process",
          needs="memory"),
    _of_run("peak_memory_bytes", "memory needed", "B", "lower",
          "device: peak reserved; CPU run: peak resident set (label memory)", screen=(Place(180, "peak memory"),),
          needs="memory"),
    _card("predicted_memory_bytes", "memory, predicted before loading", "B", "neither",
          "process, weights, cache, activations and instruments, from config, files and this machine; device: without "
          "the context", kind="exact"),
    _of_run("predicted_memory_error_ratio", "predicted over measured, less 1", "ratio", "neither",
            "predicted_memory_bytes / peak_memory_bytes - 1", needs="memory"),
    _of_run("process_base_bytes", "process without model, warm", "B", "lower",
            "CPU run: resident set after warm-up and calibration - weights - KV cache", needs="memory"),
    _of_routing("idle_expert_bytes_per_step", "expert bytes idle in a step", "B", "lower",
          "mean over steps of routed expert bytes - bytes of experts with a token; a fact, not a price",
          of_batches=True),
    _of_routing("cold_expert_bytes", "expert bytes never used", "B", "lower",
          "experts without a single token in the whole window"),
    _of_routing("hot_set_bytes_90", "expert bytes that serve 90 %", "B", "neither",
          "fewest expert bytes with 90 % of picks"),
    _of_routing("hot_set_bytes_99", "expert bytes that serve 99 %", "B", "neither",
          "fewest expert bytes with 99 % of picks"),
    _of_run("max_concurrent_sequences", "sequences that fit", "sequences", "higher",
          "floor((0.9 * device memory - weights) / what a request keeps of prompt and output, mean over requests); a "
          "tenth is for activations and reserve, as in devices_needed", counts_tokens=True, needs="memory"),
)  # fmt: skip


def compute(context: Context) -> list[MetricValue]:
    """Memory of one launch, with what its rounds used of it."""
    return memory_metrics(context.info, context.facts, context.passes, context.fit)


def memory_metrics(
    launch: LaunchHeader, facts: ModelFacts, rounds: Sequence[PassTables], fit: ModelFit | None = None
) -> list[MetricValue]:
    """Memory of one launch.

    Args:
        launch: ``memory`` and ``engine`` are read.
        facts: the model.
        rounds: passes with the same traffic.
        fit: what was predicted.
    """
    memory = launch.memory
    values = [_exact("weights_bytes", sum(facts.bytes_by_group.values()))]
    values += [_exact("weights_bytes", facts.bytes_by_group.get(g, 0), group=g) for g in facts.groups]
    values += _measured(memory, launch.engine)
    values.append(_cache_peak(facts, rounds))
    values.append(_fragmentation(memory))
    values.append(_peak(memory))
    values += _forecast(launch, facts, fit)
    values.append(_max_concurrent(memory, facts, rounds))
    return [*values, *_experts(facts, rounds)]


def _measured(memory: MemoryHeader, engine: EngineHeader) -> list[MetricValue]:
    """What the allocator and the system told, as it stands in launch.json."""
    cache = memory.kv_cache_bytes
    found = {
        "kv_cache_bytes": cache if isinstance(cache, int) else engine.kv_bytes,
        "activation_peak_bytes": memory.activation_peak_bytes,
        "reserved_bytes": memory.peak_reserved_bytes,
        "load_peak_bytes": memory.load_peak_bytes,
        "host_rss_peak_bytes": memory.host_rss_peak_bytes,
    }
    keys = {"reserved_bytes": "peak_reserved_bytes"}
    return [measured(name, value, _reason(memory, keys.get(name, name))) for name, value in found.items()]


def _reason(memory: MemoryHeader, key: str) -> str:
    return memory.reasons.get(key, UNMEASURED)


def _cache_peak(facts: ModelFacts, rounds: Sequence[PassTables]) -> MetricValue:
    """The most cache that tokens occupied at the end of a step, over all rounds."""
    name = "kv_cache_peak_used_bytes"
    if facts.kv_bytes_per_token is None:
        return missing(name, "KV bytes per token are unknown")
    used = [column(tables.steps, "kv_tokens_used") for tables in rounds if len(tables.steps)]
    known = np.concatenate(used) if used else np.empty(0)
    known = known[np.isfinite(known)]
    if not len(known):
        return missing(name, "the engine does not tell how much of its cache is in use")
    return MetricValue(name=name, value=int(known.max()) * facts.kv_bytes_per_token)


def _fragmentation(memory: MemoryHeader) -> MetricValue:
    """Allocated and reserved of one moment: that of the largest allocation."""
    name, allocated = "fragmentation_ratio", memory.peak_allocated_bytes
    reserved = memory.peak_reserved_bytes if memory.reserved_at_peak_bytes is None else memory.reserved_at_peak_bytes
    if allocated is None or not reserved:
        return missing(name, _reason(memory, "peak_reserved_bytes"))
    exact = bool(memory.reserved_at_peak_is_exact)
    return MetricValue(name=name, value=1 - allocated / reserved, reasons=() if exact else (NOT_ONE_MOMENT,))


def _peak(memory: MemoryHeader) -> MetricValue:
    """What the run needed: reserved on a device, resident set on a CPU."""
    on_host = memory.kind == "host"
    key = "host_rss_peak_bytes" if on_host else "peak_reserved_bytes"
    value = memory.host_rss_peak_bytes if on_host else memory.peak_reserved_bytes
    where = "host" if on_host else "device"
    return measured("peak_memory_bytes", value, _reason(memory, key), {"memory": where})


def _forecast(launch: LaunchHeader, facts: ModelFacts, fit: ModelFit | None) -> list[MetricValue]:
    """What was predicted, how far off it was, and what the process takes without its model."""
    names = ("predicted_memory_bytes", "predicted_memory_error_ratio", "process_base_bytes")
    peak, on_host = _peak(launch.memory), launch.memory.kind == "host"
    values = [missing(name, "not predicted: the model is elsewhere, or its size was not known") for name in names[:2]]
    if fit is not None and fit.needed_bytes is not None:
        context = 0 if on_host else fit.base_bytes or 0  # torch's allocator does not see it
        predicted = fit.needed_bytes - context
        values[0] = MetricValue(name=names[0], value=predicted, exact=True)
        error = None if not peak.value else predicted / float(peak.value) - 1
        values[1] = measured(names[1], error, "; ".join(peak.reasons) or UNMEASURED)
    return [*values, _process_base(launch, facts)]


def _process_base(launch: LaunchHeader, facts: ModelFacts) -> MetricValue:
    name, memory = "process_base_bytes", launch.memory
    if memory.kind != "host":
        return missing(name, "a device has no process of its own to measure" if memory.kind else UNMEASURED)
    if memory.after_warmup_bytes is None:
        return missing(name, "not measured by the version that wrote this record")
    cache = memory.kv_cache_bytes if isinstance(memory.kv_cache_bytes, int) else launch.engine.kv_bytes
    if cache is None:
        return missing(name, "the engine does not tell the size of its cache")
    return MetricValue(name=name, value=memory.after_warmup_bytes - sum(facts.bytes_by_group.values()) - cache)


def _max_concurrent(memory: MemoryHeader, facts: ModelFacts, rounds: Sequence[PassTables]) -> MetricValue:
    """floor((usable memory - weights) / what a request keeps at its end, mean over requests)."""
    name, total = "max_concurrent_sequences", memory.device_total_bytes
    if total is None:
        return missing(name, _reason(memory, "device_total_bytes"))
    layers = facts.layers_of_attention
    if isinstance(layers, str):
        return missing(name, layers)
    lengths = [column(t.requests, "input_tokens") + column(t.requests, "asked_output_tokens") for t in rounds]
    known = np.concatenate(lengths) if lengths else np.empty(0)
    known = known[np.isfinite(known)]
    if not len(known) or known.mean() <= 0:
        return missing(name, "no requests")
    room = USABLE_SHARE * total - sum(facts.bytes_by_group.values())
    if room <= 0:
        return missing(name, "the weights alone fill the device")
    kept = float(np.mean([facts.kept_bytes(int(tokens)) or 0 for tokens in known]))
    return MetricValue(name=name, value=math.floor(room / kept)) if kept else missing(name, "a sequence keeps nothing")


def _experts(facts: ModelFacts, rounds: Sequence[PassTables]) -> list[MetricValue]:
    names = ("idle_expert_bytes_per_step", "cold_expert_bytes", *HOT_SHARES)
    if not facts.is_moe:
        return [missing(name, DENSE) for name in names]
    counts = expert_counts(facts, rounds)
    if counts is None or not rounds:
        return [missing(name, NO_ROUTING) for name in names]
    labels: dict[str, str] = {"traffic": rounds[0].traffic}
    idle = [_idle_bytes(tables, facts) for tables in rounds]
    values = [mean_of_steps(names[0], idle, labels, NO_ROUTING)]
    values.append(MetricValue(name=names[1], value=cold_expert_bytes(facts, counts), exact=True, labels=labels))
    for name, share in HOT_SHARES.items():
        values.append(measured(name, hot_set_bytes(facts, counts, share), "no tokens were routed", labels, exact=True))
    return values


def expert_counts(facts: ModelFacts, rounds: Sequence[PassTables]) -> tuple[IntArray, ...] | None:
    """Tokens per expert over all rounds, one array [E] per MoE layer; None without complete routing."""
    total: list[IntArray] = [np.zeros(layer.num_experts, dtype=np.int64) for layer in facts.moe_layers]
    for tables in rounds:
        if tables.routing is None:
            return None
        counts_LE = tables.routing.counts_WPCLE.sum(axis=(0, 1, 2))
        rows = {name: i for i, name in enumerate(tables.routing.layer_names)}
        for i, layer in enumerate(facts.moe_layers):
            if layer.name not in rows:
                return None
            total[i] = total[i] + counts_LE[rows[layer.name], : layer.num_experts]
    return tuple(total)


def cold_expert_bytes(facts: ModelFacts, counts: Sequence[IntArray]) -> int:
    """Bytes of experts that no token was sent to in the whole window."""
    layers = zip(facts.moe_layers, counts, strict=True)
    return sum(int((count == 0).sum()) * layer.expert_bytes for layer, count in layers)


def hot_set_bytes(facts: ModelFacts, counts: Sequence[IntArray], share: float) -> int | None:
    """The fewest expert bytes that serve this share of assignments, most tokens per byte first; None without any."""
    size = np.concatenate(
        [np.full(len(c), layer.expert_bytes) for layer, c in zip(facts.moe_layers, counts, strict=True)]
    )
    tokens: FloatArray = np.concatenate(counts).astype(np.float64)
    total = tokens.sum()
    if total == 0:
        return None
    order = np.argsort(-tokens / np.maximum(size, 1), kind="stable")
    served = np.cumsum(tokens[order])
    needed = int(np.searchsorted(served, share * total * (1 - 1e-12))) + 1
    return int(size[order][:needed].sum())


def _idle_bytes(tables: PassTables, facts: ModelFacts) -> FloatArray:
    """Routed expert bytes that no token of the step touched, per step; empty where routing is unknown."""
    distinct = distinct_experts(tables, facts)
    if isinstance(distinct, str):
        return np.empty(0)
    size = np.array([layer.expert_bytes for layer in facts.moe_layers], dtype=np.float64)
    experts = np.array([layer.num_experts for layer in facts.moe_layers], dtype=np.float64)
    idle: FloatArray = (experts - distinct[0]) @ size
    return idle


def _exact(name: str, value: int, **labels: str) -> MetricValue:
    return MetricValue(name=name, value=value, exact=True, labels=labels)
