"""From a record to a Document: what stands at the top, which figures, and every reason to doubt them.

Each doubt is planted in a small written record and must be found, and a clean record must have none of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.analysis.doubt import Doubt
from moeprof.analysis.metrics.lookup import highest_percentile, number
from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables, Traffic
from moeprof.analysis.report.data import summary_json
from moeprof.analysis.report.document import Document, Paragraph, Table
from moeprof.analysis.report.result import RunReport
from moeprof.analysis.report.run import build_document
from moeprof.core.files import write_json
from moeprof.core.model_facts import ModelFacts
from moeprof.core.pricing import Pricing
from moeprof.core.record.layout import open_record
from moeprof.render.html.page import glossary
from tests.helpers.documents import facts_in
from tests.helpers.records import (
    make_facts,
    make_pass,
    make_requests,
    make_routing,
    make_steps,
    make_telemetry,
    write_record,
)

PRICING = Pricing(usd_per_device_hour=3.6)  # a tenth of a cent per second
SCHEDULE = {
    "file": "schedule.parquet", "sha256": "a" * 64, "tokenizer_hash": "t", "num_requests": 4, "pattern": "offline",
    "concurrency": None, "outputs": "free", "realism": "real_text", "input_tokens": 32, "output_tokens": 16,
    "span_s": 0.0, "classes": ["all"], "notes": [],
}  # fmt: skip
LAUNCH = {
    "engine": {"device": "cpu", "batching": "continuous", "dtype": "float32", "notes": []},
    "warmup": {"settled": True, "num_requests": 4, "seconds": 1.0},
    "self_check": {"passed": True, "notes": []},
    "threads": 1,
}
Models = Mapping[str, tuple[ModelFacts, Sequence[Sequence[PassTables]]]]


def offline(name: str = "round-0", traffic: Traffic = "offline", **steps: Any) -> PassTables:
    """Twelve requests in a hundred steps of 0.01 s: one second, 48 output tokens."""
    counts = np.ones((100, 2, 2, 4), dtype=np.int64)
    table = make_steps(100, **{"decode_tokens": 4, **steps})
    requests = make_requests(12, arrival_s=np.zeros(12))
    return make_pass(name=name, traffic=traffic, steps=table, requests=requests, routing=make_routing(counts))


def moe(*passes: PassTables, **facts: Any) -> Models:
    return {"moe": (replace(make_facts(), **facts), [list(passes) or [offline(f"round-{i}") for i in range(3)]])}


def summary_of(
    folder: Path, measured: Models, /, *, launch: Mapping[str, Any] | None = None, **experiment: Any
) -> Summary:
    path = write_record(folder / "run", measured, launch_info={**LAUNCH, **(launch or {})})
    values = json.loads((path / "experiment.json").read_text())
    values |= {"schedules": {name: SCHEDULE for name in measured}}
    values["workload"] |= {"launches": 2, "rounds": 3}
    for key, value in experiment.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) and key in values else value
    write_json(path / "experiment.json", values)
    return summarise(open_record(path), PRICING)


def document_of(folder: Path, measured: Models, /, **options: Any) -> Document:
    return build_document(summary_of(folder, measured, **options))


def codes(document: Document) -> dict[str, Doubt]:
    return {doubt.code: doubt for doubt in document.doubts}


# -- the top -----------------------------------------------------------------------------------------------------------


def test_the_headline_sets_the_moe_against_the_dense_model_on_the_same_work(tmp_path: Path) -> None:
    slow = [offline(f"round-{i}", step_s=0.02) for i in range(3)]
    models = {**moe(), "dense": (make_facts(num_experts=0, name="dense"), [slow])}
    document = document_of(tmp_path, models)
    assert "moe costs 0.5x [" in document.headline
    assert "dense" in document.headline


def test_models_that_did_other_work_are_not_set_against_each_other(tmp_path: Path) -> None:
    more = [replace(offline(f"round-{i}"), requests=make_requests(13, arrival_s=np.zeros(13))) for i in range(3)]
    models = {**moe(), "dense": (make_facts(num_experts=0, name="dense"), [more])}
    assert "x" not in document_of(tmp_path, models).headline.partition("costs")[2][:8]


def test_open_loop_dollars_make_no_comparison(tmp_path: Path) -> None:
    rounds = [offline(f"round-{i}", traffic="open") for i in range(3)]
    models = {**moe(*rounds), "dense": (make_facts(num_experts=0, name="dense"), [rounds])}
    document = document_of(tmp_path, models)
    assert "costs" not in document.headline
    assert "no_capacity_pass" in codes(document)


def test_a_run_without_tokens_has_no_price_and_says_so(tmp_path: Path) -> None:
    document = document_of(tmp_path, moe(make_pass(steps=make_steps(0), requests=make_requests(0))))
    assert document.headline == "No model produced tokens, so there is no price."


@pytest.mark.parametrize(
    ("facts", "launch", "text"),
    [
        ({"weights": "random"}, {}, "random weights"),
        ({"routing_policy": "balanced"}, {}, "routing is not the model's own (policy balanced)"),
        ({}, {"self_check": {"passed": False, "notes": []}}, "the routing tap failed its self-check"),
    ],
)
def test_what_changes_how_everything_is_read_stands_in_a_banner(
    tmp_path: Path, facts: dict[str, Any], launch: dict[str, Any], text: str
) -> None:
    assert any(text in banner for banner in document_of(tmp_path, moe(**facts), launch=launch).banners)
    assert document_of(tmp_path / "clean", moe()).banners == ()


# -- figures -----------------------------------------------------------------------------------------------------------


def test_every_metric_without_a_layer_stands_in_a_table_of_its_section(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, moe())
    document = build_document(summary)
    shown = {
        (row.name, tuple(sorted(value.labels.items())))
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Table) and block.head
        for row in block.rows
        for value in row.values
        if value is not None
    }
    apart = {"layer", "experts", "launch"}
    wanted = {(v.name, tuple(sorted(v.labels.items()))) for v in summary.models[0].metrics if not apart & set(v.labels)}
    assert wanted - shown == set()


def test_the_glossary_has_a_card_for_every_row(tmp_path: Path) -> None:
    document = document_of(tmp_path, moe())
    rows = {
        row.card.name for s in document.sections for b in s.blocks if isinstance(b, Table) and b.head for row in b.rows
    }
    assert rows == {card.name for _, cards in glossary(document) for card in cards}


def test_machine_traffic_and_engine_stand_at_the_end(tmp_path: Path) -> None:
    tables = [block for block in document_of(tmp_path, moe()).sections[-1].blocks if isinstance(block, Table)]
    assert [table.title for table in tables] == ["Machine", "Traffic", "Engine: moe"]
    facts = facts_in(tables[1])
    assert facts["schedule sha256"] == "a" * 64
    assert facts["input tokens"] == "32"


def many_requests(num: int) -> PassTables:
    steps = make_steps(num, decode_tokens=4)
    requests = make_requests(num, arrival_s=np.zeros(num), ttft_s=np.linspace(0.1, 0.2, num), output_tokens=1)
    return make_pass(traffic="offline", steps=steps, requests=requests)


@pytest.mark.parametrize(
    ("num", "name", "label"),
    [(64, "p90", "TTFT p90"), (130, "p95", "TTFT p95"), (662, "p99", "TTFT p99"), (6636, "p99_9", "TTFT p99.9")],
)
def test_the_first_screen_has_the_highest_percentile_that_the_sample_supports(
    tmp_path: Path, num: int, name: str, label: str
) -> None:
    models: Models = {"dense": (make_facts(num_experts=0, name="dense"), [[many_requests(num)]])}
    summary = summary_of(tmp_path, models)
    assert highest_percentile(summary.models, "ttft") == f"ttft_{name}_s"
    rows = [row for row in build_document(summary).first_screen if row.label.startswith("TTFT ")]
    assert [row.label.removesuffix(" *") for row in rows] == ["TTFT p50", label]
    assert all(value is not None and value.value is not None for row in rows for value in row.values)


def test_dollars_come_from_the_capacity_pass_and_latency_from_the_traffic(tmp_path: Path) -> None:
    slow = offline("round-0", traffic="open", step_s=0.03)
    summary = summary_of(tmp_path, moe(slow, offline("capacity-0")))
    model = summary.models[0]
    assert number(model, "run_cost_usd") == pytest.approx(0.001)  # one second
    assert number(model, "run_cost_usd", own_traffic=True) == pytest.approx(0.003)
    assert number(model, "step_p50_s", phase="decode") == pytest.approx(0.03)
    starred = [row for row in build_document(summary).first_screen if row.label.endswith(" *")]
    assert starred and all(v.labels["traffic"] == "offline" for row in starred for v in row.values if v is not None)


# -- doubts ------------------------------------------------------------------------------------------------------------


def with_requests(traffic: Traffic = "offline", **columns: Any) -> Models:
    table = make_requests(12, arrival_s=np.zeros(12), **columns)
    return moe(*(replace(offline(f"round-{i}", traffic), requests=table) for i in range(3)))


def with_telemetry(**columns: Any) -> Models:
    table = make_telemetry(2, **columns)
    return moe(*(replace(offline(f"round-{i}"), telemetry=table) for i in range(3)))


def schedule(**values: Any) -> dict[str, Any]:
    return {"schedules": {"moe": {**SCHEDULE, **values}}}


def engine(**values: Any) -> dict[str, Any]:
    return {"launch": {"engine": {**LAUNCH["engine"], **values}}}  # type: ignore[dict-item]


# code -> (models, options): the plant that must be found
PLANTS: dict[str, tuple[Callable[[], Models], dict[str, Any]]] = {
    "incomplete": (moe, {"status": "interrupted"}),
    "one_launch": (moe, {"workload": {"launches": 1}}),
    "prompts_not_real": (moe, schedule(realism="random_ids")),
    "forced_length": (moe, schedule(outputs="forced_length")),
    "forced": (moe, schedule(outputs="forced")),
    "dropped_failed": (moe, schedule(notes=[{"code": "dropped_failed", "count": 3, "text": "3 rows were dropped"}])),
    "tokenizers_differ": (
        moe,
        {"schedules": {"a": {**SCHEDULE, "tokenizer_hash": "x"}, "b": {**SCHEDULE, "sha256": "b" * 64}}},
    ),
    "busy_machine": (moe, {"environment": {"load_average_1min": 2.0, "cpu_cores": 2}}),
    "reloaded": (moe, {"fit": {"together": False}}),
    "cut": (lambda: moe(offline()), {"workload": {"max_minutes": 1.0}}),
    "failed": (moe, {"models": [{"name": "moe", "folder": "moe", "status": "failed", "error": "it broke"}]}),
    "tap_check_failed": (moe, {"launch": {"self_check": {"passed": False, "notes": []}}}),
    "routing_note": (moe, {"launch": {"self_check": {"passed": True, "notes": ["something odd"]}}}),
    "random_weights": (lambda: moe(weights="random"), {}),
    "model_note": (lambda: moe(notes=("executed is not routed",)), {}),
    "schedule_lag": (lambda: with_requests("open", send_slack_s=0.02), {}),
    "refused": (lambda: with_requests(status=["done"] * 11 + ["refused"]), {}),
    "unfinished": (lambda: with_requests(status=["done"] * 11 + ["unfinished"]), {}),
    "recomputed": (lambda: with_requests(recomputed_tokens=5), {}),
    "no_steady_state": (moe, {}),
    "overhead_unknown": (moe, {}),
    "rounds_differ": (lambda: moe(offline("round-0"), offline("round-1", step_s=0.012)), {}),
    "stolen_time": (lambda: moe(*(offline(f"round-{i}", cpu_s=0.005) for i in range(3))), {}),
    "warmup_unsettled": (moe, {"launch": {"warmup": {"settled": False}}}),
    "static_batches": (moe, engine(batching="static", notes=["latent attention"])),
    "engine_note": (moe, engine(notes=["stock attention"])),
    "not_saturated": (lambda: moe(offline(traffic="open", gap_s=0.01)), {}),
    "no_capacity_pass": (lambda: moe(offline(traffic="open")), {}),
    "harness_time": (lambda: moe(offline(gap_s=0.01)), {}),
    "short_pass": (lambda: moe(offline(step_s=0.001)), {}),
    "energy_unknown": (moe, {}),
    "throttled": (lambda: with_telemetry(throttle_reasons=0x8), {}),
    "clocks_changed": (lambda: with_telemetry(sm_clock_mhz=[1000.0, 2000.0]), {}),
    "other_processes": (lambda: with_telemetry(num_other_processes=1), {}),
    "device_memory_in_use_at_start": (moe, {"device_at_start": {"memory_used_bytes": 2 * 2**30}}),
    "device_busy_at_start": (moe, {"device_at_start": {"utilisation_ratio": 0.06}}),
    "power_limit_lowered": (moe, {"device_at_start": {"power_limit_w": 500.0, "power_limit_default_w": 700.0}}),
}
ALWAYS = {
    "no_steady_state",
    "overhead_unknown",
    "energy_unknown",
}  # such a small record has no better


@pytest.mark.parametrize("code", PLANTS)
def test_a_planted_reason_to_doubt_is_found(tmp_path: Path, code: str) -> None:
    models, options = PLANTS[code]
    found = codes(document_of(tmp_path, models(), **options))
    assert code in found, sorted(found)
    doubt = found[code]
    assert doubt.text and "None" not in doubt.text and "nan" not in doubt.text


def prefill_only(cached: int = 0) -> PassTables:
    """Twelve requests of ten prompt tokens and one output token each, all in two steps of half a second."""
    phases = {"phase": "prefill", "step_s": 0.5, "prefill_tokens": 60, "decode_tokens": 0, "new_tokens": 6}
    requests = make_requests(12, input_tokens=10 + cached, output_tokens=1, cached_tokens=cached)
    return make_pass(traffic="offline", steps=make_steps(2, **phases), requests=requests)


def test_the_sentence_of_a_run_without_decode_prices_prompts_and_no_output(tmp_path: Path) -> None:
    said = document_of(tmp_path, moe(prefill_only())).headline
    # one second at the rent of a second, 120 prompt tokens
    assert "per 1M input tokens at 12 output tokens/s, and no price of an output token." in said
    assert "$0 " not in said


def test_a_cached_prompt_is_told_beside_the_price_of_one_that_was_computed(tmp_path: Path) -> None:
    document = document_of(tmp_path, moe(prefill_only(cached=30)))
    assert " per 1M input tokens computed (" in document.headline
    assert " with those from the cache)" in document.headline
    assert codes(document)["cached_prompts"].text.startswith("75 % of prompt tokens came from the cache")


def test_how_other_tools_split_the_bill_is_said_once_each(tmp_path: Path) -> None:
    cost = next(section for section in document_of(tmp_path, moe()).sections if section.name == "cost")
    lines = [block.text for block in cost.blocks if isinstance(block, Paragraph)]
    assert [line.partition(":")[0] for line in lines] == [
        "By request-seconds (as OpenCost does)",
        "All in (as InferenceX and inference-perf do)",
    ]


def test_a_clean_record_has_none_of_them(tmp_path: Path) -> None:
    found = set(codes(document_of(tmp_path, moe(), environment={"load_average_1min": 0.1, "cpu_cores": 2})))
    assert found == ALWAYS


def test_a_broken_invariant_is_an_error_with_its_numbers(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", moe(), launch_info=LAUNCH)
    file = path / "moe" / "launch-0" / "round-1" / "pass.json"
    broken = {"routed_tokens": {"passed": False, "text": "tokens computed and seen: 10 and 9"}}
    write_json(file, {**json.loads(file.read_text()), "invariants": broken})
    doubt = codes(build_document(summarise(open_record(path), PRICING)))["invariant"]
    assert doubt.severity == "error"
    assert doubt.text == "round-1: routed tokens do not add up (tokens computed and seen: 10 and 9)"


def test_a_killed_pass_is_called_what_it_is(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", moe(), launch_info=LAUNCH)
    write_json(path / "moe" / "launch-0" / "round-2" / "pass.json", {"traffic": "offline", "status": "started"})
    texts = [doubt.text for doubt in build_document(summarise(open_record(path), PRICING)).doubts]
    assert "round-2 has no end: it still runs, or its process was killed" in texts


def test_the_worst_doubts_stand_first_and_the_same_doubt_of_two_models_is_one(tmp_path: Path) -> None:
    models = {name: moe(weights="random")["moe"] for name in ("a", "b")}
    doubts = document_of(tmp_path, models, status="interrupted").doubts
    order = ["error", "warning", "note"]
    assert [order.index(d.severity) for d in doubts] == sorted(order.index(d.severity) for d in doubts)
    assert [d.model for d in doubts if d.code == "random_weights"] == ["a, b"]


def test_the_same_record_gives_the_same_document(tmp_path: Path) -> None:
    path = write_record(tmp_path / "run", moe(), launch_info=LAUNCH)
    one, two = (build_document(summarise(open_record(path), PRICING)) for _ in range(2))
    pd.testing.assert_index_equal(pd.Index([d.text for d in one.doubts]), pd.Index([d.text for d in two.doubts]))
    assert repr(one) == repr(two)


@pytest.mark.parametrize(
    ("models", "flag", "code", "valid"),
    [
        (lambda: moe(offline("round-0"), offline("round-1", step_s=0.012)), "isolation", "rounds_differ", True),
        (lambda: moe(offline("round-0"), offline("round-1", step_s=0.0266)), "isolation", "rounds_differ", False),
        (lambda: moe(*(offline(f"round-{i}", cpu_s=0.005) for i in range(3))), "isolation", "stolen_time", False),
        (lambda: with_requests("open", send_slack_s=0.02), "schedule", "schedule_lag", False),
    ],
    ids=["rounds 20 % apart", "rounds 166 % apart", "every step interrupted", "schedule not kept"],
)
def test_validity_in_the_data_agrees_with_the_doubts_of_the_page(
    tmp_path: Path, models: Callable[[], Models], flag: str, code: str, valid: bool
) -> None:
    """Weakened is valid, with its reason; what the doubt says is not to be used is not."""
    summary = summary_of(tmp_path, models())
    document = build_document(summary)
    said = summary_json(RunReport(summary=summary, document=document))["validity"][flag]
    doubt = codes(document)[code]
    assert (said["valid"], said["severity"]) == (valid, doubt.severity)
    assert code in said["reasons"] and ("not to be used" in doubt.text or "not the traffic" in doubt.text) is not valid


@pytest.mark.parametrize(
    ("models", "void"),
    [
        (lambda: moe(*(offline(f"round-{i}", cpu_s=0.005) for i in range(3))), {"isolation", "latency", "cost"}),
        (lambda: moe(offline("round-0"), offline("round-1", step_s=0.0266)), {"isolation", "latency", "cost"}),
        (lambda: moe(offline("round-0"), offline("round-1", step_s=0.012)), set()),
    ],
    ids=["every step interrupted", "rounds 166 % apart", "rounds 20 % apart"],
)
def test_where_times_are_not_to_be_used_latency_and_cost_are_invalid_and_the_headline_says_so(
    tmp_path: Path, models: Callable[[], Models], void: set[str]
) -> None:
    summary = summary_of(tmp_path, models())
    document = build_document(summary)
    flags = summary_json(RunReport(summary=summary, document=document))["validity"]
    assert {name for name, said in flags.items() if said["valid"] is False} == void
    assert ("Times of this run are not to be used (moe: " in document.headline) is bool(void)


def test_a_price_of_too_few_requests_is_invalid_in_the_data_too(tmp_path: Path) -> None:
    few = replace(offline(), requests=make_requests(4, arrival_s=np.zeros(4)))
    summary = summary_of(tmp_path, moe(few))
    document = build_document(summary)
    assert "are not valid" in codes(document)["few_priced_requests"].text
    assert summary_json(RunReport(summary=summary, document=document))["validity"]["cost"]["valid"] is False


def test_without_a_steady_state_its_flag_is_neither_valid_nor_invalid(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, moe())
    flag = summary_json(RunReport(summary=summary, document=build_document(summary)))["validity"]["steady_state"]
    assert (flag["valid"], flag["reasons"]) == (None, ["no_steady_state"])
