"""The workload: starters load, paths are resolved, values are checked, and no mutation of a good file is a crash."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.core import yamlfile
from moeprof.core.errors import WorkloadError
from moeprof.core.workload.engine import OWN_KINDS, EngineSettings
from moeprof.core.workload.overrides import Overrides, apply
from moeprof.core.workload.workload import Workload, load_workload, resolve_paths

REPOSITORY = Path(__file__).resolve().parents[2]
FULL = """\
name: full
traffic:
  arrivals: {pattern: gamma, rate: 4.0, burstiness: 0.5}
  lengths:
    input: {distribution: lognormal, median: 256, p99: 2048}
    output: {distribution: uniform, low: 1, high: 64}
  prompts: {source: packaged, classes: [code, prose]}
  prefix: {count: 4, ratio: 0.5}
  classes: [{name: chat, weight: 2}, {name: code}]
  num_requests: 100
models:
  - {name: moe, path: org/model, revision: main, dtype: float32}
  - {name: shape, config: shape.json, weights: random, routing: {policy: zipf, exponent: 1.5}}
engine: {dtype: bfloat16, max_batch_tokens: 256, kv_tokens: 4096, batching: static, max_batch: 4}
rounds: 5
launches: 2
seed: 7
outputs: forced_length
warmup: {num_requests: 3, max_seconds: 1e1}
device: cuda:0
threads: 2
max_minutes: 1.5
slo: {ttft_s: 0.5, tpot_s: 0.05}
prices: {usd_per_kwh: 0.2, includes_power: false, pue: 1.2, capital: {usd_per_device: 30000, years: 4}}
instruments: {overhead: false, window_steps: 8}
label: a note
"""
TRACE = """\
name: trace
traffic:
  trace: {format: azure, path: ../data/trace.csv, start_s: 0, duration_s: 60, length_scale: 0.25}
  prompts: {source: file, path: mine.jsonl}
models: [{name: moe, path: ./moe}]
"""

NAMED = """\
name: named
traffic:
  trace:
    path: log.jsonl
    columns: {arrival: started_at, input: usage.in, output: usage.out, class: team}
    timestamp_unit: ms
    block_tokens: 16
    skip_bad_rows: true
models: [{name: moe, path: ./moe}]
"""


def parse(text: str) -> Workload:
    return yamlfile.loads(text, Workload, "w.yaml", {EngineSettings: OWN_KINDS})


def test_every_key_of_a_full_workload_arrives() -> None:
    workload = parse(FULL)
    assert (workload.rounds, workload.launches, workload.seed) == (5, 2, 7)
    assert workload.traffic.arrivals is not None and workload.traffic.arrivals.burstiness == 0.5
    assert workload.traffic.lengths.input is not None and workload.traffic.lengths.input.p99 == 2048
    assert [c.weight for c in workload.traffic.classes] == [2, 1]
    assert workload.models[1].routing.policy == "zipf"
    assert workload.prices.capital is not None and workload.prices.capital.years == 4
    assert workload.warmup.max_seconds == 10
    assert workload.slo.ttft_s == 0.5


def test_a_workload_is_json_in_the_record_and_the_same_for_the_same_text() -> None:
    assert json.loads(json.dumps(parse(FULL).to_json())) == json.loads(json.dumps(parse(FULL).to_json()))
    assert parse(FULL) == parse(FULL)


def test_what_a_short_workload_leaves_out_has_a_default() -> None:
    workload = parse(TRACE)
    assert (workload.rounds, workload.launches, workload.outputs, workload.device) == (None, 1, "forced", "auto")
    assert workload.instruments.routing and workload.instruments.capacity
    assert workload.engine.prefix_cache is False


@pytest.mark.parametrize(
    "file",
    sorted(REPOSITORY.glob("workloads/*.yaml"))
    + [Path(str(f)) for f in resources.files("moeprof").joinpath("data/starters").iterdir()],
    ids=lambda path: path.name,
)
def test_every_workload_that_ships_is_read(file: Path) -> None:
    assert load_workload(file).models


def test_the_watchdog_may_be_off_but_not_negative() -> None:
    whole = load_workload(REPOSITORY / "workloads" / "quickstart.yaml")
    assert replace(whole, watchdog_s=0).watchdog_s == 0
    with pytest.raises(WorkloadError, match="watchdog_s: found -1; 0 or more is allowed"):
        replace(whole, watchdog_s=-1)


def test_the_quickstart_states_its_price_threads_and_at_least_64_requests() -> None:
    workload = load_workload(REPOSITORY / "workloads" / "quickstart.yaml")
    assert workload.prices.usd_per_device_hour is not None
    assert workload.threads == 1
    assert (workload.traffic.num_requests or 64) >= 64
    assert workload.traffic.prompts.source == "packaged"


def test_paths_start_at_the_folder_of_the_workload(tmp_path: Path) -> None:
    workload = resolve_paths(parse(TRACE), tmp_path / "w")
    assert workload.traffic.trace is not None
    assert workload.traffic.trace.path == str(tmp_path / "data" / "trace.csv")
    assert workload.traffic.prompts.path == str(tmp_path / "w" / "mine.jsonl")
    assert workload.models[0].path == str(tmp_path / "w" / "moe")


def test_a_folder_beside_the_workload_wins_over_a_hub_id_of_the_same_name(tmp_path: Path) -> None:
    assert resolve_paths(parse(FULL), tmp_path).models[0].path == "org/model"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve_paths(parse(FULL), tmp_path).models[0].path == str(tmp_path / "org" / "model")
    assert resolve_paths(parse(FULL), tmp_path).models[1].config == str(tmp_path / "shape.json")


def test_a_path_of_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    text = TRACE.replace("./moe", "~/models/moe")
    assert resolve_paths(parse(text), Path("/elsewhere")).models[0].path == "/home/someone/models/moe"


def test_options_win_over_the_file() -> None:
    options = Overrides(
        rounds=1, seed=3, num_prompts=5, request_rate=9.0, goodput=("ttft:250", "e2el:2000"), usd_per_device_hour=2.0
    )
    workload = apply(parse(FULL), options)
    assert (workload.rounds, workload.seed, workload.traffic.num_requests) == (1, 3, 5)
    assert workload.traffic.arrivals is not None
    assert (workload.traffic.arrivals.rate, workload.traffic.arrivals.pattern) == (9, "gamma")
    assert (workload.slo.ttft_s, workload.slo.tpot_s, workload.slo.e2e_s) == (0.25, 0.05, 2.0)
    assert workload.prices.usd_per_device_hour == 2 and workload.prices.capital is None


def test_no_option_changes_nothing() -> None:
    assert apply(parse(FULL), Overrides()) == parse(FULL)


def test_a_closed_loop_option_replaces_the_arrivals() -> None:
    arrivals = apply(parse(FULL), Overrides(max_concurrency=4)).traffic.arrivals
    assert arrivals is not None
    assert (arrivals.pattern, arrivals.concurrency, arrivals.rate) == ("concurrency", 4, None)


def test_burstiness_alone_keeps_the_rate() -> None:
    arrivals = apply(parse(FULL), Overrides(burstiness=2.0)).traffic.arrivals
    assert arrivals is not None
    assert (arrivals.pattern, arrivals.rate, arrivals.burstiness) == ("gamma", 4.0, 2.0)


def test_ignoring_the_end_of_text_forces_lengths_only_where_they_are_free() -> None:
    free = parse(FULL.replace("forced_length", "free"))
    assert apply(free, Overrides(ignore_eos=True)).outputs == "forced_length"
    assert apply(parse(TRACE), Overrides(ignore_eos=True)).outputs == "forced"


# -- fuzz --------------------------------------------------------------------------------------------------------------

PIECES = [
    "",
    " ",
    "\n",
    "\t",
    "-",
    "- ",
    ":",
    ": ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "'",
    '"',
    "#",
    "&a ",
    "*a",
    "!!int ",
    "? ",
]
PIECES += ["null", "~", "true", "1e9999", "-1", "0", ".nan", ".inf", "1e-3", "x", "name", "\x00", "\ud7ff", "é", "|\n"]


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A good workload with some stretches cut out, doubled, or replaced."""
    text = draw(st.sampled_from([FULL, TRACE]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = draw(st.integers(start, min(len(text), start + 30)))
        piece = draw(st.sampled_from(PIECES) | st.just(text[start:end] * 2) | st.text(max_size=4))
        text = text[:start] + piece + text[end:]
    return text


@settings(max_examples=300, deadline=None)
@given(mutations())
def test_a_mutated_workload_is_a_workload_or_a_workload_error(text: str) -> None:
    try:
        workload = parse(text)
    except WorkloadError as error:
        assert str(error).startswith("w.yaml:")
        return
    assert all_finite(workload)
    resolve_paths(workload, Path("/somewhere"))


def all_finite(value: Any) -> bool:
    """No NaN and no infinity anywhere."""
    if is_dataclass(value):
        return all(all_finite(getattr(value, f.name)) for f in fields(value))
    if isinstance(value, tuple):
        return all(map(all_finite, value))
    return not isinstance(value, float) or abs(value) < float("inf")


@settings(max_examples=150, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "request_rate": st.floats(),
            "burstiness": st.floats(),
            "max_concurrency": st.integers(-2, 3),
            "num_prompts": st.integers(-1, 3),
            "num_warmups": st.integers(-1, 3),
            "seed": st.integers(-1, 3),
            "rounds": st.integers(-1, 3),
            "threads": st.integers(-1, 3),
            "max_minutes": st.floats(),
            "usd_per_device_hour": st.floats(),
            "goodput": st.lists(st.text(max_size=8) | st.floats().map(lambda x: f"ttft:{x}"), max_size=2).map(tuple),
            "device": st.sampled_from(["cpu", "cuda", "cuda:x", ""]),
        },
    )
)
def test_any_options_give_a_workload_or_a_workload_error(options: dict[str, Any]) -> None:
    try:
        workload = apply(parse(FULL), Overrides(**options))
    except WorkloadError:
        return
    assert all_finite(workload)


@pytest.mark.parametrize(
    ("stated", "device", "max_minutes", "round_s", "rounds"),
    [
        (None, "cpu", None, None, 5),
        (None, "cuda:0", None, None, 3),
        (2, "cpu", None, None, 2),  # what is stated stays
        (None, "cpu", 10.0, 120.0, 5),  # five rounds of two minutes
        (None, "cpu", 8.0, 120.0, 4),
        (None, "cpu", 4.0, 120.0, 3),  # never fewer than an interval takes
        (None, "cpu", 10.0, None, 3),  # how long a closed loop takes is not known
    ],
)
def test_rounds_are_as_many_as_the_machine_asks_for_and_time_allows(
    stated: int | None, device: str, max_minutes: float | None, round_s: float | None, rounds: int
) -> None:
    workload = replace(parse(TRACE), rounds=stated, max_minutes=max_minutes)
    assert workload.with_rounds(device, round_s).num_rounds == rounds


def test_models_that_load_again_each_round_have_three() -> None:
    assert parse(TRACE).with_rounds("cpu", reloads=True).num_rounds == 3


def test_few_repeats_are_warned_of() -> None:
    assert replace(parse(TRACE), rounds=3).few_repeats == ()
    (said,) = replace(parse(TRACE), rounds=2).few_repeats
    assert said == "rounds: 2: figures will have no interval and no verdict; say 3 or more"
    assert replace(parse(TRACE), rounds=1, launches=6).few_repeats == ()  # launches are the unit then
    assert replace(parse(TRACE), rounds=5, launches=2).few_repeats[0].startswith("launches: 2")


def test_a_workload_names_the_columns_of_its_trace_and_says_its_units() -> None:
    trace = parse(NAMED).traffic.trace
    assert trace is not None
    assert trace.columns == {"arrival": "started_at", "input": "usage.in", "output": "usage.out", "class": "team"}
    assert (trace.timestamp_unit, trace.block_tokens, trace.skip_bad_rows) == ("ms", 16, True)
    for wrong, said in (
        (("class: team", "klass: team"), "columns: found 'klass'; allowed: arrival"),
        (("timestamp_unit: ms", "timestamp_unit: min"), "found 'min'; allowed: s, ms, us, ns, iso"),
        (("block_tokens: 16", "block_tokens: 0"), "block_tokens: found 0; 1 to 10,000,000 is allowed"),
    ):
        with pytest.raises(WorkloadError, match=said):
            parse(NAMED.replace(*wrong))
