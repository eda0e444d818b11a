"""Small inputs that claim to be large, deep or endless: refused in one line, in seconds, in little memory."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak.ledger import Ledger
from benchmarks.soak.readers import CONFIG, RECORD, TEMPLATE, WORKLOAD, run
from benchmarks.soak.trial import Trials

QUICK_S, LIMIT_S, LARGE_MIB = 5.0, 45.0, 500.0  # libraries that are imported for the first time are in both
DEEP, LONG = "[" * 100_000, "1" * 10_000


def _record(folder: Path, file: str, content: bytes) -> object:
    shutil.copytree(RECORD, folder / "run")
    (folder / "run" / file).chmod(0o644)
    (folder / "run" / file).write_bytes(content)
    return run("report", folder / "run")


def _profile(folder: Path, content: bytes, name: str = "p.json") -> None:
    from moeprof.capture.routing.popularity import read_counts

    (folder / name).write_bytes(content)
    read_counts(folder / name, {})


def _trace(folder: Path, content: bytes, name: str = "t.jsonl") -> object:
    (folder / name).write_bytes(content)
    return run("trace", "inspect", folder / name)


def _dry_run(folder: Path, text: str) -> object:
    (folder / "w.yaml").write_text(text, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": None}), encoding="utf-8")
    return run("run", folder / "w.yaml", "--dry-run")


def _workload(folder: Path, text: str) -> None:
    from moeprof.capture.engines import engine_kinds
    from moeprof.core.workload.workload import load_workload

    (folder / "w.yaml").write_text(text, encoding="utf-8")
    load_workload(folder / "w.yaml", engine_kinds())


def _template(folder: Path, template: str) -> None:
    from importlib import resources

    from moeprof.sources.tokenizer import load_tokenizer, render_chat

    packaged = resources.files("moeprof").joinpath("data/tokenizer/tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_bytes(packaged)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    render_chat(load_tokenizer(folder / "tokenizer.json"), [("user", "Hi")])


def _config(folder: Path, changes: dict[str, Any] | str) -> object:
    text = changes if isinstance(changes, str) else json.dumps(CONFIG | changes)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return run("params", folder / "config.json")


def _headers(folder: Path, head: bytes) -> None:
    from moeprof.capture.models.counting.stored_size import by_headers

    (folder / "model.safetensors").write_bytes(head)
    by_headers([folder / "model.safetensors"])


def lying_npz(shape: str = "(10000000000000,)") -> bytes:
    """A member whose header claims more than the file could hold."""
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("counts_WPCLE.npy", member)
    return packed.getvalue()


def zeros_npz(num_bytes: int) -> bytes:
    """An array of zeros, which packs a thousandfold."""
    packed = io.BytesIO()
    np.savez_compressed(packed, counts_WPCLE=np.zeros(num_bytes // 8, np.int64))
    return packed.getvalue()


def many_rows(rows: int) -> bytes:
    """A table of steps that packs to next to nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    chunk = pa.table({"step": np.zeros(1_000_000, np.int64), "start_s": np.zeros(1_000_000)})
    with pq.ParquetWriter(sink, chunk.schema, compression="zstd") as writer:
        for _ in range(rows // 1_000_000):
            writer.write_table(chunk)
    return sink.getvalue()


LAUGHS = "x: &a [1, 1]\n" + "".join(f"y{i}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12))
ROW = b'{"arrival_s": 0, "input_tokens": 9, "output_tokens": 9}\n'
Bomb = Callable[[Path], object]
BOMBS: dict[str, Bomb] = {
    "record: deep JSON": lambda f: _record(f, "experiment.json", DEEP.encode()),
    "record: a number of 10,000 digits": lambda f: _record(f, "moe/launch-0/launch.json", f'{{"a": {LONG}}}'.encode()),
    "record: an npz that lies about its size": lambda f: _record(f, "moe/launch-0/round-0/routing.npz", lying_npz()),
    "record: an npz of 2 GiB of zeros": lambda f: _record(f, "moe/launch-0/round-0/routing.npz", zeros_npz(2**31)),
    "record: a table of 20 million rows": lambda f: _record(
        f, "moe/launch-0/round-0/steps.parquet", many_rows(20_000_000)
    ),
    "profile: deep JSON": lambda f: _profile(f, DEEP.encode()),
    "profile: a count of 400 digits": lambda f: _profile(f, b"[[1" + b"0" * 400 + b", 1]]"),
    "profile: an expert of ten digits": lambda f: _profile(f, b'[{"9999999999": 1}]'),
    "profile: an expert of ten digits in CSV": lambda f: _profile(f, b"layer,expert,count\n0,9999999999,1\n", "p.csv"),
    "profile: 3 GB in a gz": lambda f: _profile(f, gzip.compress(bytes(3_000_000_000), 1), "p.json.gz"),
    "trace: 3 GB in a gz": lambda f: _trace(f, gzip.compress(ROW * 50_000_000, 1), "t.jsonl.gz"),
    "trace: deep JSON": lambda f: _trace(f, (DEEP + "\n").encode()),
    "trace: a line that never ends": lambda f: _trace(f, b'{"prompt": "' + b"x" * 200_000_000),
    "workload: a billion laughs": lambda f: _workload(f, LAUGHS + WORKLOAD),
    "workload: deep lists": lambda f: _workload(f, WORKLOAD.replace("24", "[" * 20_000)),
    "workload: 10^12 requests": lambda f: _dry_run(f, WORKLOAD.replace("num_requests: 24", f"num_requests: {10**12}")),
    "workload: a prompt of 10^9 tokens": lambda f: _dry_run(
        f,
        WORKLOAD.replace("{distribution: lognormal, median: 40, p99: 200}", "{distribution: fixed, value: 1000000000}"),
    ),
    "template: endless": lambda f: _template(
        f, "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}" + TEMPLATE
    ),
    "template: 20 GB of text": lambda f: _template(f, "{{ 'x' * 20000000000 }}"),
    "config: deep JSON": lambda f: _config(f, DEEP),
    "config: a number of 10,000 digits": lambda f: _config(f, f'{{"model_type": "qwen3_moe", "hidden_size": {LONG}}}'),
    "config: a type that is a list": lambda f: _config(f, {"model_type": ["qwen3_moe"]}),
    "config: a million layers": lambda f: _config(f, {"num_hidden_layers": 1_000_000}),
    "checkpoint: a header of 2^62 bytes": lambda f: _headers(f, struct.pack("<Q", 2**62)),
    "checkpoint: a deep header": lambda f: _headers(f, struct.pack("<Q", len(DEEP)) + DEEP.encode()),
}


def read(name: str, folder: Path) -> object:
    """Make a bomb in ``folder`` and read it."""
    return BOMBS[name](folder)


def bombs(until_s: float) -> Ledger:
    """All of them, each in a process that may be ended."""
    ledger, trials = Ledger(), Trials(read)
    for name in BOMBS:
        if time.monotonic() > until_s:
            break
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            found = trials.run(name, Path(folder), LIMIT_S)
        told = f"{name}: {found.text}"
        ledger.note("bombs are refused in one line, or read", found.kind != "failed", told)
        ledger.note("no bomb hangs", not found.text.startswith("hangs"), told)
    trials.close()
    return ledger
