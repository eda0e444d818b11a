"""The main job for real: a command line, worker processes, two tiny models, a record, and its report.

Figures are computed again here from the parquet and npz files with pandas and numpy alone, not with moeprof's analysis.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.helpers.tiny_run import NUM_EXPERTS, NUM_LAYERS, TOP_K, Ran, run_main

USD_PER_HOUR = 1.5
PASSES = ("round-0", "capacity-0", "round-1", "capacity-1")
MODELS = ("moe", "dense")
Run = tuple[Path, Ran]


def table(folder: Path, model: str, name: str, which: str = "requests") -> pd.DataFrame:
    return pd.read_parquet(folder / model / "launch-0" / name / f"{which}.parquet")


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def metric(folder: Path, model: str, name: str, **labels: str) -> dict[str, Any]:
    """The one value of the summary with exactly these labels."""
    metrics = read(folder / "summary.json")["models"][model]["metrics"]
    found = [m for m in metrics if m["name"] == name and m["labels"] == labels]
    assert len(found) == 1, f"{len(found)} values of {name} {labels}"
    value: dict[str, Any] = found[0]
    return value


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def close_to(value: float) -> Any:
    return pytest.approx(value, rel=1e-9)


# -- the record -------------------------------------------------------------------------------------------------------


def test_a_run_ends_well_and_its_record_is_complete(tiny_run: Run) -> None:
    folder, ran = tiny_run
    assert ran.code == 0, ran.stderr
    experiment = read(folder / "experiment.json")
    assert experiment["status"] == "done"
    assert [model["status"] for model in experiment["models"]] == ["done", "done"]
    assert experiment["workload"]["rounds"] == 2
    assert experiment["workload_text"].startswith("name: tiny")
    for model in MODELS:
        launch = folder / model / "launch-0"
        assert sorted(p.name for p in launch.iterdir() if p.is_dir()) == sorted(PASSES)
        assert {"launch.json", "warmup.parquet", "calibration.parquet", "overhead.parquet"} <= set(names(launch))
        for name in PASSES:
            wanted = {"pass.json", "requests.parquet", "steps.parquet", "telemetry.parquet"}
            assert set(names(launch / name)) == wanted | ({"routing.npz"} if model == "moe" else set())
            assert read(launch / name / "pass.json")["status"] == "done"
    assert {"schedule.parquet", "heartbeat", "summary.json", "summary.csv", "report.md", "report.html"} < set(
        names(folder)
    )


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_results_go_to_stdout_and_talk_to_stderr(tiny_run: Run) -> None:
    folder, ran = tiny_run
    assert "price of 1M output tokens" in " ".join(ran.stdout.split())
    assert f"record: {folder}" in ran.stderr.splitlines()
    assert "moe: round-1: 24 done" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_every_request_of_the_schedule_is_accounted_for_in_every_pass(tiny_run: Run) -> None:
    folder, _ = tiny_run
    schedule = pd.read_parquet(folder / "schedule.parquet")
    assert len(schedule) == 24
    for model in MODELS:
        for name in PASSES:
            requests = table(folder, model, name).sort_values("request").reset_index(drop=True)
            assert list(requests["request_id"]) == list(schedule["request_id"])
            assert list(requests["input_tokens"]) == [len(ids) for ids in schedule["input_ids"]]
            assert list(requests["asked_output_tokens"]) == list(schedule["output_tokens"])
            assert list(requests["output_tokens"]) == list(schedule["output_tokens"])
            assert set(requests["status"]) == {"done"}
            arrival = schedule["arrival_s"] if name.startswith("round") else 0 * schedule["arrival_s"]
            assert list(requests["arrival_s"]) == list(arrival)
            assert (requests["sent_s"] >= requests["arrival_s"]).all()


def test_both_models_got_the_same_schedule_byte_for_byte(tiny_run: Run) -> None:
    from moeprof.core.trace import Schedule

    folder, _ = tiny_run
    schedules = read(folder / "experiment.json")["schedules"]
    assert schedules["moe"]["sha256"] == schedules["dense"]["sha256"]
    assert Schedule.load(folder / "schedule.parquet").sha256() == schedules["moe"]["sha256"]


def test_counts_are_real_tokens_times_k_for_every_layer_phase_and_round(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for name in PASSES:
        requests, steps = table(folder, "moe", name), table(folder, "moe", name, "steps")
        prefill, decode = requests["input_tokens"].sum(), (requests["output_tokens"] - 1).sum()
        assert (steps["prefill_tokens"].sum(), steps["decode_tokens"].sum()) == (prefill, decode)
        routing = np.load(folder / "moe" / "launch-0" / name / "routing.npz")
        counts_PL = routing["counts_WPCLE"].sum(axis=(0, 2, 4))
        assert counts_PL.tolist() == [[prefill * TOP_K] * NUM_LAYERS, [decode * TOP_K] * NUM_LAYERS]
        assert routing["real_tokens_WPC"].sum(axis=(0, 2)).tolist() == [prefill, decode]
        assert routing["counts_WPCLE"].shape[-1] == NUM_EXPERTS


def test_the_invariants_of_every_pass_hold_and_are_stored(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for model, wanted in (("moe", 5), ("dense", 3)):
        for name in PASSES:
            checks = read(folder / model / "launch-0" / name / "pass.json")["invariants"]
            assert len(checks) == wanted
            assert all(check["passed"] for check in checks.values()), checks


def test_the_tap_passed_its_self_check_and_the_dense_model_has_none(tiny_run: Run) -> None:
    folder, _ = tiny_run
    assert read(folder / "moe" / "launch-0" / "launch.json")["self_check"]["passed"] is True
    assert read(folder / "dense" / "launch-0" / "launch.json")["self_check"]["passed"] is None


# -- the figures, computed again ---------------------------------------------------------------------------------------


def test_time_to_first_token_recomputed_with_pandas(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for model in MODELS:
        rounds = [table(folder, model, name) for name in ("round-0", "round-1")]
        ttft = pd.concat([r["first_token_s"] - r["arrival_s"] for r in rounds])
        found = metric(folder, model, "ttft_p50_s", traffic="open", window="total")
        assert found["value"] == close_to(np.percentile(ttft, 50))
        assert found["n"] == 24  # distinct requests; rounds replay the same ones
        mean = metric(folder, model, "ttft_mean_s", traffic="open", window="total")
        assert mean["value"] == close_to(ttft.mean())
        assert metric(folder, model, "ttft_p99_s", traffic="open", window="total")["value"] is None


def test_gaps_between_tokens_recomputed_with_pandas(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for model in MODELS:
        rounds = [table(folder, model, name) for name in ("round-0", "round-1")]
        gaps = np.concatenate([np.diff(times) for r in rounds for times in r["token_times_s"]])
        assert len(gaps) == sum((r["output_tokens"] - 1).sum() for r in rounds)
        found = metric(folder, model, "itl_p50_s", traffic="open", window="total")
        assert found["value"] == close_to(np.percentile(gaps, 50))


def test_router_load_recomputed_with_numpy(tiny_run: Run) -> None:
    folder, _ = tiny_run
    paths = [folder / "moe" / "launch-0" / name / "routing.npz" for name in ("round-0", "round-1")]
    counts_PLE = sum(np.load(path)["counts_WPCLE"].sum(axis=(0, 2)) for path in paths)
    for phase, number in (("prefill", 0), ("decode", 1)):
        per_layer = counts_PLE[number].max(axis=1) / counts_PLE[number].mean(axis=1)
        found = metric(folder, "moe", "router_load_max_over_mean", phase=phase, traffic="open", window="total")
        assert found["value"] == close_to(per_layer.mean())
        assert 1 <= found["value"] <= NUM_EXPERTS / TOP_K


def test_experts_touched_by_pure_decode_steps_of_the_first_round_recomputed_with_numpy(tiny_run: Run) -> None:
    folder, _ = tiny_run
    routing = np.load(folder / "moe" / "launch-0" / "round-0" / "routing.npz")
    pure = (table(folder, "moe", "round-0", "steps")["phase"] == "decode").to_numpy()
    used_SL = (routing["step_counts_SPLE"].sum(axis=1) > 0).sum(axis=-1)
    assert used_SL.tolist() == routing["distinct_SL"].tolist()
    found = metric(folder, "moe", "distinct_experts_per_step", phase="decode", traffic="open", window="total")
    assert found["value"] == close_to(used_SL[pure].mean())


def test_the_bill_is_window_times_price(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for model in MODELS:
        for traffic, which in (("open", "round"), ("offline", "capacity")):
            durations = [
                read(folder / model / "launch-0" / f"{which}-{n}" / "pass.json")["duration_s"] for n in range(2)
            ]
            found = metric(folder, model, "run_cost_usd", traffic=traffic)
            assert found["value"] == close_to(np.mean(durations) * USD_PER_HOUR / 3600)


def test_prices_of_input_and_output_add_up_to_the_bill(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for model in MODELS:
        for traffic in ("open", "offline"):

            def value(name: str, model: str = model, traffic: str = traffic) -> float:
                return float(metric(folder, model, name, traffic=traffic)["value"])

            bill = value("cost_input_tokens") * value("usd_per_1m_input_tokens") / 1e6
            bill += value("cost_output_tokens") * value("usd_per_1m_output_tokens") / 1e6
            assert bill == close_to(value("run_cost_usd"))


def test_the_split_adds_up_in_every_single_pass(tiny_run: Run) -> None:
    from moeprof.analysis.metrics.cost.bill import cost_splits
    from moeprof.analysis.metrics.tables import PassTables
    from moeprof.core.pricing import Pricing
    from moeprof.core.record.layout import open_record

    folder, _ = tiny_run
    pricing = Pricing(usd_per_device_hour=USD_PER_HOUR)
    for model in open_record(folder).models:
        passes = [PassTables.from_record(p) for p in model.launches[0].passes]
        assert len(passes) == 4
        for tables, split in zip(passes, cost_splits(passes, pricing), strict=True):
            asked = tables.requests["input_tokens"].sum(), tables.requests["output_tokens"].sum()
            assert (split.input_tokens, split.output_tokens) == asked
            assert split.usd_per_input_token is not None and split.usd_per_output_token is not None
            parts = asked[0] * split.usd_per_input_token + asked[1] * split.usd_per_output_token
            assert parts == close_to(tables.duration_s * USD_PER_HOUR / 3600)


# -- the files people read ---------------------------------------------------------------------------------------------


def test_the_summary_describes_itself(tiny_run: Run) -> None:
    folder, _ = tiny_run
    summary = read(folder / "summary.json")
    assert (summary["format_version"], summary["status"]) == (1, "done")
    wanted = {"name", "title", "unit", "better", "value", "n", "ci_low", "ci_high", "valid", "reasons", "labels"}
    for model in MODELS:
        for value in summary["models"][model]["metrics"]:
            assert wanted <= set(value)
            assert value["better"] in ("lower", "higher", "neither")
            assert value["unit"], value["name"]
            assert value["value"] is not None or value["reasons"], f"{value['name']} is null without a reason"
            assert "traffic" not in value["labels"] or value["labels"]["traffic"] in ("open", "offline")


def test_no_value_of_the_summary_is_said_twice(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for model in MODELS:
        metrics = read(folder / "summary.json")["models"][model]["metrics"]
        keys = [(m["name"], tuple(sorted(m["labels"].items()))) for m in metrics]
        assert len(keys) == len(set(keys)), sorted({key for key in keys if keys.count(key) > 1})[:3]


def test_the_reports_name_the_models_and_the_doubts(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "moe" in text and "dense" in text
        assert "Reasons to doubt this" in text
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in html.replace("http://www.w3.org/", "") and "https://" not in html.partition("</head>")[0]


def test_an_old_run_is_priced_again_and_its_record_is_not_touched(tiny_run: Run, tmp_path: Path) -> None:
    folder, _ = tiny_run
    before = fingerprint(folder)
    asked = ["report", folder, "--usd-per-device-hour", 3, "--write", "md,html,json,csv"]
    ran = run_main([*asked, "--output-dir", tmp_path / "again"])
    assert ran.code == 0, ran.stderr
    assert fingerprint(folder) == before
    assert sorted(names(tmp_path / "again")) == ["report.html", "report.md", "summary.csv", "summary.json"]
    for model in MODELS:
        for name in ("run_cost_usd", "usd_per_1m_output_tokens", "usd_per_1m_input_tokens", "usd_per_request"):
            old = metric(folder, model, name, traffic="offline")["value"]
            assert metric(tmp_path / "again", model, name, traffic="offline")["value"] == close_to(2 * old)
        speed = metric(folder, model, "output_tokens_per_s", traffic="offline", window="total")["value"]
        again = metric(tmp_path / "again", model, "output_tokens_per_s", traffic="offline", window="total")["value"]
        assert again == speed


def test_the_same_record_gives_the_same_bytes_of_report(tiny_run: Run) -> None:
    folder, _ = tiny_run
    for form, name in (("json", "summary.json"), ("md", "report.md"), ("csv", "summary.csv")):
        assert run_main(["report", folder, "--format", form]).stdout == (folder / name).read_text(encoding="utf-8")
