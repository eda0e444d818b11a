"""Every reader of files that a stranger may have written: a good file of its kind, and how the product reads it.

What is damaged here: recorded traffic in all formats, workloads and gates, records, baselines, routing profiles, picks,
configs and headers of checkpoints, tokenizers and their templates.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

RECORD = Path(__file__).parents[2] / "tests" / "records" / "format-1"
USER = {"role": "user", "content": "How many?"}
ANSWER = {"role": "assistant", "content": "Two."}


def _lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _captured(body: Any) -> dict[str, Any]:
    return {"mode": "INPUT", "encoding": "BASE64", "data": base64.b64encode(json.dumps(body).encode()).decode()}


def _span(number: int) -> dict[str, Any]:
    usage = {"gen_ai.usage.input_tokens": 10 + number, "gen_ai.usage.output_tokens": 4}
    return {
        "traceId": "a", "start_time": f"2026-01-01T00:00:0{number}Z",
        "attributes": {"gen_ai.operation.name": "chat", **usage},
    }  # fmt: skip


_RECORDING_HEAD = {"moeprof_recording": 1, "recording": "r", "prefix_block_characters": 512, "prefix_block_ids": 128}
_LITELLM = {"id": "a", "call_type": "acompletion", "status": "success", "startTime": 1.5, "prompt_tokens": 9,
            "completion_tokens": 3, "messages": [USER], "response": {"choices": [{"message": ANSWER}]}}  # fmt: skip
_BLOCKS = {"timestamp": 500, "input_length": 600, "output_length": 20, "hash_ids": [0, 1]}
_OUTPUT = {"choices": [{"message": ANSWER}], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
# Format -> a file that its reader reads.
TRACES: dict[str, str] = {
    "recording": _lines(_RECORDING_HEAD, {"arrival_s": 0.5, "input_tokens": 12, "output_tokens": 7, "status": "ok"}),
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n2023-11-16 18:17:04,9,8\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,GPT-4,472,18,490,API log\n",
    "vidur": "arrived_at,num_prefill_tokens,num_decode_tokens\n0.25,100,20\n1.5,7,3\n",
    "splitwise": "request_id,application_id,arrival_timestamp,batch_size,prompt_size,token_size\n0,1,0.5,2,512,30\n",
    "litellm": _lines(_LITELLM),
    "langfuse": _lines({"batch": [{"type": "generation-create", "body": {
        "id": "g", "traceId": "t", "startTime": "2026-01-01T00:00:00Z", "input": [USER], "output": ANSWER,
        "usageDetails": {"input": 9, "output": 3}}}]}),
    "sagemaker": _lines({
        "captureData": {"endpointInput": _captured({"messages": [USER], "max_tokens": 9}),
                        "endpointOutput": _captured(_OUTPUT)},
        "eventMetadata": {"eventId": "a", "inferenceTime": "2026-01-01T00:00:00Z"}}),
    "otel": _lines(_span(1), _span(2)),
    "evalscope": _lines({"body": {"messages": [USER]}, "timestamp": 1.5, "completion_tokens": 3}),
    "weka": _lines({"id": "a", "block_size": 64, "requests": [
        {"t": 0.0, "type": "n", "in": 130, "out": 9, "hash_ids": [1, 2]},
        {"t": 2.0, "type": "n", "in": 200, "out": 9, "hash_ids": [1, 2, 3], "think_time": 0.5}]}),
    "bailian": _lines({"chat_id": 1, "parent_chat_id": -1, "turn": 1, "type": "text", **_BLOCKS, "input_length": 30}),
    "guidellm": _lines({"prompt": "How many?", "prompt_tokens_count": 3, "output_tokens_count": 4}),
    "sglang": _lines({"conversations": [USER, ANSWER]}),
    "vllm": _lines({"prompt": "What?", "output_tokens": 8, "image_files": ["a.png"]}),
    "aiperf": _lines({"session_id": "s", "timestamp": 0, "input_length": 30, "output_length": 5},
                     {"session_id": "s", "delay": 500, "input_length": 10, "output_length": 5}),
    "mooncake": _lines(_BLOCKS, {**_BLOCKS, "timestamp": 900}),
    "sharegpt": json.dumps([{"id": "a", "conversations": [
        {"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two."}]}]),
    "openai": _lines({"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
                      "body": {"model": "m", "messages": [USER], "max_completion_tokens": 9}}),
    "jsonl": _lines({"arrival_s": 0.1, "messages": [USER], "output": "Two.", "session": "a", "request_class": "qa"},
                    {"arrival_s": 0.9, "messages": [USER, ANSWER, USER], "output": "Three.", "session": "a"}),
}  # fmt: skip

WORKLOAD = """\
name: soaked
traffic:
  arrivals: {pattern: poisson, rate: 4}
  lengths: {input: {distribution: lognormal, median: 40, p99: 200}, output: {distribution: uniform, low: 4, high: 8}}
  prompts: {source: packaged}
  num_requests: 24
models:
  - {name: moe, config: config.json, weights: random, override: {num_hidden_layers: 2}}
  - {name: dense, twin_of: moe, match: active}
engine: {dtype: float32, max_batch_tokens: 128, kv_tokens: 4096}
rounds: 3
launches: 2
threads: 1
device: cpu
slo: {ttft_s: 0.5, tpot_s: 0.05}
sweep: {request_rate: [1, 2], max_seconds: 5}
lockstep: {concurrency: [1, 2]}
prices: {usd_per_device_hour: 1.5}
gates: {fail_on: [exact, "peak_memory_bytes:2%"]}
"""
CONFIG: dict[str, Any] = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 512, "num_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 4096,
    "dtype": "float32", "quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]},
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A reader.

    Attributes:
        write: makes a folder with a good file, or several.
        damaged: which of its files are damaged, as a glob.
        read: reads the folder; a number that it returns is an exit code.
        share: of all fuzzed inputs.
    """

    write: Callable[[Path], None]
    damaged: str
    read: Callable[[Path], object]
    share: float


def run(*arguments: object) -> int:
    """A command of moeprof in this process."""
    from moeprof.cli.main import main

    return main([str(argument) for argument in arguments])


# -- one reader after the other ----------------------------------------------------------------------------------------


def _trace_target(name: str) -> Target:
    def write(folder: Path) -> None:
        (folder / "trace").write_text(TRACES[name], encoding="utf-8")

    def read(folder: Path) -> None:
        from moeprof.sources.formats import read_trace

        read_trace(folder / "trace", name)

    return Target(write=write, damaged="trace", read=read, share=0.5 / (len(TRACES) + 1))


def _write_any_trace(folder: Path) -> None:
    for name, text in TRACES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "packed.gz").write_bytes(gzip.compress(TRACES["mooncake"].encode()))


def _read_any_trace(folder: Path) -> object:
    """What is not damaged is read by name of format: here it is told by its content, and inspected."""
    damaged = (folder / "damaged").read_text(encoding="utf-8")
    return run("trace", "inspect", folder / damaged)


def _write_workload(folder: Path) -> None:
    (folder / "w.yaml").write_text(WORKLOAD, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    (folder / "regress.yaml").write_text('fail_on: [exact, "step_mean_s:5%", routing]\n', encoding="utf-8")


def _read_workload(folder: Path) -> None:
    from moeprof.capture.engines import engine_kinds
    from moeprof.core.workload.workload import load_workload

    load_workload(folder / "w.yaml", engine_kinds())


def _read_gates(folder: Path) -> None:
    from moeprof.core.workload.gates import load_gate_settings, parse_gates

    parse_gates(load_gate_settings(folder / "regress.yaml"), "regress.yaml")


def _write_record(folder: Path) -> None:
    shutil.copytree(RECORD, folder / "run")


def _read_record(folder: Path) -> object:
    """Every command that reads records, one a time; the size of the damaged file says which."""
    which = (folder / "damaged").read_text(encoding="utf-8")
    size = (folder / which).stat().st_size
    commands = (
        ("report", folder / "run", "--write", "md,html,json,csv", "--output-dir", folder / "pages"),
        ("report", folder / "run"),
        ("compare", folder / "run"),
        ("regress", folder / "run", "--baseline", RECORD, "--allow-undecided"),
        ("baseline", "save", folder / "run", "main", "--folder", folder / "baselines"),
    )
    return run(*commands[size % len(commands)])


def _write_baseline(folder: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        run("baseline", "save", RECORD, "main", "--folder", folder / "baselines")


def _read_baseline(folder: Path) -> object:
    from moeprof.core.baseline.file import load_baseline

    file = next((folder / "baselines").rglob("*.json"))
    load_baseline(file)
    return run("baseline", "show", "main", "--folder", folder / "baselines")


def _write_profiles(folder: Path) -> None:
    (folder / "list.json").write_text(json.dumps([[5, 3, 1, 1], [2, 2, 2, 2]]), encoding="utf-8")
    (folder / "named.json").write_text(json.dumps([{"0": 4, "3": 2}, {"1": 7}]), encoding="utf-8")
    (folder / "packed.json.gz").write_bytes(gzip.compress(json.dumps([[1, 2, 3, 4]] * 4).encode()))
    (folder / "rows.csv").write_text("layer,expert,count\n0,0,5\n0,1,3\n1,2,9\n", encoding="utf-8")


def _read_profile(folder: Path) -> None:
    from moeprof.capture.routing.popularity import read_counts

    read_counts(folder / (folder / "damaged").read_text(encoding="utf-8"), {})


def _write_picks(folder: Path) -> None:
    arrays = {"picks_TLK": np.ones((6, 2, 2), np.uint8), "request_T": np.zeros(6, np.int32),
              "position_T": np.arange(6, dtype=np.int32), "step_T": np.zeros(6, np.int32)}  # fmt: skip
    (folder / "picks").mkdir()
    np.savez_compressed(folder / "picks" / "part-0.npz", **arrays)
    (folder / "picks" / "left_out.json").write_text('{"tokens": 0}', encoding="utf-8")


def _read_picks(folder: Path) -> None:
    from moeprof.core.record.picks import load_picks

    load_picks(folder)


def _write_checkpoint(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    header = json.dumps({
        "__metadata__": {"format": "pt"},
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]},
    }).encode()  # fmt: skip
    content = struct.pack("<Q", len(header)) + header + bytes(64)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "tokenizer.json").write_bytes(_packaged_tokenizer())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}), encoding="utf-8")


def _packaged_tokenizer() -> bytes:
    return resources.files("moeprof").joinpath("data/tokenizer/tokenizer.json").read_bytes()


def _read_headers(folder: Path) -> None:
    from moeprof.capture.models.counting.stored_size import by_headers
    from moeprof.capture.models.find import find_model
    from moeprof.core.workload.models import ModelSpec

    find_model(ModelSpec(name="m", path=str(folder)))
    by_headers([folder / "model.safetensors"])


def _read_tokenizer(folder: Path) -> None:
    from moeprof.sources.tokenizer import load_tokenizer, render_chat

    tokenizer = load_tokenizer(folder / "tokenizer.json")
    render_chat(tokenizer, [("user", "How many?"), ("assistant", "Two.")])


def _write_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")


def _read_config(folder: Path) -> object:
    """``moeprof params``, as a stranger's config is looked at first."""
    return run("params", folder / "config.json")


TARGETS: dict[str, Target] = {
    **{f"trace {name}": _trace_target(name) for name in TRACES},
    "trace, told by content": Target(write=_write_any_trace, damaged="*", read=_read_any_trace, share=0.025),
    "workload": Target(write=_write_workload, damaged="w.yaml", read=_read_workload, share=0.2),
    "gates": Target(write=_write_workload, damaged="regress.yaml", read=_read_gates, share=0.03),
    "record": Target(write=_write_record, damaged="run/**/*.*", read=_read_record, share=0.05),
    "baseline": Target(write=_write_baseline, damaged="baselines/**/*.*", read=_read_baseline, share=0.04),
    "routing profile": Target(write=_write_profiles, damaged="*.*", read=_read_profile, share=0.1),
    "picks": Target(write=_write_picks, damaged="picks/*.*", read=_read_picks, share=0.02),
    "checkpoint": Target(write=_write_checkpoint, damaged="*.[js]*", read=_read_headers, share=0.02),
    "tokenizer": Target(write=_write_checkpoint, damaged="tokenizer*.json", read=_read_tokenizer, share=0.02),
    "config": Target(write=_write_config, damaged="config.json", read=_read_config, share=0.02),
}


def read(name: str, folder: Path) -> object:
    """Read a folder as the target of this name."""
    return TARGETS[name].read(folder)
