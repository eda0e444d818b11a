"""Baselines: what is kept of a run, files that survive a round trip, and what damage says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.compare.comparable import differences, facts_of
from moeprof.analysis.compare.runs import gate_keys
from moeprof.analysis.metrics.cost.pricing import repriced
from moeprof.analysis.metrics.lookup import by_key, by_launch, pick, pick_frozen
from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.regress.baseline import freeze
from moeprof.core.baseline import json_text
from moeprof.core.baseline.baseline import FORMAT_VERSION
from moeprof.core.baseline.file import compact_picks, load_baseline, pack, save_baseline
from moeprof.core.baseline.json_text import baseline_text
from moeprof.core.errors import InputError, RecordError
from moeprof.core.metric import MetricValue
from moeprof.core.record.layout import open_record
from tests.helpers.baselines import differing, make_baseline, make_model, make_picks
from tests.helpers.planted_runs import PRICING, launch, planted_run
from tests.helpers.records import make_facts, write_record
from tests.helpers.tiny_run import Ran


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# -- freezing ----------------------------------------------------------------------------------------------------------


def test_a_run_is_frozen_without_its_finest_cuts_and_each_launch_keeps_its_number(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", launches=3)
    model, frozen = summary.model("moe"), freeze(summary, "main").model("moe")
    assert frozen is not None
    assert not [value for value in frozen.metrics if {"layer", "experts"} & set(value.labels)]
    assert by_key(frozen.metrics) == by_key(model.metrics)
    assert by_launch(frozen.metrics) == by_launch(model.metrics)
    assert (frozen.top_k, frozen.num_experts) == ((2, 2), (4, 4))


def test_step_sums_are_of_each_launch_and_phase_over_its_rounds(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", launches=3)
    model, steps = summary.model("dense"), freeze(summary).models[1].steps
    assert steps is not None
    assert (steps.launches, steps.steps_LP.tolist()) == ((0, 1, 2), [[20, 100, 0]] * 3)
    decode = pick(model, "step_mean_s", phase="decode")
    assert decode is not None
    assert steps.seconds_LP[:, 1].sum() / steps.steps_LP[:, 1].sum() == pytest.approx(decode.value)


def test_a_launch_that_measured_nothing_has_no_step_sums_and_no_label(tmp_path: Path) -> None:
    launches = [launch(1), [], launch(2)]
    record = open_record(write_record(tmp_path / "run", {"dense": (make_facts(num_experts=0), launches)}))
    (model,) = freeze(summarise(record, PRICING)).models
    assert model.steps is not None and model.steps.launches == (0, 1)
    assert {number for values in by_launch(model.metrics).values() for number in values} == {0, 1}


def test_routing_is_that_of_one_launch_over_its_rounds(tmp_path: Path) -> None:
    """Two rounds of 60 steps give each expert one token a step, phase and layer; a dense model routes nothing."""
    baseline = freeze(planted_run(tmp_path / "run", launches=3))
    routing = baseline.models[0].routing
    assert routing is not None
    assert routing.counts == {"prefill": ((120,) * 4,) * 2, "decode": ((120,) * 4,) * 2}
    assert routing.tokens == {"prefill": 240, "decode": 240}
    assert baseline.models[1].routing is None and baseline.models[1].picks is None


def test_figures_are_found_in_a_baseline_as_in_its_run(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", launches=3)
    model, frozen = summary.model("moe"), freeze(summary).models[0]
    for name, labels in gate_keys(model):
        wanted = {key: label for key, label in labels if key not in ("traffic", "window")}
        value = pick_frozen(frozen, name, own_traffic=False, **wanted)
        assert value is not None and value == pick(model, name, own_traffic=False, **wanted)


def test_a_baseline_does_not_differ_from_its_own_record(tmp_path: Path) -> None:
    summary = planted_run(tmp_path / "run", launches=1)
    baseline = load_baseline(save_baseline(freeze(summary, "main"), tmp_path))
    assert differences(facts_of(baseline), facts_of(summary.record)) == ()


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_saved_baseline_reads_as_it_was(tmp_path: Path) -> None:
    baseline = make_baseline(
        models=(replace(make_model(), picks=compact_picks(make_picks())), make_model("b", picks=None))
    )
    assert differing(load_baseline(save_baseline(baseline, tmp_path)), baseline) == []


def test_a_dense_model_alone_that_measured_nothing_has_no_npz(tmp_path: Path) -> None:
    baseline = make_baseline(models=(make_model("dense", routing=None, steps=None, picks=None),), label="a note")
    assert differing(load_baseline(save_baseline(baseline, tmp_path)), baseline) == []
    assert [path.name for path in tmp_path.iterdir()] == ["main.json"]


NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)
LABELS = st.dictionaries(st.text(min_size=1).filter(lambda name: name != "launch"), st.text(), max_size=3)


@st.composite
def metrics(draw: st.DrawFn) -> tuple[MetricValue, ...]:
    """Values with different names, each with those of some launches."""
    found = []
    for name in draw(st.lists(st.text(min_size=1), unique=True, max_size=4)):
        labels = draw(LABELS)
        value = MetricValue(
            name=name,
            value=draw(NUMBERS),
            n=draw(st.none() | st.integers(0, 10**9)),
            ci_low=draw(NUMBERS),
            ci_high=draw(NUMBERS),
            exact=draw(st.booleans()),
            labels=labels,
            valid=draw(st.booleans()),
            reasons=tuple(draw(st.lists(st.text(), max_size=2))),
            null=draw(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), max_size=2)),
        )
        numbers = draw(st.dictionaries(st.integers(0, 12), st.floats(-1e9, 1e9), max_size=4))
        own = [MetricValue(name=name, value=v, labels={**labels, "launch": str(n)}) for n, v in sorted(numbers.items())]
        found += [value, *own]
    return tuple(found)


@given(metrics())
def test_every_value_survives_the_file(values: tuple[MetricValue, ...]) -> None:
    text = baseline_text(make_baseline(models=(make_model(metrics=values),)), None)
    read, _ = json_text.baseline_of(Path("main.json"), json.loads(text), FORMAT_VERSION)
    assert read.models[0].metrics == values
    assert [type(value.value) for value in read.models[0].metrics] == [type(value.value) for value in values]


def test_two_saves_of_one_run_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        summary = planted_run(tmp_path / folder / "run", launches=2)
        save_baseline(freeze(summary, "main"), tmp_path / folder)
    for name in ("main.json", "main.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_changed_value_changes_one_line() -> None:
    model = make_model()
    other = replace(model, metrics=(replace(model.metrics[0], value=1_080_001), *model.metrics[1:]))
    texts = [baseline_text(make_baseline(models=(one,)), None).splitlines() for one in (model, other)]
    assert [(a, b) for a, b in zip(*texts, strict=True) if a != b] == [
        ('    {"name": "total_params", "value": 1080000, "exact": true},',
         '    {"name": "total_params", "value": 1080001, "exact": true},'),
    ]  # fmt: skip


def test_the_values_of_launches_stand_on_the_line_of_their_metric() -> None:
    text = baseline_text(make_baseline(), None)
    (line,) = [line for line in text.splitlines() if "step_mean_s" in line]
    assert json.loads(line.rstrip(","))["launches"] == [0.010, 0.011, 0.012]
    assert text.endswith("}\n") and text.count('"layer": ') == 2


def test_picks_of_2048_tokens_of_a_small_moe_take_less_than_60_000_bytes() -> None:
    model = make_model(picks=make_picks(2048, layers=4, top_k=2, num_experts=16))
    assert 10_000 < len(pack([model]) or b"") < 60_000


def test_compact_picks_keep_every_pick_and_three_digits_of_margins() -> None:
    picks = make_picks(num_experts=300, top_k=3)
    small = compact_picks(picks)
    assert np.array_equal(small.picks_TLK, picks.picks_TLK) and small.picks_TLK.dtype == np.int16
    assert small.position_T.dtype == np.int8 and small.margin_TL.dtype == np.float16
    assert np.allclose(small.margin_TL, picks.margin_TL, rtol=1e-3, equal_nan=True)
    wide = compact_picks(replace(picks, margin_TL=picks.margin_TL * 1e6))
    assert wide.margin_TL.dtype == np.float32


def test_nothing_is_overwritten_unless_asked(tmp_path: Path) -> None:
    save_baseline(make_baseline(), tmp_path)
    with pytest.raises(InputError, match=r"main.json: is there already; nothing is overwritten without --replace"):
        save_baseline(make_baseline(label="other"), tmp_path)
    assert load_baseline(tmp_path / "main.json").label is None
    save_baseline(make_baseline(label="other", models=(make_model(steps=None, picks=None),)), tmp_path, replace=True)
    assert load_baseline(tmp_path / "main.json").label == "other"
    assert [path.name for path in tmp_path.iterdir()] == ["main.json"]  # the old npz went too


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 65, "-x"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="letters, digits"):
        save_baseline(make_baseline(name), tmp_path)


# -- versions and damage -----------------------------------------------------------------------------------------------


def test_a_newer_format_says_to_upgrade(tmp_path: Path) -> None:
    file = changed(save_baseline(make_baseline(), tmp_path), lambda v: v.update(format_version=FORMAT_VERSION + 1))
    with pytest.raises(RecordError, match="upgrade moeprof"):
        load_baseline(file)


def test_an_old_format_still_reads_through_its_upgrader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted format 0 said ``machine`` for what is ``device`` now."""

    def plant(value: dict[str, Any]) -> None:
        value.update(format_version=0, machine=value.pop("device"))

    file = changed(save_baseline(make_baseline(), tmp_path), plant)
    with pytest.raises(RecordError, match="format_version is 0; a whole number from 1"):
        load_baseline(file)
    upgrader = {0: lambda value: {**value, "device": value["machine"]}}
    monkeypatch.setattr(json_text, "UPGRADERS", upgrader)
    read = load_baseline(file)
    assert (read.device, read.format_version) == (make_baseline().device, 0)
    assert differing(load_baseline(save_baseline(read, tmp_path / "new")), replace(read, format_version=1)) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v.pop("device"), "without device; a text belongs there"),
        (lambda v: v.update(usd_per_second=None), "usd_per_second is None; a number belongs there"),
        (lambda v: v.update(facts=[]), "facts is a list; keys and values belongs there"),
        (lambda v: v.update(models=["moe"]), r"models\[0\] is 'moe'; keys and values belong there"),
        (lambda v: v.update(format_version="1"), "format_version is '1'"),
        (lambda v: v["models"][0]["metrics"][1].update(value="fast"),
         r"models\[0\].metrics\[1\].value is 'fast'; a number or null belongs there"),
        (lambda v: v["models"][0]["metrics"][1].pop("value"), r"without models\[0\].metrics\[1\].value"),
        (lambda v: v["models"][0]["metrics"][1].update(value=float("nan")), r"metrics\[1\].value is nan"),
        (lambda v: v["models"][0]["metrics"][1].update(ci=[1]), r"metrics\[1\].ci is a list; two numbers"),
        (lambda v: v["models"][0]["metrics"][1]["labels"].update(phase=3), r"metrics\[1\].labels.phase is 3; a text"),
        (lambda v: v["models"][0]["metrics"][1].update(launches=[True]), r"launches is a list; a list of numbers"),
        (lambda v: v["models"][0]["routing"]["layers"][1].pop("decode"),
         r"without models\[0\].routing.layers\[1\].decode; a list of whole numbers belongs there"),
        (lambda v: v["models"][0]["routing"]["tokens"].update(decode=1.5), r"routing.tokens.decode is 1.5; a whole"),
        (lambda v: v["models"][0].update(top_k=2), r"models\[0\].top_k is 2; a list of whole numbers"),
    ],
)  # fmt: skip
def test_damage_is_named_by_its_key_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    file = changed(save_baseline(make_baseline(), tmp_path), change)
    with pytest.raises(RecordError, match=said) as raised:
        load_baseline(file)
    assert str(raised.value).startswith(f"{file}: damaged") and "\n" not in str(raised.value)
    assert str(raised.value).endswith("; take it from version control again")


def test_a_truncated_file_is_damaged_and_a_missing_one_is_missing(tmp_path: Path) -> None:
    file = save_baseline(make_baseline(), tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(RecordError, match=r"main.json: damaged .*; take it from version control again$"):
        load_baseline(file)
    with pytest.raises(InputError, match="no such baseline file"):
        load_baseline(tmp_path / "other.json")


def test_a_file_with_marks_of_a_merge_conflict_says_so(tmp_path: Path) -> None:
    file = save_baseline(make_baseline(), tmp_path)
    first, rest = file.read_text().split("\n", 1)
    file.write_text(f"{first}\n<<<<<<< HEAD\n=======\n>>>>>>> main\n{rest}")
    with pytest.raises(RecordError, match=r"damaged .*merge conflict stand in it; take it from version control again$"):
        load_baseline(file)


def test_without_its_npz_a_baseline_has_no_picks_and_says_so(tmp_path: Path) -> None:
    file = save_baseline(make_baseline(), tmp_path)
    file.with_suffix(".npz").unlink()
    read = load_baseline(file)
    assert (read.models[0].picks, read.models[0].steps) == (None, None)
    assert read.models[0].metrics == make_model().metrics
    assert read.notes == (
        "main.npz is missing, so the baseline has no step sums and no picks: routing agreement is not measured",
    )


def test_the_npz_of_another_baseline_is_refused(tmp_path: Path) -> None:
    file = save_baseline(make_baseline(), tmp_path)
    other = save_baseline(make_baseline("other", models=(make_model(picks=make_picks(seed=1)),)), tmp_path)
    file.with_suffix(".npz").write_bytes(other.with_suffix(".npz").read_bytes())
    with pytest.raises(RecordError, match=r"is not the file that main.json was saved with"):
        load_baseline(file)


def test_a_real_run_is_saved_small_and_reads_as_it_was_judged(tiny_run: tuple[Path, Ran], tmp_path: Path) -> None:
    record = open_record(tiny_run[0])
    baseline = freeze(summarise(record, repriced(record, usd_per_device_hour=None)), "tiny")
    file = save_baseline(baseline, tmp_path)
    assert differing(load_baseline(file), baseline) == []
    assert str(tiny_run[0].parent) not in file.read_text(encoding="utf-8")
    assert file.stat().st_size < 400_000 and file.with_suffix(".npz").stat().st_size < 100_000
    moe, dense = baseline.models
    assert moe.routing is not None and sum(moe.routing.counts["decode"][0]) == 2 * moe.routing.tokens["decode"]
    assert (moe.own_traffic, moe.priced_traffic, dense.num_experts) == ("open", "offline", ())
    assert moe.picks is not None and moe.picks.picks_TLK.dtype == np.int8 and dense.picks is None
