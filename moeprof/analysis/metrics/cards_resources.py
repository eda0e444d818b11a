"""Cards of METRICS sections 2, 4, 5 and 6: parameters, memory, work, energy."""

from __future__ import annotations

from moeprof.core.metric import Better, Card


def _cards(section: str, source: str, rows: tuple[tuple[str, str, str, Better, str], ...]) -> tuple[Card, ...]:
    """Rows of (name, title, unit, better, formula)."""
    return tuple(
        Card(
            name=name,
            title=title,
            unit=unit,
            better=better,
            formula=formula,
            source=source,
            section=section,
            headline=name in HEADLINES,
        )
        for name, title, unit, better, formula in rows
    )


HEADLINES = ("total_params", "active_params", "active_params_ratio", "peak_memory_bytes", "energy_j_per_output_token")

PARAMETERS = _cards(
    "parameters",
    "moeprof METRICS section 2; counted by parameter identity, tied weights once",
    (
        ("total_params", "parameters, total", "parameters", "neither", "all parameters, tied ones once"),
        (
            "active_params",
            "parameters, active (A)",
            "parameters",
            "neither",
            "total - sum over MoE layers of routed * (1 - k/E); Mixtral, Qwen, OLMoE, DBRX, Jamba publish this one",
        ),
        (
            "active_params_no_embedding",
            "parameters, active without embedding (B)",
            "parameters",
            "neither",
            "A - input embedding (kept when tied); gpt-oss and DeepSeek-V3 publish this one",
        ),
        (
            "active_params_no_embedding_no_head",
            "parameters, active without embedding and head (C)",
            "parameters",
            "neither",
            "B - lm_head; GLM-4.5, MiniMax-Text-01 and Moonlight publish this one",
        ),
        ("active_params_ratio", "active / total", "ratio", "neither", "active_params / total_params"),
        ("params", "parameters of a group", "parameters", "neither", "parameters of the group in label group"),
        ("num_moe_layers", "MoE layers", "layers", "neither", "blocks of routed experts"),
        ("num_experts", "experts per layer", "experts", "neither", "E"),
        ("top_k", "experts per token", "experts", "neither", "k"),
        ("expert_bytes", "size of one expert", "B", "neither", "bytes of one routed expert as stored"),
        ("kv_bytes_per_token", "KV bytes per token", "B", "lower", "keys and values of one token over all layers"),
        (
            "attention_flops_per_pair",
            "attention FLOPs per pair",
            "FLOP",
            "lower",
            "2 * heads * (key width + value width) over all layers, per query-key pair",
        ),
    ),
)

MEMORY = _cards(
    "memory",
    "moeprof METRICS section 4",
    (
        ("weights_bytes", "weights", "B", "lower", "bytes as stored; by group with label group"),
        ("kv_cache_bytes", "KV cache, allocated", "B", "neither", "bytes allocated for keys and values"),
        (
            "kv_cache_peak_used_bytes",
            "KV cache, most used",
            "B",
            "lower",
            "largest kv_tokens_used at the end of a step * kv_bytes_per_token",
        ),
        (
            "activation_peak_bytes",
            "activations, peak",
            "B",
            "lower",
            "peak allocated - allocated after weights and cache",
        ),
        ("reserved_bytes", "reserved by the allocator", "B", "lower", "peak of reserved memory"),
        ("fragmentation_ratio", "fragmentation", "ratio", "lower", "1 - allocated / reserved at the allocated peak"),
        ("load_peak_bytes", "peak while loading", "B", "lower", "largest memory while weights were loaded"),
        ("host_rss_peak_bytes", "host memory, peak", "B", "lower", "largest resident set of the process"),
        (
            "peak_memory_bytes",
            "memory needed",
            "B",
            "lower",
            "device: peak reserved; CPU run: peak resident set (label memory)",
        ),
        (
            "idle_expert_bytes_per_step",
            "expert bytes idle in a step",
            "B",
            "lower",
            "mean over steps of routed expert bytes - bytes of experts with a token; a fact, not a price",
        ),
        (
            "cold_expert_bytes",
            "expert bytes never used",
            "B",
            "lower",
            "experts without a single token in the whole window",
        ),
        ("hot_set_bytes_90", "expert bytes that serve 90 %", "B", "lower", "fewest expert bytes with 90 % of picks"),
        ("hot_set_bytes_99", "expert bytes that serve 99 %", "B", "lower", "fewest expert bytes with 99 % of picks"),
        (
            "max_concurrent_sequences",
            "sequences that fit",
            "sequences",
            "higher",
            "floor((device memory - weights) / (mean prompt + output tokens * kv_bytes_per_token))",
        ),
    ),
)

WORK = _cards(
    "work",
    "moeprof METRICS section 5; Williams et al., Roofline (2009); MoE-CAP (S-MBU, S-MFU)",
    (
        (
            "touched_params_per_step",
            "parameters a step reads",
            "parameters",
            "lower",
            "B with k/E replaced by measured distinct experts per layer, plus the embedding rows looked up",
        ),
        (
            "bytes_per_step",
            "bytes a step moves",
            "B",
            "lower",
            "resident weights + distinct experts * expert bytes (by kernel) + KV read and write + head once",
        ),
        (
            "flops_per_step",
            "FLOPs of a step",
            "FLOP",
            "lower",
            "2 * tokens * (resident + k * expert) + attention pairs + head on the rows kept",
        ),
        ("mbu_ratio", "bandwidth used (S-MBU)", "ratio", "higher", "sum(bytes) / sum(step s) / measured bandwidth"),
        ("mfu_ratio", "matrix rate used (S-MFU)", "ratio", "higher", "sum(FLOPs) / sum(step s) / measured matrix rate"),
        ("roofline_s", "least time of a step", "s", "lower", "mean of max(bytes / bandwidth, FLOPs / matrix rate)"),
        (
            "time_over_roofline_ratio",
            "time over the limit",
            "ratio",
            "lower",
            "sum(step s) / sum(roofline s): 1 is the hardware's limit",
        ),
        (
            "peak_bandwidth_bytes_per_s",
            "bandwidth, measured",
            "B/s",
            "higher",
            "best of copy (counted both ways), read, matrix-vector; buffers beyond the cache",
        ),
        (
            "peak_flops_per_s",
            "matrix rate, measured",
            "FLOP/s",
            "higher",
            "large product in the run's dtype, random data",
        ),
    ),
)

ENERGY = _cards(
    "energy",
    "moeprof METRICS section 6; NVML total energy counter, RAPL packages on a CPU",
    (
        ("energy_j", "energy", "J", "lower", "counter difference over the window, within 5 % of sampled power"),
        ("power_mean_w", "mean power", "W", "lower", "energy_j / window"),
        ("energy_j_per_output_token", "energy per output token", "J / token", "lower", "energy_j / output tokens"),
        ("energy_j_per_total_token", "energy per token", "J / token", "lower", "energy_j / (input + output tokens)"),
        (
            "idle_power_w",
            "idle power",
            "W",
            "lower",
            "median of two seconds of samples before anything ran; null where the device was busy",
        ),
    ),
)

CARDS: tuple[Card, ...] = (*PARAMETERS, *MEMORY, *WORK, *ENERGY)
