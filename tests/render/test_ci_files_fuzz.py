"""Any name, reason or place a user could write gives files that their readers read, and read back as it was."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeprof.analysis.regress.result import Regression
from moeprof.core.text import printable
from moeprof.render.ci.bencher import slug
from moeprof.render.ci.github_annotations import escape_data, escape_property, render_annotations
from moeprof.render.ci.gitlab import render_metrics
from moeprof.render.ci.junit import legal, render_junit
from tests.helpers.planted_regression import CI_FORMATS, planted, write_files

SCHEMA = Path(__file__).parents[1] / "schemas" / "junit.xsd"
NASTY = "\x00\x07\x0b\x1f\x7f\x85\u2028\ufffe\uffff\ud800\U0001f600\\\"'<>&%#:,;={}[]|`$ \t\r\n"
TEXTS = st.text(st.characters() | st.sampled_from(NASTY), max_size=20) | st.sampled_from(
    ["::error::x", "\n::error::x", "]]>", "<!--", "# EOF", '",a="', "a\r\nb", "%0A", "%250A", "##[error]x"]
)


def named(text: str) -> Regression:
    """The planted check with this text for every name, and in every reason."""
    check = planted()
    gates = tuple(
        replace(
            gate,
            model=f"m{text}",
            gate=replace(gate.gate, text=text, source=text),
            ratio=replace(gate.ratio, reason=text),
        )
        for gate in check.gates
    )
    return replace(check, gates=gates, workload=f"w{text}", device=text, reference=text, other=text)


def unescaped(text: str, *, is_property: bool) -> str:
    """As the runner reads a command: the per cent sign last."""
    for code, sign in (("%0D", "\r"), ("%0A", "\n"), *((("%3A", ":"), ("%2C", ",")) if is_property else ())):
        text = text.replace(code, sign)
    return text.replace("%25", "%")


@settings(deadline=None)
@given(TEXTS)
def test_junit_of_any_text_is_xml_and_valid(text: str) -> None:
    xml = render_junit(named(text))
    root = ET.fromstring(xml)
    assert sum(int(suite.attrib["tests"]) for suite in root) == len(list(root.iter("testcase"))) == 13
    pytest.importorskip("xmlschema").XMLSchema(str(SCHEMA)).validate(xml)


@settings(deadline=None)
@given(st.text())
def test_only_characters_that_xml_cannot_hold_are_dropped(text: str) -> None:
    element = ET.fromstring(ET.tostring(_holding(legal(text)), encoding="unicode"))
    assert element.get("a") == legal(text)
    assert legal(text) == "".join(
        c for c in text if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff"
    )


@settings(deadline=None)
@given(TEXTS)
def test_an_annotation_is_one_line_and_reads_back(text: str) -> None:
    for is_property, escape in ((True, escape_property), (False, escape_data)):
        assert not set("\r\n") & set(escape(text))
        assert unescaped(escape(text), is_property=is_property) == text
    assert not set(":,") & set(escape_property(text))
    written = render_annotations(named(text))
    lines = written.split("\n")[:-1]
    assert len(lines) == 10
    for line in lines:
        assert re.match(r"::(error|warning|notice) title=[^:,\r\n]+(,file=[^:,\r\n]+,line=[1-9][0-9]*)?::[^\r\n]", line)


@settings(deadline=None)
@given(TEXTS)
def test_metrics_of_any_text_are_read_by_both_readers(text: str) -> None:
    parser = pytest.importorskip("prometheus_client.openmetrics.parser")
    written = render_metrics(named(text))
    samples = [s for family in parser.text_string_to_metric_families(written) for s in family.samples]
    rows = [shlex.split(re.sub("#.*", "", line)) for line in written.split("\n")]
    assert [len(row) for row in rows if row] == [2] * len(samples)
    flat = printable(re.sub("[\x00-\x09\x0b-\x1f\x7f]", " ", f"m{text}".replace("#", "%23")))
    assert {s.labels.get("model") for s in samples} == {None, flat}


@settings(deadline=None)
@given(TEXTS)
def test_every_file_of_any_text_is_utf_8_and_its_json_is_json(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.mktemp("ci")
    for path in write_files(named(text), folder, CI_FORMATS):
        content = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            json.loads(content)
    assert json.loads((folder / "regress.json").read_text(encoding="utf-8"))["gates"][0]["model"] == f"m{text}"


@settings(deadline=None)
@given(TEXTS)
def test_a_slug_is_of_letters_digits_and_single_hyphens(text: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug(text))
    assert len(slug(text * 10)) <= 64


def _holding(text: str) -> ET.Element:
    return ET.Element("x", {"a": text})
