"""Conversations for real: two tiny models, three turns each, in both kinds of batches; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moeprof.analysis.metrics.cards import all_cards, card_for
from tests.helpers.tiny_run import Ran, run_main, write_models

ROWS = [
    {"session_id": "a", "timestamp": 0, "input_length": 40, "output_length": 8},
    {"session_id": "a", "delay": 60, "input_length": 6, "output_length": 8},
    {"session_id": "a", "delay": 30, "input_length": 4, "output_length": 4},
    {"session_id": "b", "timestamp": 20, "input_length": 33, "output_length": 5},
]
TEXT = """\
name: talk
traffic:
  trace: {{path: talk.jsonl{trace}}}
  prompts: {{source: packaged}}
{more}
models:
  - {{name: moe, path: ./moe}}
  - {{name: dense, path: ./dense}}
outputs: {outputs}
engine: {{batching: {batching}, prefix_cache: {cache}}}
rounds: 1
threads: 1
device: cpu
warmup: {{num_requests: 1, max_seconds: 0.2}}
instruments: {{overhead: false, peaks: false, gap: false, forced_picks: false, quality: false, capacity: {capacity}}}
prices: {{usd_per_device_hour: 1}}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    write_models(folder)
    (folder / "talk.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return folder


def ran(place: Path, name: str, *options: str, **settings: Any) -> tuple[Path, Ran]:
    values = {"trace": "", "more": "", "outputs": "forced", "batching": "auto", "cache": "false", "capacity": "false"}
    text = TEXT.format(**values | settings)
    (place / f"{name}.yaml").write_text(text, encoding="utf-8")
    return place / name, run_main(["run", place / f"{name}.yaml", "--output-dir", place / name, "--quiet", *options])


def requests(folder: Path, model: str, which: str = "round-0") -> pd.DataFrame:
    table = pd.read_parquet(folder / model / "launch-0" / which / "requests.parquet")
    return table.sort_values("request").set_index("request")


def check_order(table: pd.DataFrame, pauses_s: tuple[float, float]) -> None:
    """Turn 2 and 3 of conversation a come after the answer before, by its pause; all end well."""
    assert table["status"].tolist() == ["done"] * 4
    talk = table[table["session"] == "a"].sort_values("turn")
    assert talk["turn"].tolist() == [1, 2, 3]
    ends, arrivals = talk["last_token_s"].tolist(), talk["arrival_s"].tolist()
    assert [after - end for after, end in zip(arrivals[1:], ends, strict=False)] == pytest.approx(list(pauses_s))
    assert (talk["sent_s"] >= talk["arrival_s"] - 1e-6).all()
    assert talk["delay_s"].tolist()[1:] == pytest.approx(list(pauses_s))
    assert (talk["first_token_s"] > talk["arrival_s"]).all()


def test_three_turns_of_two_models_that_share_their_prefixes(place: Path) -> None:
    folder, done = ran(place, "shared", cache="true", capacity="true")
    assert done.code == 0, done.stderr
    for model in ("moe", "dense"):
        table = requests(folder, model)
        check_order(table, (0.06, 0.03))
        # 40 tokens; 40 + 8 + 6; 54 + 8 + 4. Whole blocks of 16 of the 47 and 61 that were computed before: 32 and 48.
        talk = table[table["session"] == "a"].sort_values("turn")
        assert talk["input_tokens"].tolist() == [40, 54, 66]
        assert talk["reusable_tokens"].tolist() == talk["cached_tokens"].tolist() == [0, 32, 48]
        check_order(requests(folder, model, "capacity-0"), (0.0, 0.0))
    header = json.loads((folder / "experiment.json").read_text())["schedules"]["moe"]["sessions"]
    assert header == {
        "sessions": "closed", "num_conversations": 1, "num_later_turns": 2, "prompts": "added", "own_answers": False,
    }  # fmt: skip
    summary = json.loads((folder / "summary.json").read_text())["models"]["moe"]["metrics"]
    values = {one["name"]: one["value"] for one in summary if one["labels"] == {"traffic": "open"}}
    assert values["num_conversations_done"] == 2
    assert values["prefix_reuse_had_ratio"] == 1
    assert values["reused_prompt_tokens"] == 80
    emitted = {card_for(one["name"]).name for one in summary}
    assert {card.name for card in all_cards() if card.section == "conversations"} <= emitted
    page = (folder / "report.md").read_text(encoding="utf-8")
    assert "closed: turns waited for answers; 1 conversations, 2 later turns" in page
    assert "Time to first token by turn, mean (turn 3+)" in page


def test_free_outputs_in_static_batches_go_on_from_what_the_model_said(place: Path) -> None:
    folder, done = ran(place, "free", outputs="free", batching="static")
    assert done.code == 0, done.stderr
    check_order(requests(folder, "moe"), (0.06, 0.03))
    header = json.loads((folder / "experiment.json").read_text())["schedules"]["moe"]["sessions"]
    assert header["own_answers"]
    assert "later turns hold what the model itself answered" in (folder / "report.md").read_text(encoding="utf-8")


def test_open_sessions_are_sent_at_their_own_time_and_the_choice_is_told(place: Path) -> None:
    folder, done = ran(place, "open", "--sessions", "open")
    assert done.code == 0, done.stderr
    talk = requests(folder, "moe")
    assert talk[talk["session"] == "a"].sort_values("turn")["arrival_s"].tolist() == pytest.approx([0, 0.06, 0.09])
    assert "open: turns did not wait for answers" in (folder / "report.md").read_text(encoding="utf-8")


def test_a_dry_run_tells_the_choice_and_that_answers_take_time(place: Path) -> None:
    said = " ".join(ran(place, "dry", "--dry-run")[1].stdout.split())
    assert "closed: turns wait for answers; 2 first turns, 2 later ones, 3 deep at most" in said
    assert "and the time that answers take for which turns wait" in said


@pytest.mark.parametrize("key", ["lockstep: {max_seconds: 1}", "ladder: {max_seconds: 1, concurrency: [2]}"])
def test_lock_step_refuses_closed_sessions_under_open_arrivals(place: Path, key: str) -> None:
    name = key.partition(":")[0]
    folder, done = ran(place, f"refused-{name}", outputs="forced_length\n" + key)
    assert done.code == 2
    assert done.stderr.count("\n") == 1
    assert f"{name}: sessions are closed in an open arrival process" in done.stderr
    assert not folder.exists()
    more = "  arrivals: {pattern: concurrency, concurrency: 1}"
    allowed = ran(place, f"allowed-{name}", "--dry-run", outputs="forced_length\n" + key, more=more)[1]
    assert allowed.code == 0, allowed.stderr
