"""Launch pairs in two processes: equal batches, the files of one process, and nothing left behind when a side fails."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from moeprof.analysis.compare.lanes import lane_times
from moeprof.capture.lockstep.protocol import PROTOCOL, decode, encode, plan_from_json, plan_to_json
from moeprof.capture.protocol import LanePlan, LockstepPart, Report, Slowdown, WorkerPlan
from moeprof.capture.run.remote_lane import RemoteLane, check_python, child_environment
from moeprof.capture.run.two_processes import run_process_pair
from moeprof.capture.worker.process import WorkerFailedError
from moeprof.capture.worker.server import serve
from moeprof.core.errors import EngineError, InputError, WorkloadError
from moeprof.core.record.lanes import LanePass, lane_passes
from moeprof.core.workload.engine import TransformersSettings
from moeprof.core.workload.models import ModelSpec
from tests.helpers.lane_models import moe_model, schedule


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny MoE and two schedules."""
    folder = tmp_path_factory.mktemp("two")
    moe_model().save_pretrained(folder / "moe")
    schedule(8).save(folder / "schedule.parquet")
    schedule(2).save(folder / "warmup.parquet")
    return folder


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    """Whatever a test did, the processes that it started are gone."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = set(psutil.Process().children(recursive=True)) - before
    assert [child.cmdline() for child in left] == []


def plan_of(models: Path, folder: Path, **changes: Any) -> WorkerPlan:
    spec = ModelSpec(name="base", path=str(models / "moe"))
    lanes = tuple(LanePlan(name=name, model=replace(spec, name=name)) for name in ("base", "new"))
    plan = WorkerPlan(
        kind="pairs", lanes=lanes, engine=TransformersSettings(max_batch_tokens=64), device="cpu", threads=1,
        folder=folder / "launch-1", schedule_file=models / "schedule.parquet", warmup_file=models / "warmup.parquet",
        tokenizer_hash=None, lockstep=LockstepPart(concurrency=(2,), num_requests=6, max_seconds=0.2),
    )  # fmt: skip
    return replace(plan, lockstep=replace(plan.in_turn, **changes))


def never() -> bool:
    return False


def ignore(report: Report) -> None:
    pass


def script(path: Path, text: str) -> Path:
    """A file that can be started in place of a Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# -- a whole pair ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A launch pair whose new side is made to take twice the time, in turns of 4 steps."""
    folder, said = tmp_path_factory.mktemp("pair"), list[str]()
    plan = plan_of(models, folder, num_requests=3, max_seconds=2.0)  # a cycle of 17 steps: enough for a busy machine
    plan = replace(plan, lanes=(plan.lanes[0], replace(plan.lanes[1], slowdown=Slowdown(ratio=1.0))))
    answer = run_process_pair(plan, {}, lambda report: said.append(report.data["doing"]), never, None, turn_steps=4)
    return folder, answer, said


def test_a_pair_in_two_processes_leaves_the_files_of_one_process(
    measured: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, answer, _ = measured
    assert answer == {"measured": {"c2": "done"}}
    (closed,) = lane_passes(folder)
    assert (closed.concurrency, closed.launch) == (2, 1)
    info = closed.info
    assert (info.kind, info.pattern, info.num_requests, info.status) == ("pairs", "closed", 3, "done")
    assert [lane.name for lane in info.lanes] == ["base", "new"]
    assert [lane.rung for lane in info.lanes] == ["native", "native"]
    assert info.turn_steps == 4
    assert info.cycles is not None and info.cycles >= 1
    assert {name: len(both) for name, both in (info.reference_kernel_s or {}).items()} == {"base": 2, "new": 2}
    assert all(seconds for both in (info.reference_kernel_s or {}).values() for seconds in both)
    launch = json.loads((folder / "launch-1" / "launch.json").read_text())
    assert set(launch["lanes"]) == set(launch["models"]) == set(launch["environments"]) == {"base", "new"}
    assert launch["threads"] == 1
    assert launch["environments"]["base"]["protocol"] == PROTOCOL


def test_both_sides_did_the_same_steps_and_the_slower_one_reads_as_slower(
    measured: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, _, _ = measured
    closed = lane_passes(folder)[0]
    table = closed.table
    batch = ["cycle", "step", "phase", "prefill_tokens", "decode_tokens", "context_tokens", "num_requests"]
    sides = [table.loc[table["lane"] == name, batch] for name in ("base", "new")]
    assert sides[0].reset_index(drop=True).equals(sides[1].reset_index(drop=True))
    # Requests of 5, 6 and 7 tokens: the first comes with the prompt, so 4 + 5 + 6 are left.
    whole = table[(table["cycle"] == 0) & (table["lane"] == "new")]
    assert whole["decode_tokens"].sum() == 15
    assert whole["prefill_tokens"].sum() == 4 + 5 + 6
    times = lane_times(closed)
    assert times.lanes == ("base", "new")
    # Twice, in processor time: on a busy machine a longer turn also loses the processor more often.
    assert 1.4 < np.median(times.cpu_SL[:, 1] / times.cpu_SL[:, 0]) < 2.8


def test_sides_step_strictly_in_turn_and_who_begins_changes_with_the_cycle(
    measured: tuple[Path, dict[str, Any], list[str]],
) -> None:
    table = lane_passes(measured[0])[0].table
    turns = table[table["lane"] == "base"].groupby("cycle")["place"].unique().map(list).tolist()
    assert turns[:2] == [[1], [0]][: len(turns)]  # launch 1: new begins; each always follows the other
    assert (table.groupby(["cycle", "step"])["place"].sum() == 1).all()


def test_the_side_that_loads_first_alternates_with_the_launch(measured: tuple[Path, dict[str, Any], list[str]]) -> None:
    assert [doing for doing in measured[2] if doing.startswith("loading")] == ["loading new", "loading base"]


# -- a server, in this process -----------------------------------------------------------------------------------------


def served(plan: WorkerPlan, *orders: dict[str, Any]) -> list[dict[str, Any]]:
    """What a server says to a plan and orders, progress left out."""
    said = list[dict[str, Any]]()
    plan = replace(plan, lanes=plan.lanes[:1])
    serve([encode(order) for order in ({"do": "prepare", "plan": plan_to_json(plan)}, *orders)], said.append)
    return [message for message in said if message["event"] != "progress"]


def begin(**changes: Any) -> dict[str, Any]:
    return {"do": "begin", "concurrency": 0, "static": False, "positions": None} | changes


def test_a_server_steps_through_the_schedule_and_begins_anew(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, tmp_path, num_requests=2)
    # Offline: prompts of 4 and 5 tokens in one step, then 4 and 5 more tokens: 1 + 5 steps.
    step = {"do": "steps", "number": 4}
    loaded, begun, first, rest, again, _, once_more, _ = served(
        plan, begin(), step, step, step, {"do": "restart"}, step, {"do": "end"}
    )
    assert set(loaded["data"]["launch"]["models"]) == {"base"}
    assert (loaded["data"]["static"], loaded["data"]["positions"]) == (False, 256)
    assert (begun["data"]["info"]["num_requests"], begun["data"]["facts"]["max_batch_tokens"]) == (2, 64)
    assert [row["phase"] for row in first["data"]["rows"]] == ["prefill", "decode", "decode", "decode"]
    assert first["data"]["batches"][:2] == [
        ([[0, 4, 0, True, False], [1, 5, 0, True, False]], []),
        ([[0, 1, 4, False, False], [1, 1, 5, False, False]], []),
    ]
    assert [found["data"]["is_last"] for found in (first, rest, again, once_more)] == [False, True, False, False]
    assert len(rest["data"]["rows"]) == 2
    assert first["data"]["batches"] == again["data"]["batches"] == once_more["data"]["batches"]


def test_what_the_other_side_needs_holds_for_this_one_too(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, tmp_path, num_requests=8)
    # Requests of 4 + 5, 5 + 6, 6 + 7, 7 + 5, 8 + 6... tokens: three of them have 12 or fewer.
    _, begun, _ = served(plan, begin(static=True, positions=12), {"do": "end"})
    assert begun["data"]["info"]["batching"] == "static"
    assert begun["data"]["info"]["num_requests"] == 3


def test_a_model_that_fails_to_load_is_told_with_its_message(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, tmp_path)
    lane = replace(plan.lanes[0], model=ModelSpec(name="new", path=str(models / "none")))
    (failed,) = served(replace(plan, lanes=(lane,)))
    assert failed["event"] == "failed"
    assert (failed["data"]["exit_code"], "none" in failed["data"]["error"]) == (2, True)


def test_a_server_is_told_what_it_may_be_told(models: Path, tmp_path: Path) -> None:
    plan = plan_of(models, tmp_path)
    assert "no measurement has begun" in served(plan, {"do": "steps", "number": 1})[-1]["data"]["error"]
    assert "unknown order 'dance'; known: begin" in served(plan, {"do": "dance"})[-1]["data"]["error"]
    failed = served(plan, {"do": "steps"})[-1]["data"]
    assert "missing 1 required keyword-only argument: 'number'" in failed["error"]
    assert failed["traceback"].startswith("Traceback")


# -- sides that differ -------------------------------------------------------------------------------------------------


# A server without torch, so that tests of the parent are fast. Each step of a side holds {tokens} tokens of request 0;
# after {steps} steps the schedule ends.
FAKE = """
import json, os, sys

def write(message):
    print(json.dumps(message), flush=True)

def say(data):
    write({"event": "done", "data": data})

tokens, steps, at = TOKENS, STEPS, 0
print("a start-up file prints this")
write({"protocol": PROTOCOL, "moeprof": "9.9", "python": "3", "torch": "1", "transformers": "1"})
for line in sys.stdin:
    order = json.loads(line)
    do = order["do"]
    if do == "prepare":
        lane = order["plan"]["lanes"][0]["name"]
        say({"launch": {"models": {}, "notes": [], "threads": 1}, "static": False, "positions": None})
    elif do == "begin":
        info = dict.fromkeys(("pattern", "outputs", "schedule_sha256", "batching"), "equal") | {
            "num_requests": 1, "kv_tokens": 1, "max_batch_tokens": MAX_BATCH, "lanes": [{"name": lane}]}
        say({"info": info, "facts": {}, "notes": []})
    elif do == "steps":
        WHEN_TOLD
        number = min(order["number"], steps - at)
        at += number
        row = {"phase": "decode", "prefill_tokens": 0, "decode_tokens": tokens, "context_tokens": 1,
               "num_requests": 1, "wall_s": 1.0, "cpu_s": 1.0, "device_s": None}
        batch = [[[0, tokens, 0, False, False]], []]
        say({"rows": [row] * number, "batches": [batch] * number, "is_last": at == steps})
        at %= steps
    elif do == "reference":
        say({"seconds": 0.5})
    elif do == "close":
        break
    else:
        say({})
"""


def fake(path: Path, **changes: object) -> Path:
    """A "Python" that plays a step server; ``WHEN_TOLD`` is what it does when told to step."""
    values = {"TOKENS": 1, "STEPS": 5, "PROTOCOL": PROTOCOL, "MAX_BATCH": 64, "WHEN_TOLD": "pass"} | changes
    server, text = path.with_suffix(".py"), FAKE
    for name, value in values.items():
        text = text.replace(name, str(value))
    server.write_text(text)
    return script(path, f'exec "{sys.executable}" "{server}"')


def run_fakes(models: Path, folder: Path, base: Path, new: Path, stop: Callable[[], bool] = never) -> dict[str, Any]:
    return run_process_pair(plan_of(models, folder), {"base": base, "new": new}, ignore, stop, None, turn_steps=2)


def test_a_side_that_diverges_is_an_error_and_never_a_number(models: Path, tmp_path: Path) -> None:
    base, new = fake(tmp_path / "base"), fake(tmp_path / "new", TOKENS=2)
    wrong = "lane new: step 0 is decode of 1 requests and 2 tokens, in lane base decode of 1 requests and 1 tokens"
    with pytest.raises(EngineError, match=wrong):
        run_fakes(models, tmp_path, base, new)


def test_a_side_whose_engine_differs_is_an_error(models: Path, tmp_path: Path) -> None:
    base, new = fake(tmp_path / "base"), fake(tmp_path / "new", MAX_BATCH=32)
    with pytest.raises(EngineError, match=r"lane new: max_batch_tokens is 32, 64 in lane base; .*equal engines"):
        run_fakes(models, tmp_path, base, new)


def test_a_side_whose_schedule_ends_early_is_an_error(models: Path, tmp_path: Path) -> None:
    base, new = fake(tmp_path / "base"), fake(tmp_path / "new", STEPS=3)
    with pytest.raises(EngineError, match="the schedule ends after 1 of 2 steps from step 2 on, in lane base a"):
        run_fakes(models, tmp_path, base, new)


def test_an_odd_number_of_steps_ends_a_turn_early(models: Path, tmp_path: Path) -> None:
    assert run_fakes(models, tmp_path, fake(tmp_path / "base"), fake(tmp_path / "new")) == {"measured": {"c2": "done"}}
    found = LanePass(tmp_path / "launch-1" / "c2")
    assert found.info.reference_kernel_s == {"base": (0.5, 0.5), "new": (0.5, 0.5)}
    first = found.table[(found.table["cycle"] == 0) & (found.table["lane"] == "base")]
    assert first["step"].tolist() == [0, 1, 2, 3, 4]
    assert first["place"].tolist() == [1, 1, 1, 1, 1]


def test_who_begins_changes_with_the_launch_though_the_plan_turns_its_lanes_round_too(
    models: Path, tmp_path: Path
) -> None:
    pythons, first = {"base": fake(tmp_path / "base"), "new": fake(tmp_path / "new")}, []
    for number in (0, 1):
        plan = replace(plan_of(models, tmp_path), folder=tmp_path / f"launch-{number}")
        plan = replace(plan, lanes=plan.lanes if number % 2 == 0 else plan.lanes[::-1])  # as regress --ab does
        run_process_pair(plan, pythons, ignore, never, None, turn_steps=2)
        table = LanePass(plan.folder / "c2").table
        first += table[(table["cycle"] == 0) & (table["place"] == 0)]["lane"].unique().tolist()
    assert first == ["base", "new"]


def test_a_killed_side_is_an_error_that_says_so(models: Path, tmp_path: Path) -> None:
    new = fake(tmp_path / "new", WHEN_TOLD="os.kill(os.getpid(), 9)")
    with pytest.raises(WorkerFailedError, match=r"new: its process died \(exit code -9\); the system may have killed"):
        run_fakes(models, tmp_path, fake(tmp_path / "base"), new)


def test_what_a_dying_side_wrote_is_kept_for_the_record(models: Path, tmp_path: Path) -> None:
    new = fake(tmp_path / "new", WHEN_TOLD='raise RuntimeError("out of luck")')
    with pytest.raises(WorkerFailedError, match=r"new: its process died \(exit code 1\)") as caught:
        run_fakes(models, tmp_path, fake(tmp_path / "base"), new)
    assert caught.value.details is not None
    assert "out of luck" in caught.value.details


def test_a_side_that_writes_no_message_is_an_error(models: Path, tmp_path: Path) -> None:
    new = fake(tmp_path / "new", WHEN_TOLD='print("hello", flush=True)')
    with pytest.raises(WorkerFailedError, match="new: two processes: no message but b'hello'"):
        run_fakes(models, tmp_path, fake(tmp_path / "base"), new)


def test_a_pair_that_is_stopped_keeps_what_it_has(models: Path, tmp_path: Path) -> None:
    asked = iter([False] * 30)
    answer = run_fakes(models, tmp_path, fake(tmp_path / "base"), fake(tmp_path / "new"), lambda: next(asked, True))
    assert answer == {"measured": {"c2": "stopped"}}
    found = LanePass(tmp_path / "launch-1" / "c2")
    assert found.info.status == "stopped"
    assert len(found.table) > 0


def test_a_deadline_that_is_over_measures_nothing(models: Path, tmp_path: Path) -> None:
    fakes = {"base": fake(tmp_path / "base"), "new": fake(tmp_path / "new")}
    answer = run_process_pair(plan_of(models, tmp_path), fakes, ignore, never, 0.0)
    assert answer == {"measured": {}}


# -- Pythons that do not serve -----------------------------------------------------------------------------------------


def test_a_python_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--base-python: .*/nowhere: no such Python; give the path of an interpreter"):
        check_python(tmp_path / "nowhere")


def test_a_folder_of_an_environment_is_no_python_and_the_message_names_the_one_inside(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "python", "")
    with pytest.raises(InputError, match=r"is a folder; give .*/bin/python"):
        check_python(tmp_path)


def test_a_python_without_moeprof_is_told_how_to_get_it(tmp_path: Path) -> None:
    bare = script(tmp_path / "bare", f'exec "{sys.executable}" -I -S "$@"')
    with pytest.raises(InputError, match=r"--base-python: .*/bare has no moeprof; install moeprof .* into that env"):
        check_python(bare)


def test_a_python_whose_moeprof_has_no_step_server_is_told_to_upgrade(tmp_path: Path) -> None:
    (tmp_path / "moeprof" / "capture").mkdir(parents=True)
    for folder in (tmp_path / "moeprof", tmp_path / "moeprof" / "capture"):
        (folder / "__init__.py").write_text("")
    old = script(tmp_path / "old", f'PYTHONPATH="{tmp_path}" exec "{sys.executable}" -S "$@"')
    with pytest.raises(InputError, match="has a moeprof that cannot be stepped from outside; install moeprof"):
        check_python(old)


def test_a_python_whose_moeprof_lacks_a_library_names_it(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[3]
    poor = script(tmp_path / "poor", f'PYTHONPATH="{root}" exec "{sys.executable}" -S "$@"')
    with pytest.raises(InputError, match="has a moeprof whose library yaml is missing"):
        check_python(poor)


def test_another_protocol_is_refused_before_anything_is_measured(models: Path, tmp_path: Path) -> None:
    new = fake(tmp_path / "new", PROTOCOL=PROTOCOL + 1)
    with pytest.raises(InputError, match=f"--new-python: moeprof 9.9 of .* speaks protocol {PROTOCOL + 1} of two"):
        run_fakes(models, tmp_path, fake(tmp_path / "base"), new)


def test_a_python_that_ends_at_once_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ended with code 3: not today"):
        check_python(script(tmp_path / "python", "echo not today >&2; exit 3"))


def test_this_python_greets_with_its_versions() -> None:
    said = check_python(Path(sys.executable))
    assert said["protocol"] == PROTOCOL
    assert said["torch"] is not None


def test_another_python_does_not_find_this_moeprof_by_accident(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[3])
    ours = {"PYTHONPATH": os.pathsep.join([root, "/elsewhere"]), "PYTHONHOME": "/home", "PATH": "/bin"}
    other = child_environment(ours, tmp_path / "python", 2)
    assert (other["PYTHONPATH"], "PYTHONHOME" in other, other["PYTHONSAFEPATH"]) == ("/elsewhere", False, "1")
    assert (other["OMP_NUM_THREADS"], other["OMP_WAIT_POLICY"], other["KMP_BLOCKTIME"]) == ("2", "passive", "0")
    own = child_environment({}, Path(sys.executable), None)
    assert own["PYTHONPATH"] == root
    assert "OMP_NUM_THREADS" not in own


def test_a_child_is_gone_after_close(tmp_path: Path) -> None:
    child = RemoteLane("base", fake(tmp_path / "base"))
    child.greet()
    child.close()
    assert not psutil.pid_exists(child.pid)


# -- messages ----------------------------------------------------------------------------------------------------------


def test_a_plan_survives_the_way_as_json(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, tmp_path / "größe 3: 'x' \U0001f980")
    lane = replace(plan.lanes[0], engine=TransformersSettings(kv_tokens=64), slowdown=Slowdown(ratio=0.03, every=20))
    plan = replace(
        plan, lanes=(lane,), tokenizer_hash="1234", threads=None, lockstep=replace(plan.in_turn, max_seconds=1e-05)
    )
    line = encode(plan_to_json(plan))
    assert line.count(b"\n") == 1
    assert plan_from_json(decode(line)) == plan


def test_defaults_are_left_out_of_a_plan_so_that_an_older_revision_can_read_it(tmp_path: Path) -> None:
    lane = plan_to_json(plan_of(tmp_path, tmp_path))["lanes"][0]
    assert set(lane) == {"name", "model"}
    assert set(lane["model"]) == {"name", "path"}


def test_a_plan_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    value = plan_to_json(plan_of(tmp_path, tmp_path)) | {"thread": 1}
    with pytest.raises(WorkloadError, match=r"thread: unknown key; .*did you mean 'threads'"):
        plan_from_json(value)


def test_a_line_that_is_no_object_is_no_message() -> None:
    for line in (b"hello\n", b"[1]\n", b"\xff\n"):
        with pytest.raises(EngineError, match="two processes: no message but"):
            decode(line)


def test_a_server_refuses_to_begin_without_a_plan() -> None:
    said = list[dict[str, Any]]()
    assert serve([encode({"do": "steps", "number": 1})], said.append) == 1
    assert said[0]["data"]["error"] == ("two processes: the first order is 'steps'; prepare with a plan comes first")
    assert serve([], said.append) == 0
    assert serve([encode({"do": "close"})], said.append) == 0
    assert serve([encode({"do": "prepare", "plan": {"kind": "pairs"}})], said.append) == 2
    assert len(said) == 2
