"""A sweep as it is measured: which requests each point sends, in which order, when it stops, what the record says."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moeprof.capture.protocol import Order
from moeprof.capture.run.schedules import PointSchedule, point_schedules
from moeprof.capture.run.sweep import SweepRun
from moeprof.cli.run import launch_lines
from moeprof.core.record.headers import to_json
from moeprof.core.record.layout import LaunchRecord, open_record
from moeprof.core.trace import Schedule
from moeprof.core.workload.studies import Sweep, SweepPoint
from moeprof.core.workload.traffic import Arrivals, LengthPair, Lengths, Prompts, Traffic
from moeprof.sources.schedule import BuiltSchedule, build_schedule
from moeprof.sources.tokenizer import TextTokenizer, load_tokenizer
from tests.helpers.tiny_run import SHORT, Ran, run_main

POISSON = Arrivals(pattern="poisson", rate=4)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> TextTokenizer:
    return load_tokenizer(tiny / "moe")


def builder(tokenizer: TextTokenizer, arrivals: Arrivals, number: int = 40) -> Callable[[int | None], BuiltSchedule]:
    lengths = LengthPair(
        input=Lengths(distribution="uniform", low=6, high=30), output=Lengths(distribution="uniform", low=3, high=9)
    )
    traffic = Traffic(arrivals=arrivals, lengths=lengths, prompts=Prompts(source="packaged"), num_requests=number)
    return lambda tokens: build_schedule(traffic, tokenizer=tokenizer, seed=5, input_tokens=tokens)


def points(tokenizer: TextTokenizer, sweep: Sweep, arrivals: Arrivals = POISSON) -> tuple[PointSchedule, ...]:
    return point_schedules(sweep, builder(tokenizer, arrivals), seed=5)


def codes(schedule: Schedule) -> set[str]:
    return {note.code for note in schedule.notes}


# -- the requests of a point -------------------------------------------------------------------------------------------


def test_a_closed_loop_sends_four_requests_a_place_at_least_16_and_never_more_than_there_are(
    tokenizer: TextTokenizer,
) -> None:
    found = points(tokenizer, Sweep(concurrency=(1, 8, 16, 30)))
    assert [len(p.measured) for p in found] == [16, 32, 40, 40]
    assert [p.measured.concurrency for p in found] == [1, 8, 16, 30]
    assert {p.measured.pattern for p in found} == {"closed"}
    assert ["few_requests" in codes(p.measured) for p in found] == [False, False, False, True]  # 40 < 2 * 30
    assert [p.file_name for p in found] == [f"sweep-{i}.parquet" for i in range(4)]
    whole = builder(tokenizer, POISSON)(None).measured
    assert all((a == b).all() for a, b in zip(found[0].measured.input_ids, whole.input_ids, strict=False))


def test_num_requests_is_taken_as_it_stands(tokenizer: TextTokenizer) -> None:
    assert [len(p.measured) for p in points(tokenizer, Sweep(concurrency=(1, 4), num_requests=5))] == [5, 5]


def test_a_rate_keeps_the_traffics_own_bursts_and_only_scales_them(tokenizer: TextTokenizer) -> None:
    bursty = Arrivals(pattern="gamma", rate=4, burstiness=0.3)
    slow, fast = (p.measured for p in points(tokenizer, Sweep(request_rate=(2, 10), num_requests=40), bursty))
    assert slow.pattern == fast.pattern == "open"
    assert slow.arrival_s[-1] == pytest.approx(39 / 2)  # 39 gaps of half a second on average
    np.testing.assert_allclose(slow.arrival_s, 5 * fast.arrival_s)
    own = builder(tokenizer, bursty)(None).measured.arrival_s
    np.testing.assert_allclose(np.diff(slow.arrival_s) / np.diff(own), 39 / 2 / own[-1])


def test_a_rate_for_traffic_without_times_is_poisson_of_the_workloads_seed(tokenizer: TextTokenizer) -> None:
    closed = Arrivals(pattern="concurrency", concurrency=2)
    (one,) = points(tokenizer, Sweep(request_rate=(8,), num_requests=40), closed)
    assert "poisson_arrivals" in codes(one.measured)
    assert one.measured.arrival_s[0] == 0
    assert 4 < one.measured.arrival_s[-1] < 5  # N requests span N / rate = 5 s, the last gap included
    again = points(tokenizer, Sweep(request_rate=(8,), num_requests=40), closed)[0]
    assert again.measured.sha256() == one.measured.sha256()


def test_an_open_loop_sends_what_arrives_in_half_of_its_time_at_least_16(tokenizer: TextTokenizer) -> None:
    found = points(tokenizer, Sweep(request_rate=(0.1, 4, 100), max_seconds=15))
    assert [len(p.measured) for p in found] == [16, 30, 40]


@pytest.mark.parametrize("length", [4, 20, 100])
def test_prompts_of_another_length_are_real_text_with_its_true_continuation(
    tokenizer: TextTokenizer, length: int
) -> None:
    (one,) = points(tokenizer, Sweep(input_tokens=(length,), num_requests=20))
    own = builder(tokenizer, POISSON)(None).measured
    assert set(one.measured.input_tokens.tolist()) == {length}
    assert one.measured.output_tokens.tolist() == own.output_tokens.tolist()[:20]
    assert one.measured.arrival_s.tolist() == own.arrival_s.tolist()[:20]
    assert one.measured.outputs == "forced"
    assert one.measured.output_ids is not None
    folder = resources.files("moeprof") / "data" / "text"
    corpus = "".join((folder / f"{name}.txt").read_text(encoding="utf-8") for name in ("prose", "code"))
    pairs = zip(one.measured.input_ids, one.measured.output_ids, strict=True)
    texts = tokenizer.decode([np.concatenate(pair) for pair in pairs])
    assert sum(text in corpus for text in texts) >= 14  # the others reach into the next passage


def test_the_text_of_a_text_trace_gives_way_to_windows_of_the_asked_length(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    from moeprof.core.workload.traffic import TraceSource

    rows = [{"prompt": "short", "output": "words that follow", "arrival_s": float(i)} for i in range(20)]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    traffic = Traffic(trace=TraceSource(path=str(tmp_path / "chat.jsonl")), prompts=Prompts(source="packaged"))
    own = build_schedule(traffic, tokenizer=tokenizer, seed=0).measured
    longer = build_schedule(traffic, tokenizer=tokenizer, seed=0, input_tokens=50).measured
    assert set(longer.input_tokens.tolist()) == {50}
    assert longer.output_tokens.tolist() == own.output_tokens.tolist()
    assert longer.classes == own.classes
    said = next(note.text for note in longer.notes if note.code == "input_tokens_swept")
    assert said == "every prompt has 50 tokens: windows of other text, not the trace's own"


# -- order and saturation ----------------------------------------------------------------------------------------------


class Machine:
    """Serves up to a rate; remembers what it was asked."""

    def __init__(self, tokenizer: TextTokenizer, sweep: Sweep, limits: dict[str, float]) -> None:
        self.limits, self.asked, self.notes = limits, [], {}  # type: ignore[var-annotated]
        found = points(tokenizer, sweep)
        SweepRun(
            sweep=sweep,
            points=dict.fromkeys(limits, found),
            private=Path("private"),
            run_pass=self.run_pass,
            note=lambda name, extra: self.notes.update({name: extra}),
        ).run(list(limits))

    def run_pass(self, name: str, order: Order) -> dict[str, Any] | None:
        self.asked.append(f"{name} {order.name}")
        rate = order.extra["sweep"]["request_rate"] or 0
        return {"saturation": {"saturated": rate > self.limits[name], "reason": f"{rate:g} is too much"}}


def test_models_take_turns_and_the_turn_goes_around(tokenizer: TextTokenizer) -> None:
    machine = Machine(tokenizer, Sweep(rounds=2, concurrency=(1, 2)), {"a": 9, "b": 9})
    assert machine.asked == [
        "a sweep-0-0", "b sweep-0-0", "b sweep-0-1", "a sweep-0-1",
        "a sweep-1-0", "b sweep-1-0", "b sweep-1-1", "a sweep-1-1",
    ]  # fmt: skip
    assert machine.notes == {}


def test_a_model_stops_at_its_own_first_saturated_rate_and_the_other_goes_on(tokenizer: TextTokenizer) -> None:
    machine = Machine(tokenizer, Sweep(request_rate=(1, 2, 4, 8), rounds=1), {"a": 3, "b": 99})
    assert [asked for asked in machine.asked if asked.startswith("a")] == [f"a sweep-{i}-0" for i in range(3)]
    assert [asked for asked in machine.asked if asked.startswith("b")] == [f"b sweep-{i}-0" for i in range(4)]
    told = machine.notes["a"]["sweep_stopped"]
    assert told["reason"] == "4 requests/s is saturated, 1 higher rate left out: 4 is too much"
    assert told["rows"] == [{"point": 2, "request_rate": 4, "skipped": [3], "reason": "4 is too much"}]


def test_a_saturated_rate_ends_its_own_row_only(tokenizer: TextTokenizer) -> None:
    machine = Machine(tokenizer, Sweep(request_rate=(1, 4), input_tokens=(8, 16), rounds=1), {"a": 0.5})
    assert machine.asked == ["a sweep-0-0", "a sweep-2-0"]
    assert [row["skipped"] for row in machine.notes["a"]["sweep_stopped"]["rows"]] == [[1], [3]]


def said_of(folder: Path, verdicts: dict[float, bool | None], stopped: str | None = None) -> list[str]:
    launch = folder / "launch-0"
    for index, (rate, saturated) in enumerate(verdicts.items()):
        (launch / f"sweep-{index}-0").mkdir(parents=True)
        info = {"status": "done", "sweep": to_json(SweepPoint(request_rate=rate)),
                "saturation": {"saturated": saturated, "reason": "so"}}  # fmt: skip
        (launch / f"sweep-{index}-0" / "pass.json").write_text(json.dumps(info))
    if stopped:
        (launch / "launch.json").write_text(json.dumps({"sweep_stopped": {"reason": stopped, "rows": []}}))
    return list(launch_lines(LaunchRecord(launch)))


def test_a_sweep_without_a_stable_point_says_so(tmp_path: Path) -> None:
    said = said_of(tmp_path, {8.0: True}, stopped="8 requests/s is saturated, 2 higher rates left out: so")
    assert said == ["no stable point: even 8 requests/s is saturated; give lower rates"]


def test_a_sweep_that_cannot_tell_says_so(tmp_path: Path) -> None:
    said = said_of(tmp_path, {8.0: None, 9.0: None})
    assert said == ["no stable point is known: the passes are too short to tell from 8 requests/s on"]


def test_a_sweep_that_met_its_limit_says_where(tmp_path: Path) -> None:
    said = said_of(tmp_path, {8.0: False, 9.0: True}, stopped="9 requests/s is saturated, it is the highest: so")
    assert said == ["9 requests/s is saturated, it is the highest: so"]
    assert said_of(tmp_path / "other", {8.0: False}) == []


# -- for real ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """Two models under a sweep over concurrency and step size; token ids stay out of the record."""
    folder = tmp_path_factory.mktemp("swept")
    models = ", ".join(f"{{name: {name}, path: {tiny / name}}}" for name in ("moe", "dense"))
    sweep = "sweep: {concurrency: [1, 4], max_batch_tokens: [16, 64], num_requests: 10, rounds: 2}\n"
    (folder / "w.yaml").write_text(SHORT.format(rate=50, num_requests=10, models=models) + sweep)
    options = ["--max-concurrency", 2, "--no-content", "--quiet"]
    return folder / "run", run_main(["run", folder / "w.yaml", "--output-dir", folder / "run", *options])


def read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def test_every_point_has_its_passes_and_says_what_it_was(swept: tuple[Path, Ran]) -> None:
    folder, ran = swept
    assert ran.code == 0, ran.stderr
    for model in open_record(folder).models:
        (launch,) = model.launches
        assert [p.name for p in launch.sweep] == [f"sweep-{i}-{n}" for i in range(4) for n in range(2)]
        assert [p.name for p in launch.passes] == ["round-0"]  # the sweep is in no other figure
        for one in launch.sweep:
            assert one.info.sweep is not None
            assert one.info.status == "done"
            assert one.info.saturation.saturated is False
            assert all(check.passed for check in one.info.invariants.values())
            assert one.steps["num_requests"].max() == one.info.sweep.concurrency
            tokens = one.steps["prefill_tokens"] + one.steps["decode_tokens"]
            assert tokens.max() <= one.info.sweep.max_batch_tokens
        wide = max(p.steps["prefill_tokens"].max() for p in launch.sweep[4:])  # max_batch_tokens 64
        assert wide == 32  # four prompts of 8 tokens: the engine really was built anew


def test_both_models_get_the_same_requests_in_turn(swept: tuple[Path, Ran]) -> None:
    moe, dense = (model.launches[0].sweep for model in open_record(swept[0]).models)
    assert [p.info.schedule_sha256 for p in moe] == [p.info.schedule_sha256 for p in dense]
    begun = {f"{model} {p.name}": p.info.started_unix_s for model, passes in (("moe", moe), ("dense", dense))
             for p in passes}  # fmt: skip
    assert sorted(begun, key=lambda name: begun[name])[:5] == [
        "moe sweep-0-0", "dense sweep-0-0", "dense sweep-0-1", "moe sweep-0-1", "moe sweep-1-0",
    ]  # fmt: skip


def test_each_points_schedule_is_in_the_record_without_its_text(swept: tuple[Path, Ran]) -> None:
    folder, _ = swept
    told = read(folder / "experiment.json")["schedules"]["moe"]["sweep"]
    assert [point["num_requests"] for point in told] == [10] * 4
    for index, point in enumerate(told):
        table = pq.read_table(folder / point["file"])
        assert table.schema.metadata[b"sha256"].decode() == point["sha256"]
        assert all(len(ids) == 0 for ids in table.to_pydict()["input_ids"])
        assert (
            read(folder / "moe" / "launch-0" / f"sweep-{index}-0" / "pass.json")["schedule_sha256"] == point["sha256"]
        )


def test_the_dry_run_counts_points_and_passes(tiny: Path, tmp_path: Path) -> None:
    models = f"{{name: moe, path: {tiny / 'moe'}}}"
    sweep = "sweep: {concurrency: [1, 8], max_seconds: 5, rounds: 2}\n"
    (tmp_path / "w.yaml").write_text(SHORT.format(rate=50, num_requests=20, models=models) + sweep)
    ran = run_main(["run", tmp_path / "w.yaml", "--dry-run", "--format", "json"])
    assert ran.code == 0, ran.stderr
    plan = {row["what"]: row["plan"] for row in json.loads(ran.stdout)}
    assert plan["sweep"] == "2 points of 16 to 20 requests, 4 passes of 1 models, 20 s or less"


def test_the_cache_holds_the_largest_point(tiny: Path, tmp_path: Path) -> None:
    """30 requests of 14 tokens are 2 pages each; with 8 spare pages and a fifth on top: 68 * 16 * 1.2."""
    models = f"{{name: moe, path: {tiny / 'moe'}}}"
    text = SHORT.format(rate=50, num_requests=30, models=models)
    (tmp_path / "w.yaml").write_text(text + "sweep: {concurrency: [1, 30], num_requests: 30}\n")
    ran = run_main(["run", tmp_path / "w.yaml", "--dry-run", "--format", "json", "--max-concurrency", 1])
    plan = {row["what"]: row["plan"] for row in json.loads(ran.stdout)}
    assert plan["KV cache"].startswith("1,305 tokens")


def test_prompts_that_no_model_can_hold_are_a_mistake_in_the_workload(tiny: Path, tmp_path: Path) -> None:
    text = SHORT.format(rate=50, num_requests=5, models=f"{{name: moe, path: {tiny / 'moe'}}}")
    (tmp_path / "w.yaml").write_text(text + "sweep: {input_tokens: [16, 251]}\n")  # 251 + 6 is over 256
    ran = run_main(["run", tmp_path / "w.yaml", "--output-dir", tmp_path / "run"])
    assert ran.code == 2
    assert (
        "sweep.input_tokens: found 251; with its output every request is over the 256 tokens of model moe" in ran.stderr
    )
    assert not (tmp_path / "run").exists()
