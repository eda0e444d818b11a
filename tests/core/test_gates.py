"""Gates: what can be written, what a bad one is told, and which value each one means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.compare.comparable import classes_of
from moeprof.analysis.metrics.cards import card_for
from moeprof.analysis.regress.gates import check_gates, default_gates, model_pairs, resolve
from moeprof.analysis.regress.result import ChosenGate
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue
from moeprof.core.workload.gates import Gate, GateSettings, load_gate_settings, parse_gate, parse_gates
from moeprof.core.workload.workload import load_workload
from tests.helpers.planted_sides import DECODE, exact, model, side, value

WORKLOAD = """
name: w
traffic: {trace: {path: t.jsonl}}
models: [{name: moe, path: some/model}]
"""


def gate(text: str) -> Gate:
    parsed = parse_gate(text, "--fail-on")
    assert isinstance(parsed, Gate)
    return parsed


def chosen(text: str, *values: MetricValue) -> ChosenGate:
    both = side(model(*values)), side(model(*values))
    (found,) = resolve([parse_gate(text, "--fail-on")], model_pairs(*both), floor_ratio=0.1)
    return found


def refused(text: str, *values: MetricValue) -> str:
    with pytest.raises(InputError) as error:
        chosen(text, *values)
    return str(error.value)


def test_the_gates_of_the_manual_mean_what_it_says() -> None:
    by_percent = gate("usd_per_1m_output_tokens:3%")
    assert (by_percent.kind, by_percent.amount, by_percent.sign) == ("ratio", 0.03, None)
    absolute = gate("router_load_max_over_mean{phase=decode}:+0.2")
    assert (absolute.kind, absolute.amount, absolute.sign) == ("absolute", 0.2, "+")
    assert absolute.labels == (("phase", "decode"),)
    assert (gate("dead_experts:0").kind, gate("dead_experts:0").amount) == ("absolute", 0.0)
    assert (gate("routing_agreement_ratio:-1%").sign, gate("params:+-2%").sign) == ("-", "+-")
    bound = gate("itl_p99_s<=0.05")
    assert (bound.kind, bound.amount) == ("at_most", 0.05)
    assert gate("goodput_ratio >= 0.9").kind == "at_least"
    assert [parse_gate(word) for word in ("default", "exact", "timed")] == ["default", "exact", "timed"]


@given(
    metric=st.from_regex(r"[a-z][a-z0-9_]{0,30}", fullmatch=True),
    labels=st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,9}", fullmatch=True),
        st.from_regex(r"[A-Za-z0-9._-][A-Za-z0-9 ._/-]{0,9}[A-Za-z0-9._-]", fullmatch=True),
        max_size=3,
    ),
    sign=st.sampled_from(["", "+", "-", "+-"]),
    amount=st.floats(0, 1e6, allow_nan=False).map(lambda number: float(f"{number:.6g}")),
    percent=st.booleans(),
)
def test_what_is_written_is_what_is_read(
    metric: str, labels: dict[str, str], sign: str, amount: float, percent: bool
) -> None:
    inside = ", ".join(f"{name}={label}" for name, label in labels.items())
    text = f"{metric}{{{inside}}}" if labels else metric
    found = gate(f" {text}: {sign}{amount!r}{'%' if percent else ''} ")
    assert (found.metric, dict(found.labels), found.sign) == (metric, labels, sign or None)
    assert found.kind == ("ratio" if percent else "absolute")
    assert found.amount == (amount / 100 if percent else amount)
    bound = gate(f"{text}>={amount!r}")
    assert (bound.metric, dict(bound.labels), bound.kind, bound.amount) == (metric, labels, "at_least", amount)


@given(st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_say_what_is_wrong(text: str) -> None:
    try:
        parse_gate(text, "--fail-on")
    except InputError as error:
        assert str(error).startswith("--fail-on: gate ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty; allowed: METRIC:THRESHOLD"),
        ("exat", "did you mean 'exact'?"),
        ("itl_p99_s", "a metric needs one: itl_p99_s:3%"),
        ("itl_p99_s=3", "thresholds are written with ':'"),
        ("itl_p99_s<3", "bounds with '<=' or '>='"),
        ("itl_p99_s:10ms", "no units are written: give a number in the metric's own unit"),
        ("itl_p99_s:--1", "a number with or without a sign and % is allowed"),
        ("itl_p99_s:nan", "found 'nan' as threshold"),
        ("itl_p99_s:1e999", "a finite number is allowed"),
        ("itl_p99_s<=5%", "a bound is a number in the metric's own unit, without %"),
        ("itl_p99_s{phase}:3", "found 'phase' between braces; label=value is allowed"),
        ("itl_p99_s{}:3", "found '' between braces"),
        ("itl_p99_s{a=b:3", "a brace is open"),
        ("itl_p99_s{a=1,a=2}:3", "the label 'a' stands there twice"),
        ("ITL:3%", "'ITL' is no metric name; `moeprof explain` lists them"),
    ],
)
def test_a_bad_gate_is_told_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(InputError, match=f"^--fail-on: gate {re.escape(repr(text))}: .*{re.escape(said)}"):
        parse_gate(text, "--fail-on")


def test_a_file_of_gates_is_read_with_the_line_of_each_complaint(tmp_path: Path) -> None:
    file = tmp_path / "regress.yaml"
    file.write_text("fail_on:\n  - exact\n  - step_mean_s{phase=decode}:3%\nallow: [device]\nallow_undecided: true\n")
    settings = load_gate_settings(file)
    assert settings == GateSettings(
        fail_on=("exact", "step_mean_s{phase=decode}:3%"), allow=("device",), allow_undecided=True
    )
    first, second = parse_gates(settings, "regress.yaml")
    assert first == "exact" and isinstance(second, Gate) and second.source == "regress.yaml"
    file.write_text("fail_on:\n  - exact\n  - step_mean_s:3 percent\n")
    with pytest.raises(InputError, match=r"regress\.yaml:3: fail_on\[1\]: gate 'step_mean_s:3 percent'"):
        load_gate_settings(file)
    file.write_text("fail_onn: []\n")
    with pytest.raises(InputError, match=r"regress\.yaml:1: fail_onn: unknown key.*did you mean 'fail_on'"):
        load_gate_settings(file)


def test_a_workload_may_hold_gates_and_a_bad_one_is_an_error_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(WORKLOAD + "gates:\n  fail_on: [exact, 'dead_experts:0']\n")
    assert load_workload(file).gates == GateSettings(fail_on=("exact", "dead_experts:0"))
    file.write_text(WORKLOAD)
    assert load_workload(file).gates is None
    file.write_text(WORKLOAD + "gates:\n  fail_on:\n    - dead_experts\n")
    with pytest.raises(InputError, match=r"w\.yaml:7: gates\.fail_on\[0\]: gate 'dead_experts': no threshold"):
        load_workload(file)


def test_default_gates_have_cards_and_belong_to_their_group() -> None:
    groups = ("exact", "routing", "quality", "timed")
    for group in groups:
        gates = default_gates(group, floor_ratio=0.015)
        check_gates(gates)
        assert gates and all(group in classes_of(one.metric) for one in gates)
    texts = [one.text for one in default_gates(floor_ratio=0.1)]
    assert texts == [one.text for group in groups for one in default_gates(group, floor_ratio=0.1)]
    assert (texts[0], texts[-1]) == ("total_params:+0%", "energy_j_per_output_token:10%")
    assert {one.amount for one in default_gates("timed", floor_ratio=0.015)} == {0.015}


def test_a_metric_that_is_none_is_answered_with_those_of_like_name() -> None:
    said = refused("itl_p99:3%", value("itl_p99_s", 0.1))
    assert "there is no metric 'itl_p99'; did you mean itl_p99_s" in said
    with pytest.raises(InputError, match="there is no metric 'total_parms'; did you mean total_params"):
        check_gates([gate("total_parms:+1%")])
    with pytest.raises(InputError, match="there is no metric 'itl_p99'; did you mean itl_p99_s"):
        check_gates([gate("itl_p99:3%")])  # before anything is measured


def test_a_direction_comes_from_the_card_and_a_sign_may_not_contradict_it() -> None:
    speed = value("output_tokens_per_s", 10.0, traffic="offline", window="total")
    assert chosen("output_tokens_per_s:5%", speed).better == "higher"
    assert chosen("output_tokens_per_s:-5%", speed).better == "higher"
    assert chosen("output_tokens_per_s:+-5%", speed).better == "neither"
    assert "a rise is better here (higher is better); leave the sign out, or write -" in refused(
        "output_tokens_per_s:+5%", speed
    )
    assert "nothing falls by 100%" in refused("output_tokens_per_s:100%", speed)
    assert card_for("total_params").better == "neither"
    assert "write a sign: + (a rise is worse)" in refused("total_params:1%", exact("total_params", 5))
    assert chosen("total_params:+1%", exact("total_params", 5)).better == "lower"
    assert "a share of it says nothing" in refused("router_drift_js:+3%", value("router_drift_js", 0.1))


def test_a_gate_without_labels_means_the_whole_window_and_all_phases() -> None:
    values = [
        value("step_mean_s", 1.0, phase="decode", traffic="open", window="total"),
        value("step_mean_s", 2.0, phase="all", traffic="open", window="total"),
        value("step_mean_s", 3.0, phase="all", traffic="open", window="steady"),
    ]
    found = chosen("step_mean_s:3%", *values).reference
    assert found is not None and found.value == 2.0
    steady = chosen("step_mean_s{window=steady}:3%", *values).reference
    assert steady is not None and steady.value == 3.0


def test_prices_and_steps_mean_the_priced_passes_and_latencies_the_workloads_own_traffic() -> None:
    def both(name: str, **labels: str) -> list[MetricValue]:
        return [value(name, 1.0, traffic="open", **labels), value(name, 2.0, traffic="offline", **labels)]

    def meant(text: str, values: list[MetricValue]) -> float | int | None:
        found = chosen(text, *values).reference
        return None if found is None else found.value

    assert meant("usd_per_1m_output_tokens:3%", both("usd_per_1m_output_tokens")) == 2.0
    assert meant("step_mean_s{phase=decode}:3%", both("step_mean_s", phase="decode", window="total")) == 2.0
    assert meant("itl_p99_s:3%", both("itl_p99_s", window="total")) == 1.0
    assert meant("itl_p99_s{traffic=offline}:3%", both("itl_p99_s", window="total")) == 2.0


def test_a_label_that_no_value_has_is_answered_with_those_there_are() -> None:
    decode = value("step_mean_s", 1.0, **DECODE)
    said = refused("step_mean_s{phase=foo}:3%", decode)
    assert "no value with phase=foo; there is phase: decode; traffic: offline; window: total" in said
    assert "several values; there is phase: decode" in refused("step_mean_s:3%", decode)
    assert "no model 'x' on both sides; there is moe" in refused("step_mean_s{model=x}:3%", decode)


def test_a_named_gate_that_neither_side_measured_is_an_error_and_a_default_one_does_not_apply() -> None:
    energy, params = value("energy_j_per_output_token", None, traffic="offline"), exact("total_params", 5)
    assert "not measured on either side (no_counter)" in refused("energy_j_per_output_token:3%", energy, params)
    assert "neither side has this figure" in refused("ttft_p50_s:3%", params)
    assert "picks of the same forced tokens on both sides" in refused("routing_agreement_ratio:-1%", params)
    both = side(model(energy, params)), side(model(energy, params))
    assert [one.gate.metric for one in resolve(None, model_pairs(*both), floor_ratio=0.1)] == ["total_params"]
    with pytest.raises(InputError, match="no gate applies: neither side has a figure of routing"):
        resolve(["routing"], model_pairs(*both), floor_ratio=0.1)


def test_a_named_gate_stands_for_the_default_one_on_the_same_value() -> None:
    both = side(model(exact("weights_bytes", 5))), side(model(exact("weights_bytes", 5)))
    written: list[list[Gate | str]] = [["exact", gate("weights_bytes:2%")], [gate("weights_bytes:2%"), "default"]]
    for gates in written:
        (found,) = resolve(gates, model_pairs(*both), floor_ratio=0.1)
        assert found.gate.text == "weights_bytes:2%"


def test_a_gate_watches_every_model_that_has_the_figure_and_a_label_may_name_one() -> None:
    dead = value("dead_experts", 0.0, phase="all", traffic="open", window="total")
    both = (
        side(model(dead), model(exact("total_params", 5), name="dense")),
        side(model(dead), model(exact("total_params", 5), name="dense")),
    )
    found = resolve([gate("dead_experts:0"), gate("total_params:+0")], model_pairs(*both), floor_ratio=0.1)
    assert [(one.gate.metric, one.model) for one in found] == [("dead_experts", "moe"), ("total_params", "dense")]
    with pytest.raises(InputError, match="neither side has this figure"):
        resolve([gate("dead_experts{model=dense}:0")], model_pairs(*both), floor_ratio=0.1)


def test_the_only_models_of_both_sides_are_a_pair_whatever_their_names() -> None:
    (pair,) = model_pairs(side(model(name="old")), side(model(name="new")))
    assert (pair[0].name, pair[1].name) == ("old", "new")
    several = side(model(name="a"), model(name="b")), side(model(name="b"), model(name="c"))
    assert [(one.name, other.name) for one, other in model_pairs(*several)] == [("b", "b")]
