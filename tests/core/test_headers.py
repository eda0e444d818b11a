"""The JSON files of a record through their types: written as read, damage in one line, old formats upgraded."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moeprof.capture.devices.gpu import FACTS
from moeprof.capture.devices.peaks import Peaks
from moeprof.capture.engines.base import EngineFacts
from moeprof.capture.measure.warmup import WarmupResult
from moeprof.capture.memory.kv_space import KvSpace
from moeprof.capture.memory.shape import ModelMemory
from moeprof.core.errors import RecordError
from moeprof.core.files import write_json
from moeprof.core.model_facts import ModelFacts
from moeprof.core.record import headers
from moeprof.core.record.experiment import DeviceHeader, ExperimentHeader, ModelFit
from moeprof.core.record.headers import FORMAT_VERSION, Header, header_of, part_of, read_header, to_json
from moeprof.core.record.lanes import LanePassHeader, LanesHeader
from moeprof.core.record.launch import EngineHeader, KvSpaceHeader, LaunchHeader, PeaksHeader, WarmupHeader
from moeprof.core.record.layout import open_record
from moeprof.core.record.pairs import PairsHeader
from moeprof.core.record.passes import PassHeader
from tests.helpers.records import make_facts, make_pass, write_record

ROOT = Path(__file__).parents[2]
COMMITTED = sorted(
    file
    for folder in ("tests/records", "reports/published")
    for file in (ROOT / folder).rglob("*.json")
    if file.name in ("experiment.json", "launch.json", "pass.json", "model.json", "ab.json")
)


def kind_of(file: Path) -> type[Any]:
    if {"lockstep", "ladder", "pairs"} & set(file.parts):
        return {"launch.json": LanesHeader, "pass.json": LanePassHeader, "model.json": ModelFacts}[file.name]
    return {
        "experiment.json": ExperimentHeader,
        "launch.json": LaunchHeader,
        "pass.json": PassHeader,
        "model.json": ModelFacts,
        "ab.json": PairsHeader,
    }[file.name]


def lost(old: Any, new: Any, where: str = "") -> list[str]:
    """Keys and values that did not survive, or are of another type; keys that came with their null are none."""
    if isinstance(old, dict) and isinstance(new, dict):
        gone = [f"{where}.{key}" for key in old if key not in new]
        return gone + [found for key in old if key in new for found in lost(old[key], new[key], f"{where}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [found for i, pair in enumerate(zip(old, new, strict=True)) for found in lost(*pair, f"{where}[{i}]")]
    return [] if old == new and type(old) is type(new) else [where]


def test_every_committed_file_is_written_as_it_was_read() -> None:
    assert len(COMMITTED) > 90
    for file in COMMITTED:
        content = json.loads(file.read_text())
        header = header_of(kind_of(file), content, file)
        assert lost(content, json.loads(json.dumps(to_json(header)))) == [], file


def test_keys_that_this_version_does_not_know_are_passed_over() -> None:
    assert header_of(LaunchHeader, {"of_a_newer_version": {"x": 1}, "load_s": 2}, Path("launch.json")).load_s == 2


def test_a_header_says_only_what_is_known() -> None:
    assert to_json(LaunchHeader()) == {}
    assert to_json(LaunchHeader(load_s=1.5)) == {"load_s": 1.5}
    assert to_json(PassHeader(status="started")) == {"traffic": "open", "status": "started", "process": 0}


@pytest.mark.parametrize(
    ("header", "facts"),
    [
        (EngineHeader, EngineFacts),
        (KvSpaceHeader, KvSpace),
        (PeaksHeader, Peaks),
        (WarmupHeader, WarmupResult),
        (ModelFit, ModelMemory),
    ],
)
def test_a_record_keeps_every_fact_that_capture_knows(header: type[msgspec.Struct], facts: type[Any]) -> None:
    assert {field.name for field in fields(facts)} <= set(header.__struct_fields__)


def test_a_record_keeps_every_fact_of_the_driver() -> None:
    assert set(FACTS) <= set(DeviceHeader.__struct_fields__)


def test_a_misspelt_key_of_a_writer_is_no_silent_loss() -> None:
    with pytest.raises(AssertionError, match=r"LaunchHeader has no .*lode_s"):
        part_of(LaunchHeader, {"lode_s": 1.0})


@pytest.mark.parametrize(
    ("kind", "content", "said"),
    [
        (PassHeader, {"status": 3}, "status is a whole number; a text or null belongs there"),
        (PassHeader, {"traffic": "sideways"}, "traffic is 'sideways'; open, closed, offline are known"),
        (PassHeader, {"invariants": {"x": {"passed": True}}}, "without invariants[...].text"),
        (LaunchHeader, {"engine": []}, "engine is a list; keys and values belong there"),
        (LaunchHeader, {"peaks": {"flops_per_s": {"bfloat16": "fast"}}},
         "peaks.flops_per_s[...] is a text; a number belongs there"),
        (ExperimentHeader, {"workload": {}, "environment": {}}, "without models"),
        (ExperimentHeader, {"workload": {}, "environment": {}, "models": [{"name": "x"}]}, "without models[0].folder"),
        (ExperimentHeader, {"workload": {}, "environment": {}, "models": [{"name": "x", "folder": "../x"}]},
         "models[0]: folder '../x' is outside of the record"),
        (ExperimentHeader, {"workload": {}, "environment": {}, "models": [], "pricing": {"euro": 1}},
         "pricing: neither rent, capital, prices of tokens nor a reason (or several)"),
        (PairsHeader, {"mode": "alone"}, "mode is 'alone', which is not known"),
    ],
)  # fmt: skip
def test_damage_is_named_by_file_key_what_was_found_and_what_belongs_there(
    tmp_path: Path, kind: type[Header], content: dict[str, Any], said: str
) -> None:
    write_json(tmp_path / "some.json", content)
    with pytest.raises(RecordError) as raised:
        read_header(tmp_path / "some.json", kind)
    assert str(raised.value) == f"{tmp_path / 'some.json'}: damaged, {said}"


def test_an_objective_that_is_not_known_is_named(tmp_path: Path) -> None:
    slo = {"workload": {"slo": {"ttft_parsec": 1}}}
    folder = write_record(tmp_path / "run", {"moe": (make_facts(), [[make_pass()]])}, workload=slo["workload"])
    with pytest.raises(RecordError, match=r"experiment.json: damaged, workload\.slo\.ttft_parsec is not known$"):
        open_record(folder)


def test_a_record_of_a_planted_older_format_is_upgraded_file_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the planted format 0 a pass told its length in milliseconds, and a launch called its engine ``backend``."""
    folder = write_record(
        tmp_path / "run", {"moe": (make_facts(), [[make_pass()]])}, launch_info={"backend": {"dtype": "float16"}}
    )
    launch = folder / "moe" / "launch-0"
    shutil.copytree(launch / "round-0", launch / "sweep-0-0")
    for file, change in {
        folder / "experiment.json": {"format_version": 0},
        launch / "round-0" / "pass.json": {"duration_ms": 250.0},
        launch / "sweep-0-0" / "pass.json": {"duration_ms": 500.0},
    }.items():
        write_json(file, {k: v for k, v in json.loads(file.read_text()).items() if k != "duration_s"} | change)

    def from_0(name: str, value: dict[str, Any]) -> dict[str, Any]:
        if name == "pass.json":
            return value | {"duration_s": value["duration_ms"] / 1e3}
        return value | {"engine": value["backend"]} if name == "launch.json" else value

    with pytest.raises(RecordError, match="format_version is 0; a whole number from 1 belongs there"):
        open_record(folder)
    monkeypatch.setitem(headers.UPGRADERS, FORMAT_VERSION - 1, from_0)
    record = open_record(folder)
    (found,) = record.models[0].launches
    assert (record.version, found.info.engine.dtype) == (0, "float16")
    assert [one.info.duration_s for one in (*found.passes, *found.sweep)] == [0.25, 0.5]
    assert record.models[0].facts == make_facts()
