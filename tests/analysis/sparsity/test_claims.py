"""Claims: each measure on planted figures, the verdict by its interval, and the files of workloads/claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moeprof.analysis.metrics.summary import Summary, summarise
from moeprof.analysis.metrics.tables import PassTables
from moeprof.analysis.report.run import build_document
from moeprof.analysis.sparsity.claims import MEASURED, claim_notes, judge
from moeprof.core.errors import RecordError, WorkloadError
from moeprof.core.files import write_json
from moeprof.core.model_facts import ModelFacts, TwinFacts
from moeprof.core.record.layout import open_record
from moeprof.core.record.tables import arrow_schema
from moeprof.core.workload.studies import MEASURES, Claim
from moeprof.core.workload.workload import Workload, load_workload
from tests.helpers.planted_runs import PRICING
from tests.helpers.records import (
    make_facts,
    make_pass,
    make_requests,
    make_routing,
    make_steps,
    requests_of_steps,
    write_record,
)

CLAIMS = Path(__file__).parents[3] / "workloads" / "claims"
ENGINE = {"engine": {"experts": "grouped_mm", "dtype": "float32"}}


def claim(measure: str, **settings: Any) -> Claim:
    return Claim(**{"text": "so it is", "measure": measure, "at_least": 1.0, **settings})


def passes(step_s: Sequence[float], *, moe: bool = False, counts: Any = None) -> list[PassTables]:
    """One round per step time; a hundred decode steps of four tokens each."""
    made = []
    for number, seconds in enumerate(step_s):
        tables = np.ones((100, 2, 2, 4), dtype=np.int64) if counts is None else counts
        made.append(
            make_pass(
                name=f"round-{number}",
                traffic="offline",
                steps=make_steps(100, step_s=seconds),
                requests=make_requests(12, arrival_s=np.zeros(12), token_times_s=[np.array([100 * seconds])] * 12),
                routing=make_routing(tables, steps_per_window=10, requests=requests_of_steps(tables, 20))
                if moe
                else None,
            )
        )
    return made


def run_of(
    folder: Path, models: Mapping[str, tuple[ModelFacts, Sequence[Sequence[PassTables]]]], **record: Any
) -> Summary:
    return summarise(open_record(write_record(folder / "run", models, launch_info=ENGINE, **record)), PRICING)


def moe_and_dense(folder: Path, moe_s: Sequence[float], dense_s: Sequence[float], **record: Any) -> Summary:
    models = {
        "moe": (make_facts(), [passes(moe_s, moe=True)]),
        "dense": (make_facts(num_experts=0, name="dense"), [passes(dense_s)]),
    }
    return run_of(folder, models, **record)


# -- verdicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"at_least": 2.5}, "agrees"),
        ({"at_least": 3.5}, "disagrees"),
        ({"at_least": 3.0}, "cannot tell"),
        ({"at_least": None, "at_most": 3.5}, "agrees"),
        ({"at_least": None, "at_most": 2.5}, "disagrees"),
        ({"at_least": 2.5, "at_most": 3.5}, "agrees"),
        ({"at_least": 2.5, "at_most": 3.0}, "cannot tell"),
    ],
)
def test_the_whole_interval_decides(tmp_path: Path, bounds: dict[str, Any], verdict: str) -> None:
    summary = moe_and_dense(tmp_path, [0.0101, 0.01, 0.0099], [0.03, 0.03, 0.03])
    found = judge(claim("speed_ratio", **bounds), summary)
    assert found.measured.value == pytest.approx(3.0, rel=0.01)
    assert found.verdict == verdict


def test_without_an_interval_a_claim_cannot_be_told_and_the_sentence_says_why(tmp_path: Path) -> None:
    summary = moe_and_dense(tmp_path, [0.01], [0.03], environment={"device_name": "a processor", "threads": 1})
    found = judge(claim("speed_ratio", at_least=2.0, source="somebody"), summary)
    assert found.verdict == "cannot tell"
    assert found.sentence == (
        'Claim: "so it is" (somebody). Measured: speed on the same requests, moe (1.08 M parameters) against dense '
        "(1 M parameters): 3; the claim needs at least 2. Verdict: cannot tell: one round; 3 or more rounds needed "
        "(on a processor, 1 thread)."
    )


def test_a_model_that_was_not_measured_is_no_verdict(tmp_path: Path) -> None:
    summary = run_of(tmp_path, {"moe": (make_facts(), [passes([0.01, 0.01], moe=True)])})
    found = judge(claim("cost_ratio"), summary)
    assert found.verdict == "cannot tell" and found.measured.reason == "a dense model was not measured"


def test_the_verdict_is_the_first_note_of_the_report(tmp_path: Path) -> None:
    stated = {"text": "so it is", "measure": "weights_bytes", "at_least": 1.0}
    summary = run_of(tmp_path, {"moe": (make_facts(), [passes([0.01], moe=True)])}, workload={"claim": stated})
    assert build_document(summary).notes[0] == claim_notes(summary)[0]
    assert claim_notes(summary)[0].startswith('Claim: "so it is". Measured: memory of the weights, moe (1.08 M')
    assert claim_notes(moe_and_dense(tmp_path / "other", [0.01], [0.01])) == ()


def test_a_damaged_claim_of_a_record_is_named(tmp_path: Path) -> None:
    models = {"moe": (make_facts(), [passes([0.01], moe=True)])}
    summary = run_of(tmp_path, models, workload={"claim": {"text": "x", "measure": "beauty", "at_least": 1.0}})
    with pytest.raises(RecordError, match=r"experiment.json: damaged claim \(measure: found 'beauty'"):
        claim_notes(summary)


# -- measures ----------------------------------------------------------------------------------------------------------


def measured(summary: Summary, measure: str) -> float | None:
    return judge(claim(measure), summary).measured.value


def test_every_measure_that_a_workload_may_name_exists() -> None:
    assert set(MEASURES) == set(MEASURED)


def test_speed_is_the_inverse_of_time_and_cost_is_time(tmp_path: Path) -> None:
    summary = moe_and_dense(tmp_path, [0.01] * 3, [0.025] * 3)
    assert measured(summary, "speed_ratio") == pytest.approx(2.5)
    assert measured(summary, "decode_speed_ratio") == pytest.approx(2.5)
    assert measured(summary, "cost_ratio") == pytest.approx(0.4)
    prefill = judge(claim("prefill_speed_ratio"), summary)
    assert prefill.verdict == "cannot tell" and prefill.measured.value is None


def test_memory_is_counted(tmp_path: Path) -> None:
    summary = moe_and_dense(tmp_path, [0.01], [0.01])
    assert measured(summary, "weights_bytes") == 2 * 1_080_000
    assert measured(summary, "weights_ratio") == pytest.approx(1.08)
    assert measured(summary, "memory_over_active_ratio") == pytest.approx(1_080_000 / 1_040_000)


def test_saved_compute_is_counted_from_the_steps(tmp_path: Path) -> None:
    # per token 400,000 of attention, 300,000 of the head, 2 x 2 x 10,000 of experts; 80,000 FLOPs of attention pairs
    summary = moe_and_dense(tmp_path, [0.01], [0.01])
    dense = 2 * 700_000 + 80_000
    assert measured(summary, "compute_saved_ratio") == pytest.approx(1 - (dense + 2 * 40_000) / dense)


def test_the_hottest_expert_and_the_coldest_of_the_most_uneven_layer(tmp_path: Path) -> None:
    counts = np.zeros((100, 2, 2, 4), dtype=np.int64)
    counts[:, 1, 0] = [2, 2, 2, 2]
    counts[:, 1, 1] = [4, 2, 1, 1]
    summary = run_of(tmp_path, {"moe": (make_facts(), [passes([0.01], moe=True, counts=counts)])})
    assert measured(summary, "expert_share_max") == 0.5
    found = judge(claim("expert_share_min_over_max", at_least=None, at_most=0.3), summary)
    assert found.measured.value == 0.25 and found.verdict == "agrees"


def test_spread_at_a_fixed_batch_is_compared_round_by_round(tmp_path: Path) -> None:
    models = {
        "moe": (make_facts(), [[noisy(number, 0.2) for number in range(3)]]),
        "dense": (make_facts(num_experts=0), [[noisy(number, 0.1) for number in range(3)]]),
    }
    assert measured(run_of(tmp_path, models), "step_cv_ratio") == pytest.approx(2.0, rel=1e-6)


def noisy(number: int, spread: float) -> PassTables:
    """Steps of 10 ms, half of them longer and half shorter by ``spread``."""
    seconds = 0.01 * (1 + spread * np.tile([1, -1], 50))
    return make_pass(name=f"round-{number}", traffic="offline", steps=make_steps(100, step_s=seconds))


# -- lock-step and the ladder ------------------------------------------------------------------------------------------

SECONDS = {"active": 0.010, "concentrated": 0.012, "balanced": 0.020, "moe": 0.024, "total": 0.030}


def lane_table(lanes: Mapping[str, float], cycles: int = 4, steps: int = 20) -> pd.DataFrame:
    """Every lane does every step in its own time, with one percent of noise that all lanes of a turn share."""
    noise = np.random.default_rng(0).lognormal(0, 0.01, (cycles, steps))
    rows = [
        {"cycle": c, "step": s, "lane": lane, "place": place, "phase": "decode", "prefill_tokens": 0,
         "decode_tokens": 4, "context_tokens": 100, "num_requests": 4, "wall_s": seconds * noise[c, s],
         "cpu_s": seconds * noise[c, s]}
        for c in range(cycles) for s in range(steps) for place, (lane, seconds) in enumerate(lanes.items())
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write_lanes(folder: Path, lanes: Sequence[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    write_json(folder / "pass.json", {"kind": folder.parts[-3], "lanes": list(lanes)})
    table = lane_table({lane["name"]: SECONDS[lane["name"]] for lane in lanes})
    table = table.reindex(columns=arrow_schema("lanes").names)
    pq.write_table(
        pa.Table.from_pandas(table, schema=arrow_schema("lanes"), preserve_index=False), folder / "lanes.parquet"
    )


def twins(folder: Path) -> Summary:
    """An MoE that costs 24 ms a step between twins of 10 ms and 30 ms."""

    def twin(width: int) -> ModelFacts:
        facts = TwinFacts(of="moe", match="x", width=width, active_width=2, total_width=4, target_params=1)
        return replace(make_facts(num_experts=0), twin=facts)

    models = {
        "moe": (make_facts(), [passes([0.024, 0.0241, 0.0239], moe=True)]),
        "active": (twin(2), [passes([0.01, 0.0101, 0.0099])]),
        "total": (twin(4), [passes([0.03, 0.0301, 0.0299])]),
    }
    return run_of(folder, models)


def test_the_realised_share_from_rounds_alone(tmp_path: Path) -> None:
    summary = twins(tmp_path)
    assert measured(summary, "sparsity_realised_ratio") == pytest.approx(0.3)
    assert measured(summary, "dispatch_share_ratio") == pytest.approx(0.7)
    said = judge(claim("sparsity_realised_ratio"), summary).sentence
    assert "share of the saving between the two dense twins that is realised, moe" in said
    assert "] (all steps, each model alone, all at once); the claim needs" in said


def test_lock_step_lanes_are_preferred_where_the_run_has_them(tmp_path: Path) -> None:
    summary = twins(tmp_path)
    lanes = [{"name": "moe", "model": "moe", "rung": "native"},
             {"name": "total", "model": "total", "rung": "dense", "twin_of": "moe", "match": "total"},
             {"name": "active", "model": "active", "rung": "dense", "twin_of": "moe", "match": "active"}]  # fmt: skip
    write_lanes(summary.record.path / "lockstep" / "launch-0" / "c4", lanes)
    speed = judge(claim("speed_ratio", of="moe", against="total"), summary)
    assert speed.measured.value == pytest.approx(1.25) and speed.measured.n == 80
    assert measured(summary, "sparsity_realised_ratio") == pytest.approx(0.3)
    assert "(all steps, stepped in turn, 4 in flight)" in judge(claim("sparsity_realised_ratio"), summary).sentence


def test_the_ladder_tells_what_dispatch_coverage_and_imbalance_take(tmp_path: Path) -> None:
    summary = twins(tmp_path)
    rungs = {
        "active": "dense",
        "concentrated": "concentrated",
        "balanced": "balanced",
        "moe": "recorded",
        "total": "dense",
    }
    lanes = [
        {"name": name, "model": "moe", "rung": rung, "match": name if rung == "dense" else None}
        for name, rung in rungs.items()
    ]
    write_lanes(summary.record.path / "ladder" / "launch-0" / "c4", lanes)
    found = judge(claim("dispatch_share_ratio", at_least=1.0), summary)
    assert found.measured.value == pytest.approx(0.7) and found.verdict == "disagrees"
    assert "(all steps, stepped in turn, 4 in flight)" in found.sentence


# -- workloads ---------------------------------------------------------------------------------------------------------


def test_a_measure_or_model_that_does_not_exist_is_refused_when_the_workload_is_read() -> None:
    with pytest.raises(WorkloadError, match="measure: found 'beauty'; allowed: speed_ratio, "):
        claim("beauty")
    workload = load_workload(CLAIMS / "memory-not-saved.cpu.yaml")
    with pytest.raises(WorkloadError, match=r"claim.of: found 'mo', no model of this workload; allowed: moe"):
        replace(workload, claim=claim("weights_bytes", of="mo"))


@pytest.mark.parametrize("file", sorted(CLAIMS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_claim_of_the_folder_loads_and_names_its_models(file: Path) -> None:
    workload = load_workload(file)
    assert workload.claim is not None and workload.name == file.name.split(".cpu")[0].split(".gpu")[0]
    assert workload.claim.of in [model.name for model in workload.models]
    assert workload.device == ("cuda" if ".gpu" in file.name else "auto")


def test_every_claim_stands_in_two_sizes_and_in_the_readme() -> None:
    names = sorted(file.name.removesuffix(".cpu.yaml") for file in CLAIMS.glob("*.cpu.yaml"))
    assert (
        names == sorted(file.name.removesuffix(".gpu.yaml") for file in CLAIMS.glob("*.gpu.yaml")) and len(names) >= 6
    )
    readme = (CLAIMS / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in names)


def test_the_claims_about_random_shapes_can_be_prepared_on_any_machine() -> None:
    from moeprof.capture.run.prepare import prepare

    prepared = prepare(cpu(load_workload(CLAIMS / "memory-not-saved.cpu.yaml")))
    assert set(prepared.schedules) == {"moe"}


def cpu(workload: Workload) -> Workload:
    return replace(workload, device="cpu")
