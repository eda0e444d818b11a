"""Cards of what ``moeprof params`` works out from a model's shape, beside the counts that every run reports."""

from __future__ import annotations

from moeprof.core.metric import Better, Card

_ROWS: tuple[tuple[str, str, str, Better, str, str], ...] = (
    ("published_total_params", "parameters, as published", "parameters", "neither", "the vendor's figure",
     "the built-in list: moeprof params --list"),
    ("published_active_params", "active parameters, as published", "parameters", "neither", "the vendor's figure",
     "the built-in list: moeprof params --list"),
    ("published_convention", "how the vendor counts active parameters", "convention", "neither",
     "A = all but idle experts, B = A without the input embedding, C = B without the head, or the nearest",
     "METRICS 2"),
    ("published_total_error_ratio", "our total against the published one", "ratio", "neither",
     "total_params / published_total_params - 1", "METRICS 2"),
    ("published_active_error_ratio", "our active count against the published one", "ratio", "neither",
     "the active count in the vendor's convention / published_active_params - 1", "METRICS 2"),
    ("num_layers", "layers", "layers", "neither", "of encoder and decoder together", "METRICS 2"),
    ("expert_params", "parameters of one expert", "parameters", "neither", "all matrices of one routed expert",
     "METRICS 2"),
    ("weights_bytes_per_step", "bytes of weights that a decode step reads", "B", "lower",
     "resident matrices + sum over MoE layers of E(1-(1-k/E)^B) * expert_bytes + head, at batch B, uniform null",
     "METRICS 3 and 5"),
    ("weights_bytes_per_token", "bytes of weights read per token", "B", "lower", "weights_bytes_per_step / batch",
     "METRICS 5"),
    ("kv_bytes_per_step", "bytes of keys and values that a decode step moves", "B", "lower",
     "batch * (context + 1) * kv_bytes_per_token", "METRICS 5"),
    ("devices_needed", "devices that hold the model", "devices", "lower",
     "ceil((weights_bytes + largest batch * context * kv_bytes_per_token) / (0.9 * device memory))", "METRICS 4"),
    ("twin_params", "parameters of a dense twin", "parameters", "neither",
     "active_params or total_params, by label match, without the routers", "METRICS 8"),
)  # fmt: skip
CARDS: tuple[Card, ...] = tuple(
    Card(name=name, title=title, unit=unit, better=better, formula=formula, source=source, section="comparison")
    for name, title, unit, better, formula, source in _ROWS
)
