"""Runs against servers on this machine, from the workload to the report, the comparison and the gates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.analysis.metrics import server
from moeprof.analysis.metrics.cards import card_for
from tests.helpers.mock_served import ServedMock, served
from tests.helpers.tiny_run import run_main, write_models

KEY = "sk-plantedKey0123456789"
TTFT_S, ITL_S, TOKENS, REQUESTS = 0.05, 0.02, 8, 24
WORKLOAD = """\
name: served
traffic:
  arrivals: {{pattern: {pattern}}}
  lengths: {{input: {{distribution: fixed, value: 8}}, output: {{distribution: fixed, value: {tokens}}}}}
  prompts: {{source: packaged}}
  num_requests: {requests}
models: [{models}]
engine: {{kind: openai, url: "{url}"{engine}}}
rounds: 3
threads: 1
warmup: {{num_requests: 1, max_seconds: 0.2}}
slo: {{ttft_s: 0.5, e2e_s: 2}}
prices: {prices}
"""
CLOSED, OPEN = "concurrency, concurrency: 4", "poisson, rate: 20"
HOURLY = "{usd_per_device_hour: 1.8}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("served")
    write_models(found)
    return found


def run(folder: Path, name: str, mock: ServedMock, *flags: str, **changes: str) -> Any:
    values = {
        "pattern": CLOSED, "models": "{name: moe, path: ./moe}", "engine": ", devices: 2", "prices": HOURLY,
        "tokens": str(TOKENS), "requests": str(REQUESTS),
    } | changes  # fmt: skip
    (folder / f"{name}.yaml").write_text(WORKLOAD.format(url=mock.url, **values), encoding="utf-8")
    return run_main(["run", folder / f"{name}.yaml", "--output-dir", folder / name, *flags])


@pytest.fixture(scope="module")
def plain(folder: Path) -> Iterator[tuple[Path, ServedMock]]:
    with served(ServedMock(ttft_s=TTFT_S, itl_s=ITL_S)) as mock:
        ran = run(folder, "plain", mock)
        assert ran.code == 0, ran.stderr
        yield folder / "plain", mock


def metrics_of(record: Path, model: str = "moe") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((record / "summary.json").read_text())["models"][model]["metrics"]
    return found


def the(record: Path, name: str, model: str = "moe", **labels: str) -> dict[str, Any]:
    found = [m for m in metrics_of(record, model) if m["name"] == name and labels.items() <= m["labels"].items()]
    assert found, name
    return found[0]


def requests_of(record: Path, name: str = "round-0", model: str = "moe") -> pd.DataFrame:
    return pd.read_parquet(record / model / "launch-0" / name / "requests.parquet")


def test_known_times_come_out(plain: tuple[Path, ServedMock]) -> None:
    record, _ = plain
    assert the(record, "ttft_p50_s", window="total")["value"] == pytest.approx(TTFT_S, rel=0.15)
    assert the(record, "tpot_p50_s", window="total")["value"] == pytest.approx(ITL_S, rel=0.03)
    assert the(record, "itl_p50_s", window="total")["value"] == pytest.approx(ITL_S, rel=0.05)
    assert the(record, "goodput_ratio")["value"] == 1.0
    requests = requests_of(record)
    assert list(requests["status"].unique()) == ["done"] and set(requests["output_tokens"]) == {TOKENS}
    assert (requests["told_input_tokens"] == 8).all() and (requests["chunks"] == TOKENS).all()
    assert (requests["cached_tokens"] == 1).all()
    assert (requests["finish_reason"] == "length").all()


def test_the_bill_is_wall_clock_times_all_devices(plain: tuple[Path, ServedMock]) -> None:
    record, _ = plain
    seconds = [
        json.loads((record / "moe" / "launch-0" / f"round-{i}" / "pass.json").read_text())["duration_s"]
        for i in range(3)
    ]
    usd = sum(seconds) / 3 * 2 * 1.8 / 3600
    assert the(record, "run_cost_usd")["value"] == pytest.approx(usd, rel=1e-6)
    assert the(record, "usd_per_1m_output_tokens_all_in")["value"] == pytest.approx(
        usd * 1e6 / REQUESTS / TOKENS, rel=1e-6
    )
    assert the(record, "usd_per_1m_output_tokens")["reasons"] == ["the server steps itself and tells tokens, not steps"]


def test_counters_and_client_stand_beside(plain: tuple[Path, ServedMock]) -> None:
    record, _ = plain
    found = json.loads((record / "moe" / "launch-0" / "round-1" / "pass.json").read_text())
    assert found["counters"]["output_tokens"] == REQUESTS * TOKENS and found["counters"]["reason"] is None
    assert the(record, "server_queue_mean_s")["value"] == pytest.approx(0.25)
    assert the(record, "server_tokens_per_step")["value"] == pytest.approx(2.0)
    assert the(record, "server_prefix_hit_ratio")["value"] == pytest.approx(0.25)
    assert the(record, "server_output_tokens_ratio")["value"] == pytest.approx(1.0)
    assert the(record, "server_kv_use_max_ratio")["value"] == pytest.approx(0.375)
    assert the(record, "server_prefill_mean_s")["reasons"] == ["the server has no such counter"]
    assert found["client"]["limit_tokens_per_s"] > 1000 and found["client"]["paced_streams"] == 4
    assert 0 < the(record, "client_load_ratio")["value"] < 1
    gauges = pd.read_parquet(record / "moe" / "launch-0" / "round-1" / "counters.parquet")
    assert len(gauges) >= 2 and (gauges["running"] == 3).all()


def test_what_cannot_be_seen_has_its_reason(plain: tuple[Path, ServedMock]) -> None:
    record, _ = plain
    lacks = json.loads((record / "moe" / "launch-0" / "launch.json").read_text())["lacks"]
    for name, need in (("router_gini", "routing"), ("step_mean_s", "steps"), ("mbu_ratio", "steps"),
                       ("peak_memory_bytes", "memory"), ("energy_j", "energy")):  # fmt: skip
        values = [m for m in metrics_of(record) if m["name"] == name]
        assert values and all(m["value"] is None and m["reasons"] == [lacks[need]] for m in values), name
    page = (record / "report.html").read_text()
    assert "routing not visible" in page and "Cost by phase" not in page and "Memory by group" not in page
    assert "energy_j" not in page or "0 J" not in page
    text = (record / "report.md").read_text()
    assert "$3.6 per hour" in text and "vLLM 0.32.0" in text


def test_an_open_loop_sends_on_time_whatever_the_server_does(folder: Path) -> None:
    with served(ServedMock(ttft_s=1.0, itl_s=0.001)) as mock:
        ran = run(folder, "open", mock, pattern=OPEN)
    assert ran.code == 0, ran.stderr
    requests = requests_of(folder / "open")
    late_s = requests["sent_s"] - requests["arrival_s"]
    assert late_s.median() < 0.02
    assert (requests["first_token_s"] - requests["arrival_s"]).median() == pytest.approx(1.0, abs=0.1)
    assert np.allclose(requests["send_slack_s"], late_s, atol=1e-6)


def test_failures_stay_in_the_denominator(folder: Path) -> None:
    faults = {3: "429", 7: "disconnect", 30: "error"}
    with served(ServedMock(ttft_s=0.005, itl_s=0.001, faults=faults)) as mock:
        ran = run(folder, "faults", mock, "--format", "md")
    assert ran.code == 0, ran.stderr
    record = folder / "faults"
    assert the(record, "num_requests_failed")["value"] == 3
    kinds = {m["labels"]["kind"]: m["value"] for m in metrics_of(record) if m["name"] == "server_failures"}
    assert kinds == {"rate limited": 1, "disconnected": 1, "error in the stream": 1}
    assert the(record, "goodput_ratio")["value"] == pytest.approx(69 / 72)
    assert "3 of 72 requests were failed" in (record / "report.md").read_text()
    assert "rate limited 1" in (record / "report.md").read_text()


def test_a_server_of_text_with_merged_chunks(folder: Path) -> None:
    with served(ServedMock(flavour="transformers", ttft_s=0.005, itl_s=0.002)) as mock:
        missing = run(folder, "unnamed", mock)
        assert missing.code == 2 and "served_as: missing" in missing.stderr
        assert not (folder / "unnamed").exists()
        ran = run(folder, "text", mock, models="{name: moe, path: ./moe, served_as: tiny}")
    assert ran.code == 0, ran.stderr
    record = folder / "text"
    requests = requests_of(record)
    assert set(requests["output_tokens"]) == {TOKENS} and requests["token_times_s"].isna().all()
    assert (requests["chunks"] == TOKENS - 1).all()
    itl = the(record, "itl_p50_s", window="total")
    assert itl["value"] is None and "chunks are not tokens" in itl["reasons"][0]
    assert the(record, "tpot_p50_s", window="total")["value"] == pytest.approx(0.002, rel=0.5)
    speed = the(record, "output_tokens_per_s", window="total")["value"]
    seconds = json.loads((record / "moe" / "launch-0" / "round-0" / "pass.json").read_text())["duration_s"]
    assert speed == pytest.approx(REQUESTS * TOKENS / seconds, rel=0.3)
    assert the(record, "server_queue_mean_s")["reasons"] == ["the server has no counters that are known here"]
    assert "chunks a token" in (record / "report.md").read_text()


def test_a_hosted_model_that_reasons_is_billed_by_the_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEPROF_TEST_KEY", KEY)
    mock = ServedMock(flavour="hosted", ttft_s=0.01, itl_s=0.005, reasoning=3, key=KEY)
    with served(mock):
        ran = run(folder, "hosted", mock, engine=", api_key_env: MOEPROF_TEST_KEY",
                  prices="{api: {input: 1.0, output: 4.0, cached_input: 0.5}}")  # fmt: skip
    assert ran.code == 0, ran.stderr
    record = folder / "hosted"
    requests = requests_of(record)
    told = int(requests["told_input_tokens"].sum())
    usd = ((told - REQUESTS) * 1.0 + REQUESTS * 0.5 + REQUESTS * TOKENS * 4.0) / 1e6
    assert the(record, "run_cost_usd")["value"] == pytest.approx(usd)
    assert the(record, "reasoning_tokens_ratio")["value"] == pytest.approx(3 / TOKENS)
    first, answer = (the(record, f"{name}_p50_s", window="total")["value"] for name in ("ttft", "ttft_answer"))
    assert answer - first == pytest.approx(0.015, abs=0.005)
    written = [path for path in record.rglob("*") if path.is_file()]
    assert written and not [path for path in written if KEY.encode() in path.read_bytes()]
    assert KEY not in ran.stdout + ran.stderr
    again = run_main(["report", record, "--usd-per-device-hour", "2"])
    assert again.code == 2 and "does not say how many devices" in again.stderr


def test_without_devices_or_prices_dollars_are_not_known(folder: Path) -> None:
    with served(ServedMock(ttft_s=0.002, itl_s=0.001)) as mock:
        ran = run(folder, "unpriced", mock, engine="", prices="{usd_per_device_hour: 2}", requests="12")
    assert ran.code == 0, ran.stderr
    value = the(folder / "unpriced", "run_cost_usd")
    assert value["value"] is None and "give engine.devices" in value["reasons"][0]
    assert "$0" not in ran.stdout


def test_two_servers_in_turns(folder: Path) -> None:
    with served(ServedMock(ttft_s=0.01, itl_s=0.004)) as fast, served(ServedMock(ttft_s=0.01, itl_s=0.008)) as slow:
        models = f'{{name: fast, path: ./moe}}, {{name: slow, path: ./moe, url: "{slow.url}"}}'
        ran = run(folder, "two", fast, models=models)
        assert ran.code == 0, ran.stderr
        assert fast.measured == slow.measured and fast.measured >= 3 * REQUESTS
    record = folder / "two"
    begun = {
        (name, i): json.loads((record / name / "launch-0" / f"round-{i}" / "pass.json").read_text())["started_unix_s"]
        for name in ("fast", "slow")
        for i in range(3)
    }
    assert [name for name, _ in sorted(begun, key=lambda key: begun[key])] == [
        "fast",
        "slow",
        "slow",
        "fast",
        "fast",
        "slow",
    ]
    ratio = (
        the(record, "tpot_p50_s", "slow", window="total")["value"]
        / the(record, "tpot_p50_s", "fast", window="total")["value"]
    )
    assert ratio == pytest.approx(2.0, rel=0.1)
    compared = run_main(["compare", record, "--reference", "fast"])
    assert compared.code == 0, compared.stderr


def test_gates_and_baselines_judge_a_server(folder: Path, plain: tuple[Path, ServedMock]) -> None:
    record, mock = plain
    saved = run_main(["baseline", "save", record, "before", "--folder", folder / "store"])
    assert saved.code == 0, saved.stderr
    mock.itl_s, mock.version = 2 * ITL_S, "0.33.0"
    try:
        ran = run(folder, "slower", mock)
    finally:
        mock.itl_s, mock.version = ITL_S, "0.32.0"
    assert ran.code == 0, ran.stderr
    compared = run_main(["compare", record, folder / "slower", "--format", "md"])
    assert compared.code == 0, compared.stderr
    assert "vLLM 0.32.0 against vLLM 0.33.0" in compared.stdout
    for baseline in (["--baseline", record], ["--baseline", "before", "--baselines", folder / "store"]):
        judged = run_main(["regress", folder / "slower", *baseline, "--fail-on", "tpot_p50_s:20%", "--format", "md"])
        assert judged.code == 4, judged.stderr  # one launch a side says no more
        assert re.search(r"p50 (1\.9|2\.0)\d*x needs 5 launches a side", judged.stdout)


@pytest.mark.slow
def test_several_launches_tell_a_slower_server(folder: Path) -> None:
    few = {"requests": "12", "engine": ", devices: 1}\nlaunches: 5\n#"}
    with served(ServedMock(ttft_s=0.005, itl_s=0.005)) as mock:
        first = run(folder, "five", mock, **few)
        mock.itl_s = 0.01
        second = run(folder, "five-slower", mock, **few)
    assert (first.code, second.code) == (0, 0), first.stderr + second.stderr
    gate = ["--fail-on", "tpot_p50_s:20%"]
    judged = run_main(["regress", folder / "five-slower", "--baseline", folder / "five", *gate])
    assert judged.code == 3, judged.stdout + judged.stderr


def test_parts_of_several_generators_become_one_record(folder: Path, plain: tuple[Path, ServedMock]) -> None:
    record, mock = plain
    ran = run(folder, "second", mock)
    assert ran.code == 0, ran.stderr
    merged = run_main(["merge", record, folder / "second", "--output-dir", folder / "merged"])
    assert merged.code == 0, merged.stderr
    both = requests_of(folder / "merged")
    assert list(both["request"]) == list(range(2 * REQUESTS)) and both["request_id"].is_unique
    parts = [requests_of(record), requests_of(folder / "second")]
    spans = np.concatenate([part["last_token_s"] - part["arrival_s"] for part in parts])
    assert np.allclose(both["last_token_s"] - both["arrival_s"], spans, atol=1e-9)
    gaps = np.diff(both["token_times_s"].iloc[-1])
    assert np.allclose(gaps, np.diff(parts[1]["token_times_s"].iloc[-1]), atol=1e-9)
    shown = run_main(["report", folder / "merged", "--format", "json"])
    assert shown.code == 0, shown.stderr
    metrics = json.loads(shown.stdout)["models"]["moe"]["metrics"]
    numbers = {m["name"]: m["value"] for m in metrics}
    assert numbers["num_requests_done"] == 6 * REQUESTS
    notes = json.loads((folder / "merged" / "experiment.json").read_text())["notes"]
    assert "merged from 2 load generators (plain, second)" in notes[-1] and "which is not known" in notes[-1]
    alone = run_main(["merge", record, "--output-dir", folder / "alone"])
    assert alone.code == 2 and "give two or more" in alone.stderr
    with served(ServedMock(version="0.32.0", ttft_s=0.001, itl_s=0.001)) as other:
        assert run(folder, "priced", other, engine=", devices: 3", requests="12").code == 0
    refused = run_main(["merge", record, folder / "priced", "--output-dir", folder / "refused"])
    assert refused.code == 2 and "these are not one test" in refused.stderr


def test_every_card_of_a_server_is_reported_by_one_of_these_runs(folder: Path, plain: tuple[Path, ServedMock]) -> None:
    records = [record for name in ("plain", "faults", "hosted") if (record := folder / name / "summary.json").exists()]
    if len(records) < 3:
        pytest.skip("some of the runs were not asked for")
    names = {m["name"] for record in records for m in metrics_of(record.parent)}
    assert {card.name for card in server.CARDS} - {card_for(name).name for name in names} == set()
