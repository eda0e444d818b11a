"""Changed checkpoints of the demo mixture, through the capture that runs use: collapse is told from noise."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moeprof.analysis.regress.routing.change import RoutingChange, gate_figure
from moeprof.analysis.regress.routing.health import routing_change
from moeprof.capture.models.moe_layers import find_moe_layers
from moeprof.capture.routing.teacher_forced import record_forced_picks
from moeprof.core.baseline.baseline import BaselineModel
from moeprof.core.record.picks import ForcedPicks
from moeprof.core.trace import Schedule
from tests.helpers.planted_picks import with_picks

MODELS = Path(__file__).resolve().parents[3] / "workloads" / "models"
REQUESTS, PROMPT = 20, 80


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """The script as a module; it finds its neighbours as it does when it is run."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(MODELS))
    threads = torch.get_num_threads()
    yield importlib.import_module("perturb_demo")
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="module")
def sample(script: ModuleType) -> Any:
    """Windows of text, shape [windows, tokens]; the first 32 are not used to change a checkpoint."""
    return script.read_sample(script.DEMO, seed=0)


@pytest.fixture(scope="module")
def demo(script: ModuleType) -> Any:
    return load(script.DEMO)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()


def recorded(model: Any, sample: Any) -> BaselineModel:
    """What a run records of the model: picks of 20 requests."""
    ids = tuple(window[:PROMPT].numpy().astype(np.int32) for window in sample[:REQUESTS])
    requests = Schedule(
        pattern="offline", concurrency=None, request_id=tuple(f"r{i}" for i in range(REQUESTS)),
        arrival_s=np.zeros(REQUESTS), input_ids=ids, output_tokens=np.ones(REQUESTS, dtype=np.int64), output_ids=None,
        request_class=("all",) * REQUESTS, session=("",) * REQUESTS, prefix_blocks=((),) * REQUESTS,
        outputs="free", num_characters=np.full(REQUESTS, -1),
    )  # fmt: skip
    layers = find_moe_layers(model)
    picks = record_forced_picks(model, layers, requests, ("all",))
    assert isinstance(picks, ForcedPicks), picks
    return with_picks(picks, [layer.num_experts for layer in layers], [layer.top_k for layer in layers])


@pytest.fixture(scope="module")
def reference(demo: Any, sample: Any) -> BaselineModel:
    return recorded(demo, sample)


def changed(reference: BaselineModel, other: BaselineModel) -> RoutingChange:
    found = routing_change(reference, other, exact=False)
    assert found is not None
    return found


def gained(change: RoutingChange) -> float:
    figure = gate_figure(change, "dead_experts")
    assert figure is not None
    return figure.worse_by


def test_the_same_checkpoint_is_unchanged(reference: BaselineModel, demo: Any, sample: Any) -> None:
    found = changed(reference, recorded(demo, sample))
    assert (found.verdict, found.tokens) == ("unchanged", REQUESTS * PROMPT)


def test_one_rounding_of_the_weights_is_noise(
    script: ModuleType, reference: BaselineModel, demo: Any, sample: Any
) -> None:
    model = copy.deepcopy(demo)
    script.add_noise(model, seed=0)
    found = changed(reference, recorded(model, sample))
    assert found.verdict == "noise", found.sentences
    assert gained(found) == 0
    agreement = gate_figure(found, "routing_agreement_ratio")
    assert agreement is not None and 0 < agreement.worse_by < 0.01


def test_an_expert_that_the_script_killed_is_named(
    script: ModuleType, reference: BaselineModel, sample: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "dead"
    choices = ("--kind", "dead", "--layer", "2", "--expert", "5", "--threads", "1")
    monkeypatch.setattr(sys, "argv", ["perturb_demo.py", str(out), *choices])
    assert script.main() == 0
    assert "dead [5]" in capsys.readouterr().out.splitlines()[2]
    assert sorted(path.name for path in out.iterdir()) == sorted([*script.COPIED, "model.safetensors"])
    found = changed(reference, recorded(load(out), sample))
    assert found.verdict == "collapsed"
    assert [layer.newly_dead for layer in found.layers] == [(), (), (5,), ()]
    assert found.sentences[0].startswith("Layer 2: expert 5 got ")
    assert gained(found) == 1
    # Layers before it see the same tokens.
    assert [layer.agreement_ratio for layer in found.layers[:2]] == [1, 1]


def test_a_router_that_sends_everything_to_few_experts_has_collapsed(
    script: ModuleType, reference: BaselineModel, demo: Any, sample: Any
) -> None:
    model = copy.deepcopy(demo)
    script.collapse(model, sample[32:40], seed=0)
    found = changed(reference, recorded(model, sample))
    assert found.verdict == "collapsed"
    assert all({"entropy", "busiest"} <= set(layer.collapse) for layer in found.layers), found.sentences
    assert gained(found) > 10


def test_the_script_refuses_what_is_not_there(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["perturb_demo.py", "nowhere", "--kind", "dead", "--expert", "16"])
    with pytest.raises(SystemExit, match="layers 0 to 3 and experts 0 to 15"):
        script.main()
    monkeypatch.setattr(sys, "argv", ["perturb_demo.py", str(script.DEMO), "--kind", "noise"])
    with pytest.raises(SystemExit, match="holds a checkpoint already"):
        script.main()
