"""Files that other tools read, made from one planted check: byte for byte, and by the schema or reader of each form."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import moeprof
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.analysis.regress.routing.change import LayerChange, RoutingChange
from moeprof.analysis.report.data import regression_json, regression_rows
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.errors import InputError
from moeprof.core.metric import MetricValue
from moeprof.render import FORMATS
from moeprof.render.ci.bencher import render_bmf, slug
from moeprof.render.ci.benchmark_action import render_bigger_is_better, render_smaller_is_better
from moeprof.render.ci.github_annotations import render_annotations
from moeprof.render.ci.gitlab import render_code_quality, render_metrics
from moeprof.render.ci.junit import render_junit
from moeprof.render.ci.words import case_names, place, workload_file
from tests.helpers.planted_regression import CI_FORMATS, GOLDEN, MODEL, ODD, planted, undecided, write_files

SCHEMAS = Path(__file__).parents[1] / "schemas"
OWN_SCHEMA = Path(moeprof.__file__).parent / "data" / "schemas" / "regress.schema.json"
# as Bencher and GitLab publish them, in a few words
BMF_SCHEMA = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {name: {"type": "number"} for name in ("value", "lower_value", "upper_value")},
            "required": ["value"],
            "additionalProperties": False,
        },
    },
}
FINDINGS_SCHEMA = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["description", "check_name", "fingerprint", "severity", "location"],
        "properties": {
            "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
            "location": {
                "type": "object",
                "required": ["path", "lines"],
                "properties": {
                    "path": {"type": "string", "pattern": "^[^./]"},
                    "lines": {"type": "object", "required": ["begin"], "properties": {"begin": {"minimum": 1}}},
                },
            },
        },
    },
}


def with_first(check: Regression, change: Callable[[GateResult], GateResult]) -> Regression:
    return replace(check, gates=(change(check.gates[0]), *check.gates[1:]))


def judged(gate: GateResult, verdict: str) -> GateResult:
    return replace(gate, ratio=replace(gate.ratio, verdict=verdict))


def outcomes(check: Regression) -> dict[tuple[str, str], tuple[str, str | None]]:
    root = ET.fromstring(render_junit(check))
    return {
        (case.attrib["classname"], case.attrib["name"]): (case[0].tag, case[0].get("type"))
        for case in root.iter("testcase")
        if len(case)
    }


# -- golden files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", CI_FORMATS)
def test_a_form_is_byte_for_byte_its_golden_file(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wanted change: ``python -m tests.helpers.planted_regression``, and read the diff."""
    monkeypatch.setattr(moeprof, "__version__", "0.1.0")
    monkeypatch.chdir(tmp_path)  # no folder `workloads` here
    for path in write_files(planted(), tmp_path, [form]):
        assert path.read_bytes() == (GOLDEN / path.name).read_bytes(), path.name


def test_every_golden_file_is_of_a_form() -> None:
    named = {file.format(data="regress") for name in CI_FORMATS for file in FORMATS[name].files}
    pages = {"comment.md", "terminal.txt"}  # written by tests/helpers/planted_pages.py
    assert {path.name for path in GOLDEN.iterdir()} == named | pages


def test_files_are_written_in_the_order_asked_for_and_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    written = write_files(planted(), folder, ["json", "junit", "json"])
    assert [path.name for path in written] == ["regress.json", "regress.junit.xml"]
    assert sorted(folder.iterdir()) == sorted(written)


def test_an_unknown_form_is_named_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown format 'junit-xml'; allowed: md, .* did you mean junit\?"):
        write_files(planted(), tmp_path / "out", ["json", "junit-xml"])
    assert not (tmp_path / "out").exists()


# -- JUnit -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allow", [False, True])
def test_junit_is_valid_by_what_both_common_schemas_allow(allow: bool) -> None:
    schema = pytest.importorskip("xmlschema").XMLSchema(str(SCHEMAS / "junit.xsd"))
    schema.validate(render_junit(planted(allow_undecided=allow)))
    schema.validate(render_junit(with_first(planted(), lambda gate: judged(gate, "incomparable"))))


def test_worse_fails_and_cannot_tell_fails_as_undecided() -> None:
    found = outcomes(planted())
    assert found["ci-smoke.moe-demo", "step_mean_s{phase=decode}"] == ("failure", "worse")
    assert found["ci-smoke.moe-demo", "step_mean_s{phase=prefill}"] == ("failure", "undecided")
    assert found[f"ci-smoke.{ODD}", "weights_bytes"] == ("failure", "worse")
    assert len(found) == 7  # 5 worse, 2 undecided


def test_cannot_tell_is_skipped_where_that_is_allowed() -> None:
    found = outcomes(planted(allow_undecided=True))
    assert found["ci-smoke.moe-demo", "step_mean_s{phase=prefill}"] == ("skipped", None)
    assert found["ci-smoke.moe-demo", "step_mean_s{phase=decode}"] == ("failure", "worse")


def test_what_could_not_be_compared_is_skipped_and_no_finding() -> None:
    some = with_first(planted(), lambda gate: judged(gate, "incomparable"))
    assert outcomes(some)["ci-smoke.moe-demo", "dead_experts{phase=decode}"] == ("skipped", None)
    assert not [line for line in render_annotations(some).splitlines() if "incomparable" in line]
    assert not [one for one in json.loads(render_code_quality(some)) if "incomparable" in one["description"]]


def test_the_counts_of_a_suite_are_those_of_its_cases() -> None:
    first, second = ET.fromstring(render_junit(planted(allow_undecided=True)))
    assert [first.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["9", "3", "0", "1"]
    assert [second.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["4", "2", "0", "1"]


def test_a_suite_says_what_was_compared_and_every_figure() -> None:
    suite = ET.fromstring(render_junit(planted()))[0]
    said = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert said["device"] == "1 x NVIDIA H200"
    assert (said["reference"], said["other"]) == ("main@1a2b3c4", "pull-17@5d6e7f8")
    assert said["moeprof"] == moeprof.__version__
    out = suite.findtext("system-out") or ""
    assert "step_mean_s{phase=prefill}: cannot tell, ratio 1.010 [0.970, 1.050], 6 pairs" in out.splitlines()


def test_a_time_with_a_zone_is_told_in_utc() -> None:
    suite = ET.fromstring(render_junit(replace(planted(), other_at="2026-11-22T05:30:05.25+01:00")))[0]
    assert suite.get("timestamp") == "2026-11-22T04:30:05"


def test_two_thresholds_of_one_figure_are_two_cases() -> None:
    check = planted()
    first = check.gates[0]
    again = replace(first, gate=replace(first.gate, text="dead_experts:1"))
    names = case_names((first, again, again, check.gates[1]))
    assert names == (
        "dead_experts{phase=decode} [dead_experts:0]",
        "dead_experts{phase=decode} [dead_experts:1]",
        "dead_experts{phase=decode} [dead_experts:1] (2)",
        "step_mean_s{phase=decode}",
    )


# -- GitHub ------------------------------------------------------------------------------------------------------------


def test_annotations_begin_with_the_verdict_and_point_at_the_line_of_a_gate() -> None:
    lines = render_annotations(planted()).splitlines()
    assert lines[0].startswith("::error title=moeprof::ci-smoke: worse, pull-17@5d6e7f8 against main@1a2b3c4")
    assert [line.partition(" ")[0] for line in lines] == ["::error"] * 6 + ["::warning"] * 2 + ["::notice"] * 2
    assert sum(",file=workloads/ci-smoke.yaml,line=14::" in line for line in lines) == 1


def test_an_undecided_check_warns_or_only_says_so_where_that_is_allowed() -> None:
    for allow, level in ((False, "warning"), (True, "notice")):
        lines = render_annotations(undecided(allow_undecided=allow)).splitlines()
        assert [line.partition(" ")[0] for line in lines] == [f"::{level}"] * 2


def test_a_title_escapes_what_separates_properties_and_a_message_its_line_ends() -> None:
    line = next(line for line in render_annotations(planted()).splitlines() if "usd_per_1m" in line)
    assert "title=worse%3A usd_per_1m_output_tokens (odd <m&'e'>%2C \"50%25\"%3A ä|x)::" in line
    assert "line one%0Aline two, 100 %25 sure: no" in line


def test_the_tenth_annotation_of_a_kind_says_how_many_github_would_have_dropped() -> None:
    worst = planted().gates[0]
    many = replace(planted(), gates=tuple(replace(worst, model=f"moe-{i}") for i in range(15)))
    lines = render_annotations(many).splitlines()
    assert len(lines) == 10  # the verdict and 15 gates would be 16
    assert lines[-1].startswith("::error title=moeprof::7 more gates are not shown here.")


def test_a_place_is_a_file_below_the_working_directory_with_its_line() -> None:
    assert place("workloads/ci.yaml:14") == ("workloads/ci.yaml", 14)
    assert place("regress.yaml:3: fail_on") == ("regress.yaml", 3)
    assert place("regress.yaml") == ("regress.yaml", 1)
    assert place(f"{Path.cwd()}/regress.yaml:3") == ("regress.yaml", 3)
    assert [place(text) for text in ("default", "--fail-on", "/elsewhere/a.yaml:3", "../a.yaml:3", "workload")] == [
        None
    ] * 5


# -- trends ------------------------------------------------------------------------------------------------------------


def test_benchmark_lists_go_by_direction_and_hold_the_ratio_where_a_pair_has_no_value() -> None:
    smaller = {entry["name"]: entry for entry in json.loads(render_smaller_is_better(planted()) or "")}
    bigger = {entry["name"]: entry for entry in json.loads(render_bigger_is_better(planted()) or "")}
    assert list(bigger) == [
        "ci-smoke / moe-demo / output_tokens_per_s",
        "ci-smoke / moe-demo / routing_agreement_ratio",
    ]
    assert bigger["ci-smoke / moe-demo / output_tokens_per_s"]["range"] == "± 10.05"  # 1 % of 1,005 either way
    pair = smaller["ci-smoke / moe-demo / step_mean_s{phase=decode}, new / base"]
    assert (pair["value"], pair["unit"], pair["range"]) == (1.1, "ratio", "± 0.03")
    assert not [name for name in [*smaller, *bigger] if "total_params" in name]  # neither direction is better
    assert not [name for name in smaller if f"{ODD} / energy" in name]  # not measured


def test_a_list_without_entries_is_not_written_and_an_old_one_goes(tmp_path: Path) -> None:
    old = tmp_path / "benchmark-bigger-is-better.json"
    old.write_text("[]")
    written = write_files(undecided(allow_undecided=True), tmp_path, ["benchmark-action"])
    assert [path.name for path in written] == ["benchmark-smaller-is-better.json"]
    assert not old.exists()


def test_bencher_gets_a_measure_per_metric_and_a_benchmark_per_model_and_labels() -> None:
    found = json.loads(render_bmf(planted()))
    pytest.importorskip("jsonschema").validate(found, BMF_SCHEMA)
    assert found["ci-smoke/moe-demo{phase=decode}"] == {
        "dead-experts": {"value": 1},
        "step-mean-s-ratio": {"value": 1.1, "lower_value": 1.07, "upper_value": 1.13},
    }


def test_a_slug_is_short_and_two_long_names_keep_apart() -> None:
    assert slug("ttft_p99_9_s") == "ttft-p99-9-s"
    one, other = slug("a" * 70), slug("a" * 71)
    assert len(one) == len(other) == 64
    assert one != other


# -- GitLab ------------------------------------------------------------------------------------------------------------


def findings(check: Regression) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(render_code_quality(check))
    return found


def test_code_quality_has_a_finding_for_each_gate_that_fails_or_cannot_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = findings(planted())
    pytest.importorskip("jsonschema").validate(found, FINDINGS_SCHEMA)
    assert [one["severity"] for one in found] == ["major"] * 5 + ["minor"] * 2
    assert [one["severity"] for one in findings(planted(allow_undecided=True))] == ["major"] * 5 + ["info"] * 2
    places = [(one["location"]["path"], one["location"]["lines"]["begin"]) for one in found]
    assert places.count(("workloads/ci-smoke.yaml", 14)) == 1
    assert places.count(("ci-smoke.yaml", 1)) == 6
    (tmp_path / "workloads").mkdir()
    (tmp_path / "workloads" / "ci-smoke.yaml").touch()
    paths = [one["location"]["path"] for one in findings(planted())]
    assert paths == ["workloads/ci-smoke.yaml"] * 7, "GitLab reads paths from the root of the repository"


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "\ud800"])
def test_a_workload_of_a_name_that_no_file_can_have_is_pointed_at_all_the_same(name: str) -> None:
    assert workload_file(name) == f"{name}.yaml"


def test_a_fingerprint_stays_while_only_figures_move_and_changes_with_the_verdict() -> None:
    before = [one["fingerprint"] for one in findings(planted())]
    assert len(set(before)) == 7
    moved = with_first(planted(), lambda gate: replace(gate, other=replace(gate.other, value=3), n="4,096 tokens"))
    assert [one["fingerprint"] for one in findings(moved)] == before
    doubted = with_first(planted(), lambda gate: judged(gate, "cannot tell"))
    after = [one["fingerprint"] for one in findings(doubted)]
    assert after[0] != before[0]
    assert after[1:] == before[1:]


def test_metrics_are_read_alike_by_an_openmetrics_reader_and_by_gitlab() -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    text = render_metrics(planted())
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    samples = {
        (s.name, s.labels.get("model"), s.labels.get("phase")): s.value
        for s in families["moeprof_weights_bytes"].samples
    }
    assert samples == {("moeprof_weights_bytes", ODD, None): 210_000}
    assert {s.labels["verdict"]: s.value for s in families["moeprof_gates"].samples} == {
        "worse": 5,
        "cannot tell": 2,
        "better": 2,
        "no difference shown": 4,
    }
    # GitLab: cut at #, split as a shell does, first word is the name, second the value
    rows = [shlex.split(re.sub("#.*", "", line)) for line in text.splitlines()]
    read = {row[0]: row[1] for row in rows if row}
    assert read["moeprof_step_mean_s_ratio{model=moe-demo,phase=decode,workload=ci-smoke}"] == "1.1"
    assert len(read) == sum(len(family.samples) for family in families.values()) == 16


# -- JSON and CSV ------------------------------------------------------------------------------------------------------


def test_the_json_is_valid_by_the_schema_that_is_shipped() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(OWN_SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    reader = jsonschema.Draft202012Validator(schema)
    for check in (planted(), planted(allow_undecided=True), undecided(allow_undecided=False)):
        reader.validate(regression_json(check))


def test_the_json_holds_the_whole_check() -> None:
    found = regression_json(planted())
    assert (found["format_version"], found["verdict"], found["exit_code"], found["mode"]) == (1, "worse", 3, "pairs")
    assert (len(found["gates"]), len(found["changes"])) == (13, 15)
    gate = found["gates"][1]
    assert gate["ratio"] == {"value": 1.10, "ci_low": 1.07, "ci_high": 1.13}
    assert (gate["gate"]["amount"], gate["other_launches"][:2]) == (0.015, [1.09, 1.11])
    assert found["routing"][0]["layers"][1]["load"] == {
        "reference": [0.4, 0.3, 0.2, 0.1],
        "other": [0.0, 0.5, 0.3, 0.2],
    }
    assert [(one["name"], one["allowed"]) for one in found["differences"]] == [("versions", False), ("revision", True)]


def test_what_is_no_number_is_left_out_of_every_file(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")

    def broken(gate: GateResult) -> GateResult:
        value = MetricValue(name=gate.key[0], value=nan, ci_low=-inf, ci_high=inf, reasons=("broken",))
        return replace(gate, other=value, ratio=Ratio(value=inf, low=nan, high=nan, verdict="worse"))

    check = with_first(planted(), broken)
    for path in write_files(check, tmp_path, CI_FORMATS):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(nan|inf|infinity)\b", text, re.IGNORECASE), path.name
    assert regression_json(check)["gates"][0]["other"]["value"] is None
    assert "moeprof_dead_experts" not in (tmp_path / "metrics.txt").read_text(encoding="utf-8")


def test_the_csv_has_a_row_per_gate_and_one_per_other_figure(tmp_path: Path) -> None:
    (path,) = write_files(planted(), tmp_path, ["csv"])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["table"] for row in rows] == ["gate"] * 13 + ["figure"] * 2
    assert len(rows) + 1 == len(regression_rows(planted()))
    assert (rows[4]["model"], rows[4]["reason"]) == (ODD, "line one\nline two, 100 % sure: no")
    assert (rows[1]["model"], rows[1]["reference"], rows[1]["ratio"]) == (MODEL, "", "1.1")


def test_a_field_that_is_added_to_a_check_or_a_gate_must_be_told_in_the_json() -> None:
    found = regression_json(planted())
    gate, routing = found["gates"][0], found["routing"][0]
    moved = {"reference_at": "reference", "other_at": "other", "key": "label", "card": "title", "figure": "reference"}
    for noun, told in (
        (Regression, found),
        (GateResult, gate),
        (RoutingChange, routing),
        (LayerChange, routing["layers"][0]),
    ):
        names = {moved.get(field.name, field.name) for field in fields(noun)}
        assert names <= set(told), noun.__name__
