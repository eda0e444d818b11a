"""docs/recipes/measurement.md: its code, through a whole run of the tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moeprof.capture import measure
from moeprof.capture.engines.deployment import NEEDS
from moeprof.capture.measure import MEASUREMENTS, Measurement
from moeprof.capture.protocol import Order, Report, WorkerPlan
from moeprof.capture.run import experiment
from moeprof.capture.worker import solo
from moeprof.capture.worker.session import Session
from moeprof.capture.worker.solo import SoloModel
from moeprof.core.files import read_json
from moeprof.core.record.layout import open_record
from tests.helpers.recipes import blocks, recipe_module
from tests.helpers.tiny_run import SHORT, run_main


class WorkerHere:
    """A worker of this process: the throw-away row is in its table alone."""

    pid = 0

    def __init__(self, plan: WorkerPlan, watchdog_s: float) -> None:
        self.plan = plan
        self._session = Session(plan, lambda: False, lambda report: None)
        self._session.__enter__()
        self._solo = SoloModel(self._session)

    def do(self, order: Order, hear: Callable[[Report], None], stop_requested: Callable[[], bool]) -> dict[str, Any]:
        return self._solo.orders[order.command](order)

    def close(self, hear: Callable[[Report], None]) -> None:
        self._solo.finish()
        self._session.__exit__(None, None, None)

    def kill(self) -> bool:
        return True


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's row, and one that needs what no engine here offers."""
    module = recipe_module("measurement", tmp_path, monkeypatch)
    (row,) = [code for language, file, code in blocks("measurement") if language == "python" and not file]
    row = row.replace("moeprof.capture.measure.zero_weights", module.__name__)
    own: Measurement = eval(row, {"Measurement": Measurement})
    other = Measurement(name="other", key="other", title="t", needs=frozenset({"video"}), run="nowhere:measure")
    monkeypatch.setitem(NEEDS, "video", "this engine offers no video")
    monkeypatch.setattr(measure, "MEASUREMENTS", (*MEASUREMENTS, own, other))
    monkeypatch.setattr(experiment, "start_worker", WorkerHere)
    monkeypatch.setattr(solo, "CALIBRATION_S", 0.1)


def run(tiny: Path, folder: Path, skip: str = "") -> dict[str, Any]:
    """launch.json of a run."""
    text = SHORT.format(rate=100, num_requests=4, models="{name: moe, path: " + str(tiny / "moe") + "}")
    text = text.replace("gap: false", f"gap: false, quality: false, forced_picks: false, skip: [{skip}]")
    (folder / "w.yaml").write_text(text, encoding="utf-8")
    ran = run_main(["run", folder / "w.yaml", "--output-dir", folder / "run", "--write", "json", "--quiet"])
    assert ran.code == 0, ran.stderr
    (model,) = open_record(folder / "run").models
    info: dict[str, Any] = read_json(model.launches[0].path / "launch.json")
    return info


@pytest.mark.usefixtures("rows")
def test_one_file_and_one_row_are_measured_and_their_result_stands_in_the_record(tiny: Path, tmp_path: Path) -> None:
    info = run(tiny, tmp_path)
    assert info["zero_weights"]["zeros"] == 0 and info["zero_weights"]["weights"] > 10_000
    assert info["other"] == {"reason": "this engine offers no video"}


@pytest.mark.usefixtures("rows")
def test_a_workload_leaves_it_out_by_its_name(tiny: Path, tmp_path: Path) -> None:
    assert "zero_weights" not in run(tiny, tmp_path, skip="zero_weights")


def test_a_name_that_is_no_measurement_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"instruments.skip: 'qualty' is no measurement; there are gap, quality"):
        run(tiny, tmp_path, skip="qualty")
