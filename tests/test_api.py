"""moeprof as a library: what the examples in docs/python.md promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import moeprof
from moeprof.core.errors import InputError, RecordError
from tests.helpers.planted_runs import planted_run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path: Path) -> moeprof.Run:
    planted_run(tmp_path / "run", slow=0.5)
    return moeprof.load(tmp_path / "run", usd_per_device_hour=3.6)


def test_a_run_has_its_models_figures_and_answer(run: moeprof.Run) -> None:
    assert (run.name, run.status, run.models) == ("run", "done", ("moe", "dense"))
    assert run.answer is not None and run.answer.advice == "By cost and speed alone, serve the dense one."
    weights = run.metrics.query("name == 'weights_bytes' and labels == ''").set_index("model")["value"]
    assert weights["moe"] > weights["dense"] > 0


def test_tables_name_their_pass(run: moeprof.Run) -> None:
    steps = run.steps("moe")
    assert list(steps["pass"].unique()) == [f"launch-{n}/round-{k}" for n in range(6) for k in range(2)]
    assert len(steps) == 6 * 2 * 60
    assert len(run.requests("dense")) == 6 * 2 * 12


def test_routing_is_there_for_the_moe_alone(run: moeprof.Run) -> None:
    counts = run.routing("moe")["launch-0/round-0"]
    assert counts is not None
    assert set(run.routing("dense").values()) == {None}


def test_prices_are_given_anew(tmp_path: Path) -> None:
    planted_run(tmp_path / "run", launches=2)
    once, twice = (moeprof.load(tmp_path / "run", usd_per_device_hour=usd) for usd in (1.0, 2.0))
    prices = [r.metrics.query("name == 'usd_per_1m_total_tokens'")["value"].iloc[0] for r in (once, twice)]
    assert prices[1] == pytest.approx(2 * prices[0])


def test_mistakes_are_the_errors_of_the_command_line(run: moeprof.Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model is called 'moo' in this run; it has: moe, dense"):
        run.steps("moo")
    with pytest.raises(RecordError):
        moeprof.load(tmp_path / "nothing")


def test_importing_it_costs_nothing() -> None:
    code = "import moeprof, sys; print([m for m in ('torch', 'pandas', 'numpy', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_examples_of_the_page_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = [block.partition("\n") for block in text.split("```")[1::2]]
    names: dict[str, object] = {}
    for kind, _, code in blocks:
        if kind == "python":
            exec(compile(code, "docs/python.md", "exec"), names)
    said = capsys.readouterr().out
    assert said.startswith("('moe', 'dense')\nServe the dense one.\ncheaper? no ")
    assert len(blocks) == 5 and [kind for kind, _, _ in blocks].count("python") == 4
