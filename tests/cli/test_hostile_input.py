"""Files made to do harm: one line, exit code 2, in a process that may use little memory and processor time."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moeprof.cli.main import main

RECORD = Path(__file__).parents[1] / "records" / "format-1"
MOST_MEMORY = 500 * 2**20
MOST_SECONDS = 2.0  # of processor time, beyond what the imports take
LIMITED = """
import sys, time
from moeprof.cli.main import main
import pandas, pyarrow.parquet, moeprof.analysis.report.run, moeprof.capture.run.prepare
before = time.process_time()
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss holds the parent's, too
print(code, time.process_time() - before, 1024 * int(peak.split()[1]), file=sys.stderr)
"""


def refused(*arguments: object, seconds: float = MOST_SECONDS) -> str:
    """The one line that was said."""
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)], capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (30, 30)),
    )  # fmt: skip
    *said, numbers = process.stderr.splitlines()
    assert "Traceback" not in process.stderr, process.stderr
    code, taken_s, memory = map(float, numbers.split())
    assert code == 2, process.stderr
    assert len(said) == 1
    assert said[0].startswith("moeprof: ")
    assert taken_s < seconds
    assert memory < MOST_MEMORY
    return said[0]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RECORD, tmp_path / "record"))


WORKLOAD = """
name: t
traffic:
  arrivals: {{pattern: offline}}
  lengths: {{input: {{distribution: fixed, value: {input}}}, output: {{distribution: fixed, value: 4}}}}
  prompts: {{source: packaged}}
  num_requests: {num_requests}
models: [{{name: moe, path: {model}, routing: {{policy: profile, path: {profile}}}}}]
device: cpu
prices: {{usd_per_device_hour: 1}}
"""


def workload(folder: Path, **changes: object) -> Path:
    settings = {"input": 8, "num_requests": 4, "model": "none", "profile": "none"} | changes
    (folder / "w.yaml").write_text(WORKLOAD.format(**settings))
    return folder / "w.yaml"


def npz_bomb(file: Path) -> None:
    out = io.BytesIO()
    np.savez_compressed(out, counts_WPCLE=np.zeros((256, 2, 1, 40, 8192), dtype=np.int64))
    file.write_bytes(out.getvalue())


def parquet_bomb(file: Path) -> None:
    columns = pq.read_schema(file).names
    pq.write_table(pa.table({name: pa.nulls(2_000_000, pa.int64()) for name in columns}), file)


PASS = "moe/launch-0/round-0"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (f"{PASS}/routing.npz", npz_bomb, "arrays of more than 128 MiB"),
        (f"{PASS}/steps.parquet", parquet_bomb, "values in"),
        ("experiment.json", lambda file: file.write_text("[" * 10**6), "nested deeper than 64 levels"),
        ("moe/launch-0/launch.json", lambda file: file.write_text('{"a": ' + "9" * 10**6 + "}"), "1,000,000 digits"),
        (
            f"{PASS}/pass.json",
            lambda file: file.write_text('{"a": [' + "[]," * 10**6 + "0]}"),
            "more than 1,000,000 values",
        ),
    ],
    ids=["npz", "parquet", "nesting", "number", "values"],
)
def test_a_bomb_in_a_record_is_refused(record: Path, file: str, damage: Callable[[Path], Any], said: str) -> None:
    damage(record / file)
    assert said in refused("report", record)


@pytest.mark.slow
def test_bombs_among_inputs_are_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as out:
        out.write(b"TIMESTAMP,ContextTokens,GeneratedTokens\n")
        row = b"2023-11-16 18:17:03.9799600,48,10\n" * 100_000
        for _ in range(60):
            out.write(row)
    assert "unpack to more than 128 MiB" in refused("trace", "inspect", bomb)
    assert "this is a device" in refused("trace", "inspect", "/dev/zero")
    assert "num_requests: found 1e+12; 1 to 1,000,000" in refused(
        "run", workload(tmp_path, num_requests=10**12), "--dry-run"
    )
    assert "value: found 1e+09; 1 to 10,000,000" in refused("run", workload(tmp_path, input=10**9), "--dry-run")


# -- in this process: what is small is refused as fast ----------------------------------------------------------------


def said_by(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 2) -> str:
    began = time.process_time()
    assert main([str(argument) for argument in arguments]) == code
    assert time.process_time() - began < 5
    out, err = capsys.readouterr()
    assert code == 0 or err.count("\n") == 1
    return err if code else out


@pytest.mark.parametrize("folder", ["..", "", ".", "a/b", "/etc", "a\0b"])
def test_a_model_of_a_record_lies_inside_of_it(record: Path, capsys: pytest.CaptureFixture[str], folder: str) -> None:
    change(record / "experiment.json", lambda value: value["models"][0].update(folder=folder))
    assert "is outside of the record" in said_by(capsys, "report", record)


def change(file: Path, edit: Callable[[Any], object]) -> None:
    value = json.loads(file.read_text())
    edit(value)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, 10**30])
def test_a_duration_that_is_none_is_told_as_one(
    record: Path, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    change(record / PASS / "pass.json", lambda found: found.update(duration_s=value))
    if value == 10**30:
        assert "a whole number of 31 digits" in said_by(capsys, "report", record)
    else:
        assert json.loads(said_by(capsys, "report", record, "--format", "json", code=0))["models"]


@pytest.mark.parametrize("column", ["start_s", "end_s", "decode_tokens", "attention_pairs", "new_tokens"])
def test_a_step_without_its_times_or_tokens_is_damage(
    record: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    file = record / PASS / "steps.parquet"
    table = pq.read_table(file)
    place, values = table.schema.get_field_index(column), table.column(column).to_pylist()
    kind = table.schema.field(place)
    for hole in (None, *([float("nan")] if pa.types.is_floating(kind.type) else [])):
        column_of = pa.array([values[0], hole, *values[2:]], kind.type)
        pq.write_table(table.set_column(place, kind, column_of), file)
        assert f"steps: damaged table, {column} of row 1 is no number" in said_by(capsys, "report", record)


def test_a_name_that_is_half_a_surrogate_is_written_in_every_format(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(record / "experiment.json", lambda value: value["models"][0].update(name="\ud800"))
    said_by(capsys, "report", record, "--write", "md,html,json,csv", "--output-dir", tmp_path / "o", code=0)
    assert len(list((tmp_path / "o").iterdir())) == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.json", b"[" * 1500, "nested deeper"),
        ("p.json", b"[1" + b"0" * 400 + b"]", "a whole number of 401 digits"),
        ("p.json", b'[{"9999999999": 1}]', "no model has as many"),
        ("p.json", json.dumps([{"65535": 1}] * 5000).encode(), "no model has as many"),
        ("p.csv", b"layer,expert,count\n0,99999999999,1\n", "no model has as many"),
        ("p.csv", b"layer,expert,count\n0,0,1\n" + b"".join(b"%d,65535,1\n" % n for n in range(999)), "no model has"),
        ("p.json.gz", gzip.compress(b"[1, 2]")[:12] + b"\xff" * 9, "damaged gzip file"),
        ("p.json", b"[NaN, 1]", "finite"),
    ],
)
def test_a_profile_of_a_stranger_is_read_with_care(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    from moeprof.capture.models.shapes import LayerShape
    from moeprof.capture.routing.popularity import load_popularity
    from moeprof.core.errors import WorkloadError
    from moeprof.core.workload.models import RoutingPolicy

    (tmp_path / name).write_bytes(content)
    shapes = [LayerShape(num_experts=2, top_k=1)]
    with pytest.raises(WorkloadError, match=said):
        load_popularity(RoutingPolicy(policy="profile", path=str(tmp_path / name)), shapes)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[" * 1500, "nested deeper than 64 levels"),
        ('{"model_type": ' + "1" * 5000 + "}", "a whole number of 5,000 digits"),
        ('{"model_type": ["x"]}', "model_type: found \"['x']\"; a text belongs there"),
        ('{"model_type": "llama", "architectures": "x"}', "architectures: found 'x'; a list belongs there"),
        ('{"model_type": "llama", "num_hidden_layers": 1000000}', "num_hidden_layers: found 1000000; 0 to 65,536"),
        (
            '{"model_type": "llama", "text_config": {"num_experts": 1e400, "vocab_size": 99999999999}}',
            "text_config.vocab_size",
        ),
    ],
)
def test_a_config_of_a_stranger_is_read_with_care(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(content)
    assert said in said_by(capsys, "params", tmp_path / "config.json")


def test_a_record_with_a_link_in_it_is_not_gone_on_with(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = record.parent / "victim"
    victim.write_text("precious")
    change(record / "experiment.json", lambda value: value.update(status="started"))
    (record / "experiment.json.tmp").symlink_to(victim)
    assert "is a link" in said_by(capsys, "run", workload(record.parent), "--resume", record)
    assert victim.read_text() == "precious"
    assert sorted(os.listdir(record)) == sorted([*os.listdir(RECORD), "experiment.json.tmp"])
