"""moeprof audit: a question a line, prices that rise as the device idles, and the files that it writes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from moeprof.analysis.metrics.lookup import number
from moeprof.analysis.report.audit import audit_document
from moeprof.analysis.report.data import as_json, as_rows
from moeprof.analysis.report.result import Audit
from moeprof.cli.main import main
from moeprof.core.errors import InputError
from moeprof.render.picture import find_browser
from tests.helpers.planted_runs import planted_run
from tests.helpers.sweep_records import at, sweep_summary

RENT = ("--usd-per-device-hour", "3.6")


def test_every_question_has_an_outcome_and_a_line(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5)
    document = audit_document(summary)
    assert document.answer is not None
    outcomes = {found.question: found.outcome for found in document.answer.findings}
    assert list(outcomes) == [
        "cheaper?", "faster?", "fits?", "better text?", "from which load on?",
        "price at other loads?", "reads its active parameters only?",
        "meets its objectives?", "router healthy?", "sure enough to decide?",
    ]  # fmt: skip
    assert outcomes["router healthy?"] == "yes"  # every expert had the same tokens
    assert outcomes["meets its objectives?"] == "cannot tell"  # no slo
    assert all(found.text for found in document.answer.findings)


def test_a_device_that_is_in_use_a_tenth_of_the_time_makes_tokens_ten_times_as_dear(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5)
    busy = number(summary.models[0], "usd_per_1m_total_tokens", own_traffic=False)
    assert busy is not None
    answer = audit_document(summary).answer
    assert answer is not None
    text = next(found.text for found in answer.findings if found.question == "price at other loads?")
    told = [float(part.split(" at ")[0]) for part in text.split("; ")[0].replace(",", "").split("$")[1:]]
    assert told == pytest.approx([busy * 10, busy / 0.3, busy / 0.6, busy], rel=0.01)


def test_the_data_hold_what_the_page_says(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", slow=0.5)
    result = Audit(summary=summary, document=audit_document(summary))
    data, rows = as_json(result), as_rows(result)
    assert [found["question"] for found in data["answer"]["findings"]] == [row[0] for row in rows[1:]]
    assert set(data["facts"]) == {"serving"}


def test_a_run_without_a_price_has_nothing_to_audit(tmp_path: Path) -> None:
    summary = sweep_summary(tmp_path, {"moe": [at(1, 1.0)], "dense": [at(1, 1.0)]})
    with pytest.raises(InputError, match="nothing to audit: There is no price to speak of"):
        audit_document(summary)


def test_files_of_several_runs_stand_in_folders_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_run(tmp_path / "a", slow=0.5)
    planted_run(tmp_path / "b", slow=2.0)
    out = tmp_path / "out"
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert main(["audit", *runs, *RENT, "--write", "md,json", "--output-dir", str(out)]) == 0
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.json")) == [
        "a-audit/audit.json", "b-audit/audit.json"
    ]  # fmt: skip
    advice = [json.loads((out / f"{n}-audit" / "audit.json").read_text())["answer"]["advice"] for n in "ab"]
    assert advice == ["By cost and speed alone, serve the dense one.", "By cost and speed alone, serve the MoE."]
    capsys.readouterr()


def test_without_a_browser_a_picture_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted_run(tmp_path / "a", slow=0.5)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert main(["audit", str(tmp_path / "a"), *RENT, "--picture", "--output-dir", str(tmp_path / "out")]) == 2
    assert "a picture needs a browser" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.browser
def test_a_picture_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_browser()
    except InputError as error:
        pytest.skip(str(error))
    planted_run(tmp_path / "a", slow=0.5)
    assert main(["audit", str(tmp_path / "a"), *RENT, "--picture", "--output-dir", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "audit.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    capsys.readouterr()
