"""The record on disk: what is written is what is read, whether the pass ended, still runs, or was killed.

``tests/records/format-1`` is a real run of two tiny models under format 1 (overhead tables cut short); it must load
for ever.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.capture.recorders.stream import TableStream
from moeprof.core.errors import RecordError
from moeprof.core.files import write_json
from moeprof.core.record.layout import FORMAT_VERSION, PassRecord, open_record
from moeprof.core.record.passes import PassHeader
from moeprof.core.record.routing import MAX_WINDOWS, Routing, join_routing_parts, merge_routing
from moeprof.core.record.tables import TABLES, arrow_schema, read_table
from tests.helpers.records import make_facts, make_pass, make_routing, make_steps, write_pass, write_record
from tests.helpers.tiny_run import run_main

FORMAT_1 = Path(__file__).parents[1] / "records" / "format-1"


def same(one: Routing, other: Routing) -> bool:
    """Equal in every array, shape and type."""
    for field in fields(Routing):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(a, b):
                return False
        elif a != b:
            return False
    return True


def counts(num_steps: int = 20, seed: int = 0) -> npt.NDArray[Any]:
    """Random assignments [S, P = 2, L = 2, E = 4]."""
    return np.random.default_rng(seed).integers(0, 9, size=(num_steps, 2, 2, 4))


# -- routing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [True, False])
def test_routing_comes_back_as_it_was_saved(tmp_path: Path, keep: bool) -> None:
    routing = make_routing(counts(), keep_step_counts=keep, class_names=("code", "prose"), class_of_step=[0, 1] * 10)
    routing.save(tmp_path / "routing.npz")
    assert same(Routing.load(tmp_path / "routing.npz"), routing)
    assert [p.name for p in tmp_path.iterdir()] == ["routing.npz"]  # no temporary file stays


def test_no_object_of_python_is_ever_unpickled_from_a_record(tmp_path: Path) -> None:
    routing = make_routing(counts())
    arrays: dict[str, Any] = {f.name: getattr(routing, f.name) for f in fields(Routing)}
    arrays["top_k_L"] = np.array([{"os": "system"}], dtype=object)
    np.savez(tmp_path / "routing.npz", allow_pickle=True, **arrays)
    with pytest.raises(RecordError, match="damaged routing counts"):
        Routing.load(tmp_path / "routing.npz")


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    kept=st.integers(0, 12),
    seed=st.integers(0, 2**16),
)
def test_parts_of_a_pass_add_up_to_the_whole(sizes: list[int], kept: int, seed: int) -> None:
    whole = counts(sum(sizes), seed)
    edges = np.cumsum([0, *sizes])
    parts = [
        part_of(whole[a:b], first_step=int(a), keep=number < kept) for number, (a, b) in enumerate(pairwise(edges))
    ]
    merged = merge_routing(parts)
    assert merged.counts_WPCLE.sum(axis=(0, 2)).tolist() == whole.sum(axis=0).tolist()
    assert merged.window_first_step.tolist() == edges[:-1].tolist()
    assert merged.distinct_SL.tolist() == (whole.sum(axis=1) > 0).sum(axis=-1).tolist()
    num_kept = int(edges[min(kept, len(sizes))])
    if num_kept == 0:
        assert merged.step_counts_SPLE is None
    else:
        assert merged.step_counts_SPLE is not None
        assert merged.step_counts_SPLE.tolist() == whole[:num_kept].tolist()  # row s is always step s


def part_of(steps_SPLE: npt.NDArray[Any], *, first_step: int, keep: bool = True) -> Routing:
    """One window, as the recorder writes it."""
    first = {"window_first_step": np.array([first_step]), "window_start_s": np.array([0.01 * first_step])}
    return make_routing(steps_SPLE, steps_per_window=len(steps_SPLE), keep_step_counts=keep, **first)


def test_many_windows_are_added_up_to_the_bound_and_nothing_is_lost() -> None:
    parts = [part_of(counts(1, seed), first_step=seed) for seed in range(2 * MAX_WINDOWS + 1)]
    merged = merge_routing(parts)
    assert len(merged.window_start_s) == 171  # 513 windows in threes
    assert merged.counts_WPCLE.sum() == sum(part.counts_WPCLE.sum() for part in parts)
    assert merged.window_first_step.tolist() == list(range(0, 513, 3))
    assert len(merged.distinct_SL) == 513


def test_parts_are_read_in_order_of_number_and_joined_when_the_pass_ends(tmp_path: Path) -> None:
    whole = counts(11)
    for step in range(11):  # part-10 comes after part-9, not after part-1
        part_of(whole[step : step + 1], first_step=step).save(tmp_path / f"routing.part-{step}.npz", compress=False)
    killed = PassRecord(tmp_path).routing
    assert killed is not None and killed.window_first_step.tolist() == list(range(11))
    join_routing_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["routing.npz"]
    ended = PassRecord(tmp_path).routing
    assert ended is not None and same(ended, killed)


def test_a_kill_while_parts_are_joined_counts_nothing_twice(tmp_path: Path) -> None:
    whole = counts(4)
    part_of(whole, first_step=0).save(tmp_path / "routing.part-0.npz")
    shutil.copy(tmp_path / "routing.part-0.npz", tmp_path / "kept.npz")
    join_routing_parts(tmp_path)
    shutil.move(tmp_path / "kept.npz", tmp_path / "routing.part-0.npz")  # killed before the part was removed
    found = PassRecord(tmp_path).routing
    assert found is not None and found.counts_WPCLE.sum() == whole.sum()


def test_a_part_that_was_being_written_at_the_kill_is_not_read(tmp_path: Path) -> None:
    whole = counts(4)
    part_of(whole, first_step=0).save(tmp_path / "routing.part-0.npz")
    (tmp_path / "tmp-routing.part-1.npz").write_bytes(b"half a file")
    found = PassRecord(tmp_path).routing
    assert found is not None and found.counts_WPCLE.sum() == whole.sum()


# -- tables ------------------------------------------------------------------------------------------------------------

SAMPLES = {
    pa.int64(): st.integers(-(2**62), 2**62),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.string(): st.text(max_size=5),
    pa.bool_(): st.booleans(),
    pa.list_(pa.float64()): st.lists(st.floats(0, 1e6), max_size=3),
}


def rows_of(table: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    row = {field.name: st.none() | SAMPLES[field.type] for field in arrow_schema(table)}
    return st.lists(st.fixed_dictionaries(row), max_size=5)


def as_rows(folder: Path, table: str) -> list[dict[str, Any]]:
    return pa.Table.from_pandas(read_table(folder, table), schema=arrow_schema(table), preserve_index=False).to_pylist()


@pytest.mark.parametrize("table", TABLES)
def test_a_stream_and_its_parquet_give_back_the_rows(table: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    @settings(max_examples=15, deadline=None)
    @given(rows=rows_of(table))
    def round_trip(rows: list[dict[str, Any]]) -> None:
        folder = tmp_path_factory.mktemp("pass")
        stream = TableStream(folder, table)
        for row in rows:
            stream.append(row)
        stream.flush()
        assert as_rows(folder, table) == rows  # still running
        stream.close()
        assert [p.name for p in folder.iterdir()] == [f"{table}.parquet"]
        assert as_rows(folder, table) == rows  # ended

    round_trip()


def write_stream(folder: Path, flushes: Sequence[int]) -> Path:
    """A stream of steps flushed after so many rows each time, then killed."""
    stream = TableStream(folder, "steps")
    number = 0
    for size in flushes:
        for _ in range(size):
            stream.append({"step": number, "start_s": 0.1 * number})
            number += 1
        stream.flush()
    stream._file.close()
    return folder / "steps.arrows"


def test_a_killed_stream_is_read_up_to_its_last_whole_flush(tmp_path: Path) -> None:
    file = write_stream(tmp_path, [3, 2, 4])
    whole = file.read_bytes()
    assert len(read_table(tmp_path, "steps")) == 9
    lengths = set()
    for cut in range(0, len(whole), 97):
        file.write_bytes(whole[:cut])
        found = read_table(tmp_path, "steps")
        assert list(found["step"]) == list(range(len(found)))
        lengths.add(len(found))
    assert lengths == {0, 3, 5}


def test_what_is_not_flushed_yet_is_not_there(tmp_path: Path) -> None:
    stream = TableStream(tmp_path, "steps")
    stream.append({"step": 0})
    assert len(read_table(tmp_path, "steps")) == 0
    stream.flush()
    assert len(read_table(tmp_path, "steps")) == 1
    stream.close()


def test_null_is_never_zero(tmp_path: Path) -> None:
    stream = TableStream(tmp_path, "requests")
    stream.append({"request": 0, "cached_tokens": 0})
    stream.close()
    table = read_table(tmp_path, "requests")
    assert table["cached_tokens"].iloc[0] == 0
    assert table["output_tokens"].isna().all() and table["first_token_s"].isna().all()
    assert str(table["output_tokens"].dtype) == "Int64"


def test_an_absent_table_is_empty_with_all_its_columns(tmp_path: Path) -> None:
    for table, columns in TABLES.items():
        found = read_table(tmp_path, table)
        assert len(found) == 0 and list(found.columns) == list(columns)


# -- the folder --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models; the first has two rounds, a capacity pass, and a second launch."""
    passes = [make_pass(name=name, routing=make_routing(counts())) for name in ("round-0", "round-1", "capacity-0")]
    models = {
        "moe": (make_facts(), [passes, passes[:1]]),
        "dense": (make_facts(num_experts=0, name="dense"), [[make_pass()]]),
    }
    return write_record(tmp_path / "run", models)


def test_a_record_lists_models_launches_and_passes_in_order(folder: Path) -> None:
    record = open_record(folder)
    assert (record.run, record.status) == ("run", "done")
    assert [model.name for model in record.models] == ["moe", "dense"]
    moe = record.models[0]
    assert [launch.number for launch in moe.launches] == [0, 1]
    assert [p.name for p in moe.launches[0].passes] == ["round-0", "round-1", "capacity-0"]
    assert [p.name for p in moe.launches[0].rounds] == ["round-0", "round-1"]
    assert [p.is_capacity for p in moe.launches[0].passes] == [False, False, True]
    assert moe.facts == make_facts()


def test_rounds_are_in_order_of_number_not_of_text(tmp_path: Path) -> None:
    for number in (10, 9, 2):
        write_pass(tmp_path, make_pass(name=f"round-{number}"))
    from moeprof.core.record.layout import LaunchRecord

    assert [p.name for p in LaunchRecord(tmp_path).passes] == ["round-2", "round-9", "round-10"]


@pytest.mark.parametrize(
    ("status", "beat_s", "read_as"),
    [
        ("started", 1.0, "started"),
        ("started", 9.0, "started"),
        ("started", 11.0, "interrupted"),
        ("started", None, "interrupted"),
        ("done", 1000.0, "done"),
        ("failed", None, "failed"),
        ("interrupted", 1.0, "interrupted"),
    ],
)
def test_a_run_that_has_been_silent_for_ten_seconds_was_interrupted(
    folder: Path, status: str, beat_s: float | None, read_as: str
) -> None:
    experiment = json.loads((folder / "experiment.json").read_text())
    write_json(folder / "experiment.json", {**experiment, "status": status})
    if beat_s is not None:
        (folder / "heartbeat").write_text(str(time.time() - beat_s))
    assert open_record(folder).status == read_as


def test_a_damaged_heartbeat_is_silence(folder: Path) -> None:
    experiment = json.loads((folder / "experiment.json").read_text())
    write_json(folder / "experiment.json", {**experiment, "status": "started"})
    (folder / "heartbeat").write_bytes(b"\xff")
    assert open_record(folder).status == "interrupted"


def test_json_is_never_seen_half_written_and_never_holds_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_pass_that_was_killed_early_has_empty_tables_and_no_routing(tmp_path: Path) -> None:
    (tmp_path / "round-0").mkdir()
    killed = PassRecord(tmp_path / "round-0")
    assert (killed.info, len(killed.steps), len(killed.requests), killed.routing) == (PassHeader(), 0, 0, None)


def test_a_record_whose_only_pass_never_began_is_reported_without_figures(tmp_path: Path) -> None:
    folder = write_record(tmp_path / "run", {"moe": (make_facts(), [[make_pass(steps=make_steps(0))]])})
    experiment = json.loads((folder / "experiment.json").read_text())
    write_json(folder / "experiment.json", {**experiment, "pricing": {"usd_per_device_hour": 1.0}})
    ran = run_main(["report", folder])
    assert ran.code == 0, ran.stderr
    assert "No model produced tokens" in ran.stdout


# -- old formats -------------------------------------------------------------------------------------------------------


def test_every_format_up_to_the_present_one_has_a_record_here() -> None:
    kept = sorted(path.name for path in FORMAT_1.parent.iterdir() if path.is_dir())
    assert kept == [f"format-{version}" for version in range(1, FORMAT_VERSION + 1)]


def test_a_record_of_format_1_still_loads_and_is_still_reported(tmp_path: Path) -> None:
    record = open_record(FORMAT_1)
    assert (record.version, record.status) == (1, "done")
    assert [(m.name, len(m.launches[0].passes)) for m in record.models] == [("moe", 2), ("dense", 2)]
    for model in record.models:
        for passed in model.launches[0].passes:
            assert list(passed.requests["status"]) == ["done"] * 12
            assert len(passed.telemetry) >= 1
            tokens = int((passed.steps["prefill_tokens"] + passed.steps["decode_tokens"]).sum())
            assert tokens == int((passed.requests["input_tokens"] + passed.requests["output_tokens"] - 1).sum())
            if model.name == "moe":
                assert passed.routing is not None and int(passed.routing.counts_WPCLE.sum()) == tokens * 2 * 2
    ran = run_main(["report", FORMAT_1, "--write", "md,html,json,csv", "--output-dir", tmp_path / "out"])
    assert ran.code == 0, ran.stderr
    assert "price of 1M output tokens" in " ".join(ran.stdout.split())


def test_figures_of_the_record_of_format_1_do_not_change() -> None:
    import pandas as pd

    values = json.loads(run_main(["report", FORMAT_1, "--format", "json"]).stdout)["models"]["moe"]["metrics"]
    labels = {"traffic": "open", "window": "total"}
    found = {v["name"]: v["value"] for v in values if v["labels"] == labels}
    requests = pd.read_parquet(FORMAT_1 / "moe" / "launch-0" / "round-0" / "requests.parquet")
    assert found["ttft_p50_s"] == pytest.approx((requests["first_token_s"] - requests["arrival_s"]).median(), rel=1e-12)
    assert found["output_tokens_per_s"] * 0 == 0
