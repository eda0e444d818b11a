"""The tables of a pass: their columns, and how to read them while it runs, when it ended, and when it was killed.

Times are seconds from the start of the pass; missing values are null, never 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moeprof.core.errors import RecordError
from moeprof.core.files import UnreadableError, read_parquet, read_stream

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# name -> arrow type; the order is the order on disk.
REQUEST_COLUMNS = {
    "request": "int64",  # row in the schedule
    "request_id": "string",
    "request_class": "string",
    "arrival_s": "double",  # when the schedule wanted it; of a turn that waited: when the answer before had ended
    "sent_s": "double",  # when it was handed to the engine
    "send_slack_s": "double",  # sent - max(arrival, end of the step running at arrival): the replayer's own lag
    "first_scheduled_s": "double",  # start of the first step it was in
    "first_token_s": "double",
    "last_token_s": "double",
    "input_tokens": "int64",
    "cached_tokens": "int64",  # prompt tokens taken from the prefix cache
    "recomputed_tokens": "int64",  # tokens computed again after a preemption
    "num_preemptions": "int64",
    "output_tokens": "int64",  # got
    "asked_output_tokens": "int64",  # asked
    "agreed_tokens": "int64",  # forced ids that the model itself would have chosen; null if not forced
    "num_characters": "int64",  # prompt + asked output text; null if unknown
    "session": "string",  # null: of none
    "turn": "int64",  # how many answers it comes after, from 1; null where the traffic has no sessions
    "after": "int64",  # row of the request whose answer it waited for; null: of none
    "delay_s": "double",  # arrival - end of that answer
    "reusable_tokens": "int64",  # prompt tokens, in whole blocks from the first on, that requests before it had
    "status": "string",  # done | refused | failed | unfinished | not_sent (the turn before it came to nothing)
    "error": "string",
    "token_times_s": "list<double>",  # one per output token; null where only the first and the last are known
    # What a server told; null elsewhere.
    "first_answer_s": "double",  # first token that was no reasoning
    "told_input_tokens": "int64",  # as the server counts the prompt
    "reasoning_tokens": "int64",  # of the output
    "chunks": "int64",  # pieces with output
    "finish_reason": "string",
}
STEP_COLUMNS = {
    "step": "int64",
    "start_s": "double",
    "end_s": "double",
    "device_s": "double",
    "cpu_s": "double",  # processor time of the process during the step
    "phase": "string",  # prefill | decode | mixed
    "prefill_tokens": "int64",
    "decode_tokens": "int64",
    "context_tokens": "int64",  # keys attended to, summed over sequences (past + query)
    "prefill_context_tokens": "int64",  # the prefill sequences' part of it
    "attention_pairs": "int64",  # sum over sequences of query-key pairs under the causal mask
    # The same three for layers that see a window: one number per window of the model, smallest first; null without any.
    "window_context_tokens": "list<double>",
    "window_prefill_context_tokens": "list<double>",
    "window_attention_pairs": "list<double>",
    "num_requests": "int64",
    "num_prefill_requests": "int64",
    "new_tokens": "int64",  # output tokens that came out
    "num_waiting": "int64",  # sent but not yet in a batch
    "kv_tokens_used": "int64",
    "instrumented": "bool",  # False in blocks with hooks off (overhead measurement only)
}
TELEMETRY_COLUMNS = {
    "t_s": "double",
    "power_w": "double",
    "energy_counter_j": "double",  # device's running total (NVML)
    "cpu_energy_counter_j": "double",  # RAPL running total, unwrapped
    "temperature_c": "double",
    "sm_clock_mhz": "double",
    "memory_clock_mhz": "double",
    "device_utilisation_ratio": "double",
    "device_memory_used_bytes": "int64",
    "allocated_bytes": "int64",  # torch allocator
    "reserved_bytes": "int64",
    "throttle_reasons": "int64",  # NVML bit mask
    "num_other_processes": "int64",
    "host_rss_bytes": "int64",
    "load_average_1min": "double",
}
OVERHEAD_COLUMNS = {
    "pair": "int64",
    "phase": "string",
    "tokens": "int64",
    "bare_s": "double",
    "instrumented_s": "double",
    "bare_cpu_s": "double",
    "instrumented_cpu_s": "double",
}
LANE_COLUMNS = {
    "cycle": "int64",  # which time through the schedule
    "step": "int64",  # number of the step within the cycle; equal numbers have equal batches in all lanes
    "lane": "string",  # a model, or a rung of the sparsity ladder
    "place": "int64",  # when in the turn this lane ran, from 0
    "phase": "string",  # prefill | decode | mixed
    "prefill_tokens": "int64",
    "decode_tokens": "int64",
    "context_tokens": "int64",
    "num_requests": "int64",
    "wall_s": "double",
    "cpu_s": "double",
    "queued_s": "double",  # ready to run while another program had the processor; null where that is not known
    "device_s": "double",
    "distinct_experts": "int64",  # experts with a token, summed over MoE layers; null for dense lanes
    "max_expert_load": "int64",  # tokens of the busiest expert, summed over MoE layers; null for dense lanes
}
COUNTER_COLUMNS = {
    "t_s": "double",
    "running": "double",  # requests in a batch, by the server's own gauge
    "waiting": "double",
    "kv_use_ratio": "double",  # share of its KV cache; of several servers the mean
}
# Column of steps -> the column of the same for layers that see a window.
WINDOWED = {name: f"window_{name}" for name in ("context_tokens", "prefill_context_tokens", "attention_pairs")}
# Columns that records of older versions lack: null there.
TOLD = ("first_answer_s", "told_input_tokens", "reasoning_tokens", "chunks", "finish_reason")
TURNS = ("session", "turn", "after", "delay_s", "reusable_tokens")
LATER = {"lanes": ("queued_s",), "requests": (*TURNS, *TOLD)} | dict.fromkeys(
    ("steps", "warmup", "calibration"), tuple(WINDOWED.values())
)
# Columns in which every row has a value.
ALWAYS = {
    "requests": ("request", "arrival_s", "input_tokens", "asked_output_tokens"),
    "steps": (
        "step", "start_s", "end_s", "prefill_tokens", "decode_tokens", "context_tokens", "attention_pairs",
        "new_tokens",
    ),
}  # fmt: skip
TABLES = {
    "lanes": LANE_COLUMNS,
    "requests": REQUEST_COLUMNS,
    "steps": STEP_COLUMNS,
    "telemetry": TELEMETRY_COLUMNS,
    "warmup": STEP_COLUMNS,
    "calibration": STEP_COLUMNS,
    "overhead": OVERHEAD_COLUMNS,
    "counters": COUNTER_COLUMNS,
}


def arrow_schema(table: str) -> Any:
    """The pyarrow schema of a record table."""
    import pyarrow as pa

    types = {
        "int64": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "bool": pa.bool_(),
        "list<double>": pa.list_(pa.float64()),
    }
    return pa.schema([(name, types[kind]) for name, kind in TABLES[table].items()])


def read_table(folder: Path, table: str) -> pd.DataFrame:
    """Read a table of a pass: parquet if the pass ended, else the flushed part of the stream, else empty.

    Integer columns with nulls come back as pandas ``Int64``, so that null is never 0.

    Raises:
        RecordError: the file is damaged beyond a cut-off tail, or lacks a column.
    """
    import pandas as pd
    import pyarrow as pa

    parquet, stream = folder / f"{table}.parquet", folder / f"{table}.arrows"
    try:
        if parquet.exists():
            data = read_parquet(parquet)
        elif stream.exists():
            data = read_stream(stream, arrow_schema(table))
        else:
            data = arrow_schema(table).empty_table()
        for name in LATER.get(table, ()):
            if name not in data.column_names:
                data = data.append_column(name, pa.nulls(len(data)))
        missing = [name for name in TABLES[table] if name not in data.column_names]
        if missing:
            raise RecordError(f"{folder / table}: damaged table, without column {missing[0]}")
        data = data.select(list(TABLES[table])).cast(arrow_schema(table))
        data = _finite(data)
    except UnreadableError as fault:
        raise RecordError(f"{folder / table}: damaged table ({fault.why})") from fault
    except (OSError, pa.ArrowException) as error:
        raise RecordError(f"{folder / table}: damaged table ({error})") from error
    types = {pa.int64(): pd.Int64Dtype()}
    return data.to_pandas(types_mapper=types.get)


def _finite(data: pa.Table) -> pa.Table:
    """NaN and infinity are no measurements: null, as what was not measured."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for number, field in enumerate(data.schema):
        if pa.types.is_float64(field.type):
            column = data.column(number)
            finite = pc.is_finite(column)
            if pc.all(finite).as_py() is False:
                data = data.set_column(number, field, pc.if_else(finite, column, pa.scalar(None, field.type)))
    return data


def read_whole_rows(folder: Path, table: str) -> pd.DataFrame:
    """A table of a pass in which every row has what every row of a run has: its number, its times, its tokens.

    Raises:
        RecordError: as :func:`read_table`, or a row lacks one.
    """
    found = read_table(folder, table)
    for name in ALWAYS[table]:
        lacking = found[name].isna().to_numpy()
        if lacking.any():
            row = int(lacking.argmax())
            raise RecordError(f"{folder / table}: damaged table, {name} of row {row} is no number; every row has one")
    return found
