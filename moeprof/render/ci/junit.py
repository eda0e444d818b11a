"""JUnit XML: one test case per gate and model, in one suite per model.

No standard exists; two schemas are in common use, and the file is valid in both, so it holds only what both allow:
figures stand in each suite's ``system-out`` (neither of the two knows all of Jenkins' per-case elements), and nothing
stands at ``testsuites``. Case names are unique within a class, because GitLab keeps one case per class and name.

Sources: https://github.com/windyroad/JUnit-Schema/blob/master/JUnit.xsd (Ant),
https://github.com/jenkinsci/xunit-plugin (junit-10.xsd), https://docs.gitlab.com/ci/testing/unit_test_reports/,
https://www.w3.org/TR/xml/#charsets (which characters XML allows).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import moeprof
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.render.ci.words import case_names, figures, headline, sentence

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Case = tuple[GateResult, str]
TIME_S = "0.000"  # gates are judged, not run: a case takes no time of its own


def render_junit(regression: Regression) -> str:
    """The file as text.

    Raises:
        ValueError: the run's time is no ISO time.
    """
    root = ET.Element("testsuites")
    cases = tuple(zip(regression.gates, case_names(regression.gates), strict=True))
    for index, model in enumerate(dict.fromkeys(gate.model for gate in regression.gates)):
        own = [case for case in cases if case[0].model == model]
        root.append(_suite(regression, model, index, own))
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def legal(text: str) -> str:
    """The text without the characters that XML 1.0 cannot hold, not even escaped."""
    return _ILLEGAL.sub("", text)


def _suite(regression: Regression, model: str, index: int, cases: Sequence[Case]) -> ET.Element:
    outcomes = [_outcome(gate, regression) for gate, _ in cases]
    suite = _element(
        "testsuite",
        name=f"{regression.workload}.{model}",
        package=regression.workload,
        id=str(index),
        timestamp=_timestamp(regression.other_at),
        hostname="localhost",  # required by one schema; a machine's own name is nobody's business
        tests=str(len(cases)),
        failures=str(outcomes.count("failure")),
        errors=str(outcomes.count("error")),
        skipped=str(outcomes.count("skipped")),
        time=TIME_S,
    )
    suite.append(_properties(regression))
    for gate, name in cases:
        suite.append(_case(regression, gate, name))
    for tag, text in (("system-out", _system_out(regression, cases)), ("system-err", "")):
        suite.append(_text(_element(tag), text))
    return suite


def _properties(regression: Regression) -> ET.Element:
    said = {
        "device": regression.device,
        "reference": regression.reference,
        "reference_at": regression.reference_at,
        "other": regression.other,
        "other_at": regression.other_at,
        "mode": regression.mode,
        "verdict": regression.verdict,
        "moeprof": moeprof.__version__,
    }
    properties = _element("properties")
    properties.extend(_element("property", name=name, value=value) for name, value in said.items())
    return properties


def _case(regression: Regression, gate: GateResult, name: str) -> ET.Element:
    case = _element("testcase", name=name, classname=f"{regression.workload}.{gate.model}", time=TIME_S)
    outcome = _outcome(gate, regression)
    if outcome is None:
        return case
    if outcome == "skipped":  # one schema gives it no attributes, the other calls them optional
        case.append(_text(_element("skipped"), sentence(gate)))
        return case
    kind = "undecided" if gate.verdict == "cannot tell" else gate.verdict
    case.append(_text(_element(outcome, type=kind, message=f"{gate.verdict}: {figures(gate)}"), sentence(gate)))
    return case


def _outcome(gate: GateResult, regression: Regression) -> str | None:
    """Name of the element that says so; None for a case that passed."""
    if gate.verdict == "worse":
        return "failure"
    if gate.verdict == "cannot tell":
        return "skipped" if regression.allow_undecided else "failure"
    return "error" if gate.verdict == "incomparable" else None


def _system_out(regression: Regression, cases: Sequence[Case]) -> str:
    lines = [headline(regression), *(f"{name}: {gate.verdict}, {figures(gate)}" for gate, name in cases)]
    lines += [difference.text for difference in regression.differences]
    lines += [regression.noise.text] if regression.noise is not None else []
    return "\n".join([*lines, *(doubt.text for doubt in regression.doubts)])


def _timestamp(time: str) -> str:
    """ISO time in UTC, to the second, without a zone: the Ant schema allows none."""
    moment = datetime.fromisoformat(time)
    moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment
    return moment.replace(tzinfo=None, microsecond=0).isoformat()


def _element(tag: str, **attributes: str) -> ET.Element:
    return ET.Element(tag, {name: legal(value) for name, value in attributes.items()})


def _text(element: ET.Element, text: str) -> ET.Element:
    element.text = legal(text)
    return element
