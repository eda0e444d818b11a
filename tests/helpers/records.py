"""Small records with round numbers, for tests of the analysis wing. Nothing here needs torch.

``make_requests``, ``make_steps`` and ``make_routing`` give tables by the schemas of core/record.py; ``make_pass`` puts
them together in memory; ``write_pass`` and ``write_record`` write real record folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from moeprof.analysis.metrics.tables import PassTables, Traffic
from moeprof.core.files import write_json
from moeprof.core.model_facts import ModelFacts, MoeLayerFacts
from moeprof.core.record.headers import FORMAT_VERSION, part_of, to_json
from moeprof.core.record.launch import LaunchHeader
from moeprof.core.record.routing import RequestCounts, Routing
from moeprof.core.record.tables import TABLES, arrow_schema

Array = npt.NDArray[Any]


def _frame(table: str, columns: Mapping[str, Any], num: int) -> pd.DataFrame:
    """A DataFrame with all columns of the table, dtypes as the reader gives them; columns not given are null."""
    import pyarrow as pa

    schema, data = arrow_schema(table), {}
    for name in TABLES[table]:
        value = columns.get(name)
        scalar = value is None or isinstance(value, (str, int, float, bool))
        values = [value] * num if scalar else [None if v is pd.NA else v for v in value]
        data[name] = pa.array(values, type=schema.field(name).type, from_pandas=True)
    assert set(columns) <= set(data), f"unknown columns {set(columns) - set(data)}"
    return pa.table(data, schema=schema).to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def make_requests(
    num: int = 4,
    *,
    arrival_s: Sequence[float] | Array | None = None,
    queue_s: Any = 0.0,
    ttft_s: Any = 0.1,
    itl_s: float = 0.01,
    output_tokens: Any = 4,
    input_tokens: Any = 8,
    request_class: Any = "all",
    token_times_s: Sequence[Array] | None = None,
    **columns: Any,
) -> pd.DataFrame:
    """Requests one second apart, first token after ``ttft_s``, then one token each ``itl_s``; all done by default."""
    arrival = np.arange(num, dtype=float) if arrival_s is None else np.asarray(arrival_s, dtype=float)
    outputs = np.broadcast_to(np.asarray(output_tokens, dtype=np.int64), num)
    first = arrival + np.broadcast_to(np.asarray(ttft_s, dtype=float), num)
    times = token_times_s or [first[i] + itl_s * np.arange(outputs[i]) for i in range(num)]
    values = {
        "request": np.arange(num),
        "request_id": [f"r{i}" for i in range(num)],
        "request_class": request_class,
        "arrival_s": arrival,
        "sent_s": arrival,
        "send_slack_s": 0.0,
        "first_scheduled_s": arrival + queue_s,
        "first_token_s": [t[0] if len(t) else None for t in times],
        "last_token_s": [t[-1] if len(t) else None for t in times],
        "input_tokens": np.broadcast_to(np.asarray(input_tokens, dtype=np.int64), num),
        "cached_tokens": 0,
        "recomputed_tokens": 0,
        "num_preemptions": 0,
        "output_tokens": [len(t) for t in times],
        "asked_output_tokens": outputs,
        "num_characters": 100,
        "status": "done",
        "token_times_s": [list(t) for t in times],
        **columns,
    }
    return _frame("requests", values, num)


def make_steps(
    num: int = 10,
    *,
    step_s: Any = 0.01,
    phase: Any = "decode",
    prefill_tokens: Any = 0,
    decode_tokens: Any = 4,
    gap_s: float = 0.0,
    **columns: Any,
) -> pd.DataFrame:
    """Steps back to back (or ``gap_s`` apart), from time 0."""
    durations = np.broadcast_to(np.asarray(step_s, dtype=float), num)
    end = np.cumsum(durations + gap_s)
    prefill = np.broadcast_to(np.asarray(prefill_tokens, dtype=np.int64), num)
    decode = np.broadcast_to(np.asarray(decode_tokens, dtype=np.int64), num)
    values = {
        "step": np.arange(num),
        "start_s": end - durations,
        "end_s": end,
        "device_s": durations,
        "cpu_s": durations,
        "phase": phase,
        "prefill_tokens": prefill,
        "decode_tokens": decode,
        "context_tokens": 100 * (prefill + decode),
        "prefill_context_tokens": 100 * prefill,
        "attention_pairs": 100 * (prefill + decode),
        "num_requests": np.maximum(decode, 1),
        "num_prefill_requests": (prefill > 0).astype(int),
        "new_tokens": np.maximum(decode, 1),
        "num_waiting": 0,
        "kv_tokens_used": 100 * (prefill + decode),
        "instrumented": True,
        **columns,
    }
    return _frame("steps", values, num)


def make_telemetry(num: int = 0, **columns: Any) -> pd.DataFrame:
    """Telemetry samples 0.2 s apart; null unless given."""
    return _frame("telemetry", {"t_s": 0.2 * np.arange(num), **columns}, num)


def draw_step_counts(
    tokens_SP: Array, *, num_layers: int, num_experts: int, top_k: int, seed: int = 0, skew: float = 0.0
) -> Array:
    """Random routing without replacement: counts [S, P, L, E]; ``skew`` > 0 prefers experts with low numbers."""
    rng = np.random.default_rng(seed)
    preference = -skew * np.log1p(np.arange(num_experts))
    counts = np.zeros((*tokens_SP.shape, num_layers, num_experts), dtype=np.uint16)
    for step, phase in np.argwhere(tokens_SP > 0):
        scores = rng.gumbel(size=(num_layers, int(tokens_SP[step, phase]), num_experts)) + preference
        picks = np.argpartition(-scores, top_k - 1, axis=-1)[..., :top_k]
        for layer in range(num_layers):
            counts[step, phase, layer] = np.bincount(picks[layer].ravel(), minlength=num_experts)
    return counts


def make_routing(
    step_counts_SPLE: Array,
    *,
    steps_per_window: int = 10,
    top_k: int = 2,
    step_s: float = 0.01,
    class_names: Sequence[str] = ("all",),
    class_of_step: Sequence[int] | Array | None = None,
    keep_step_counts: bool = True,
    **fields: Any,
) -> Routing:
    """Routing counts of a pass from its counts per step; a step's tokens all belong to one class."""
    counts = np.asarray(step_counts_SPLE).astype(np.int64)
    num_steps, num_phases, num_layers, num_experts = counts.shape
    first = np.arange(0, max(num_steps, 1), steps_per_window)
    classes = np.zeros(num_steps, dtype=int) if class_of_step is None else np.asarray(class_of_step)
    counts_WPCLE = np.zeros((len(first), num_phases, len(class_names), num_layers, num_experts), dtype=np.int64)
    for step in range(num_steps):
        counts_WPCLE[step // steps_per_window, :, classes[step]] += counts[step]
    both = counts.sum(axis=1)
    values: dict[str, Any] = {
        "counts_WPCLE": counts_WPCLE,
        "real_tokens_WPC": counts_WPCLE[:, :, :, 0].sum(axis=-1) // top_k,
        "window_start_s": first * step_s,
        "window_first_step": first,
        "distinct_SL": (both > 0).sum(axis=-1).astype(np.int16),
        "max_load_SL": both.max(axis=-1).astype(np.int32),
        "step_counts_SPLE": counts.astype(np.uint16) if keep_step_counts else None,
        "layer_names": tuple(f"model.layers.{i}.mlp" for i in range(num_layers)),
        "class_names": tuple(class_names),
        "top_k_L": np.full(num_layers, top_k, dtype=np.int64),
        "dropped_PL": np.zeros((num_phases, num_layers), dtype=np.int64),
        "identity_PL": np.zeros((num_phases, num_layers), dtype=np.int64),
    }
    return Routing(**{**values, **fields})


def requests_of_steps(step_counts_SPLE: Array, num: int) -> RequestCounts:
    """Counts of ``num`` requests of one class: step s was computed for request s mod ``num``."""
    counts = np.stack([step_counts_SPLE[request::num].sum(axis=0) for request in range(num)]).astype(np.int64)
    return RequestCounts(
        request_counts_UPLE=counts,
        request_class_U=np.zeros(num, dtype=np.int64),
        request_group_U=np.arange(num),
        request_first_U=np.arange(num),
        requests_per_group=1,
    )


def make_facts(*, num_layers: int = 2, num_experts: int = 4, top_k: int = 2, name: str = "moe") -> ModelFacts:
    """A small MoE: one million parameters around the experts, 10,000 per expert, two bytes each. Dense if no expert."""
    layers = tuple(
        MoeLayerFacts(
            name=f"model.layers.{i}.mlp",
            num_experts=num_experts,
            top_k=top_k,
            expert_params=10_000,
            expert_bytes=20_000,
        )
        for i in range(num_layers if num_experts else 0)
    )
    routed = num_layers * num_experts * 10_000
    idle = num_layers * (num_experts - top_k) * 10_000 if num_experts else 0
    groups = {"embedding": 300_000, "attention": 400_000, "lm_head": 300_000, "routed_experts": routed}
    return ModelFacts(
        name=name,
        source="made for a test",
        model_type="test",
        architecture="TestForCausalLM",
        dtype="bfloat16",
        total_params=1_000_000 + routed,
        active_params=1_000_000 + routed - idle,
        active_params_no_embedding=700_000 + routed - idle,
        active_params_no_embedding_no_head=400_000 + routed - idle,
        params_by_group=groups,
        bytes_by_group={group: 2 * count for group, count in groups.items()},
        tied_embeddings=False,
        moe_layers=layers,
        num_layers=num_layers,
        hidden_size=100,
        vocab_size=3_000,
        kv_bytes_per_token=800,
        attention_flops_per_pair=800,
    )


def make_pass(
    *,
    name: str = "round-0",
    traffic: Traffic = "open",
    requests: pd.DataFrame | None = None,
    steps: pd.DataFrame | None = None,
    telemetry: pd.DataFrame | None = None,
    routing: Routing | None = None,
    window_s: tuple[float, float] | None = None,
) -> PassTables:
    """A pass in memory; what is not given is made small. The window ends with the last step."""
    requests = make_requests() if requests is None else requests
    steps = make_steps() if steps is None else steps
    return PassTables(
        name=name,
        traffic=traffic,
        requests=requests,
        steps=steps,
        telemetry=make_telemetry() if telemetry is None else telemetry,
        routing=routing,
        window_s=window_s or (0.0, float(steps["end_s"].max()) if len(steps) else 0.0),
        classes=tuple(sorted(set(requests["request_class"]))),
    )


def launch_header(parts: Mapping[str, Any]) -> LaunchHeader:
    """launch.json as its reader has it, from the keys that matter."""
    return part_of(LaunchHeader, parts)


def write_pass(folder: Path, tables: PassTables, *, info: Mapping[str, Any] | None = None) -> Path:
    """Write one pass as ``folder/<name>``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / tables.name
    path.mkdir(parents=True)
    for name in ("requests", "steps", "telemetry"):
        table = pa.Table.from_pandas(getattr(tables, name), schema=arrow_schema(name), preserve_index=False)
        pq.write_table(table, path / f"{name}.parquet")
    if tables.routing is not None:
        tables.routing.save(path / "routing.npz")
    start_s, end_s = tables.window_s
    defaults = {"traffic": tables.traffic, "started_unix_s": 1_700_000_000.0, "duration_s": end_s - start_s}
    write_json(path / "pass.json", {**defaults, "status": "done", "refused": 0, "invariants": {}, **(info or {})})
    return path


def write_record(
    folder: Path,
    models: Mapping[str, tuple[ModelFacts, Sequence[Sequence[PassTables]]]],
    *,
    workload: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
    launch_info: Mapping[str, Any] | None = None,
    status: str = "done",
) -> Path:
    """Write a run folder. ``models``: name -> (facts, launches), a launch being its passes."""
    folder.mkdir(parents=True, exist_ok=True)
    for model, (facts, launches) in models.items():
        for number, passes in enumerate(launches):
            launch = folder / model / f"launch-{number}"
            launch.mkdir(parents=True)
            write_json(launch / "launch.json", dict(launch_info or {}))
            for tables in passes:
                write_pass(launch, tables)
        write_json(folder / model / "model.json", to_json(facts))
    experiment = {
        "format_version": FORMAT_VERSION,
        "status": status,
        "run": folder.name,
        "started_at": "2026-11-21T21:45:00+00:00",
        "workload": {"name": folder.name, **(workload or {})},
        "environment": {"device": "cpu", **(environment or {})},
        "schedules": {},
        "models": [{"name": model, "folder": model, "status": "done", "error": None} for model in models],
        "notes": [],
    }
    write_json(folder / "experiment.json", experiment)
    return folder
