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

from junitparser import Attr, Failure, JUnitXml, Skipped, SystemErr, SystemOut, TestCase, TestSuite
from junitparser.junitparser import FinalResult

from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.core import VERSION
from moeprof.core.text import unturned
from moeprof.render.ci.words import case_names, figures, headline, sentence

_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Case = tuple[GateResult, str]


class Suite(TestSuite):
    """A suite with the two attributes that Ant's schema requires."""

    package = Attr()
    id = Attr()


def render_junit(regression: Regression) -> str:
    """The file as text.

    Raises:
        ValueError: the run's time is no ISO time.
    """
    whole = JUnitXml()
    cases = tuple(zip(regression.gates, case_names(regression.gates), strict=True))
    for index, model in enumerate(dict.fromkeys(gate.model for gate in regression.gates)):
        whole.append(_suite(regression, model, index, [case for case in cases if case[0].model == model]))
    root = ET.fromstring(whole.tostring())
    ET.indent(root, " ")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def legal(text: str) -> str:
    """The text without the characters that XML 1.0 cannot hold, not even escaped, nor those that turn a line round."""
    return unturned(_ILLEGAL.sub("", text))


def _suite(regression: Regression, model: str, index: int, cases: Sequence[Case]) -> Suite:
    suite = Suite(legal(f"{regression.workload}.{model}"))
    suite.package, suite.id = legal(regression.workload), str(index)
    suite.timestamp = _timestamp(regression.other_at)
    suite.hostname = "localhost"  # required by one schema; a machine's own name is nobody's business
    for name in ("device", "reference", "reference_at", "other", "other_at", "mode", "verdict"):
        suite.add_property(name, legal(getattr(regression, name)))
    suite.add_property("moeprof", VERSION)
    suite.add_testcases([_case(regression, gate, name) for gate, name in cases])
    for stream in (SystemOut(legal(_system_out(regression, cases))), SystemErr("")):
        TestSuite.append(suite, stream)
    return suite


def _case(regression: Regression, gate: GateResult, name: str) -> TestCase:
    case = TestCase(legal(name), legal(f"{regression.workload}.{gate.model}"), 0.0)  # gates are judged, not run
    outcome = _outcome(gate, regression)
    if outcome is None:
        return case
    # one schema gives a skipped case no attributes, the other calls them optional
    result = outcome() if outcome is Skipped else outcome(legal(f"{gate.verdict}: {figures(gate)}"), _kind(gate))
    result.text = legal(sentence(gate))
    case.result = result
    return case


def _kind(gate: GateResult) -> str:
    return "undecided" if gate.verdict == "cannot tell" else gate.verdict


def _outcome(gate: GateResult, regression: Regression) -> type[FinalResult] | None:
    """The element that says so; None for a case that passed."""
    if gate.verdict == "cannot tell":
        return Skipped if regression.allow_undecided else Failure
    return {"worse": Failure, "incomparable": Skipped}.get(gate.verdict)


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
