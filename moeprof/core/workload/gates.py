"""Gates: which figures may get worse, and by how much, before a job fails.

    usd_per_1m_output_tokens:3%              worse by more than 3 % fails
    router_load_max_over_mean{phase=decode}:+0.2   worse by more than 0.2 (absolute)
    dead_experts:0                           any increase fails
    routing_agreement_ratio:-1%              a fall of more than 1 %
    itl_p99_s<=0.05                          a bound on the value itself; needs no baseline

The sign is optional where the metric's card says which direction is worse, and needed where neither is. The grammar of
``--fail-on``, of a workload's key ``gates`` and of a regress.yaml:

    METRIC[{LABEL=VALUE,...}]:[SIGN]NUMBER[%]      a threshold; SIGN is +, - or +-
    METRIC[{LABEL=VALUE,...}]<=NUMBER  or  >=NUMBER   a bound on the value itself
    default | exact | routing | quality | timed       a group of default gates

Whether a metric exists, has such labels and which direction is worse is asked where its card lives: see
moeprof/analysis/regress/gates.py.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from moeprof.core import yamlfile
from moeprof.core.errors import InputError

GROUPS = ("default", "exact", "routing", "quality", "timed")
GateKind = Literal["ratio", "absolute", "at_most", "at_least"]
Sign = Literal["+", "-", "+-"] | None  # which way is worse; None: as the card says


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One threshold, as written.

    Attributes:
        text: what was written.
        metric: full metric name.
        labels: which of its values: phase, traffic, model...; empty: the plain one of each model.
        kind: ``ratio`` (a share of the reference), ``absolute`` (in the metric's unit), or a bound on the value.
        amount: what is allowed, 0 or more; for a bound the bound itself.
        sign: ``+`` a rise is worse, ``-`` a fall is worse, ``+-`` both; None: as the card says.
        source: where it was written: ``--fail-on``, a file with line, ``default``.
    """

    text: str
    metric: str
    labels: tuple[tuple[str, str], ...] = ()
    kind: GateKind = "ratio"
    amount: float = 0.0
    sign: Sign = None
    source: str = "default"


def check_text(text: str) -> None:
    """Raises InputError where a text is no gate; for YAML, which names its line."""
    parse_gate(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """Key ``gates`` of a workload, and the whole of a regress.yaml.

    Attributes:
        fail_on: thresholds and groups; empty: the defaults.
        allow_undecided: exit 0 where a gate cannot tell.
        allow: facts that may differ.
    """

    fail_on: tuple[Annotated[str, check_text], ...] = ()
    allow_undecided: bool = False
    allow: tuple[str, ...] = ()


EXAMPLES = "itl_p99_s:10%, router_load_max_over_mean{phase=decode}:+0.2, dead_experts:0, ttft_p99_s<=0.5"
_WHOLE = re.compile(r"(?P<metric>[^{}:<>=]*)(?:\{(?P<labels>[^{}]*)\})?\s*(?P<mark>:|<=|>=)(?P<amount>[^{}]*)")
_METRIC = re.compile(r"[a-z][a-z0-9_]*")
_LABEL = re.compile(r"\s*(?P<name>[a-z][a-z0-9_]*)\s*=\s*(?P<value>[^\s,={}](?:[^,={}]*[^\s,={}])?)\s*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_THRESHOLD = re.compile(rf"(?P<sign>\+-|\+|-)?\s*(?P<number>{_NUMBER.pattern.removeprefix('[+-]?')})\s*(?P<percent>%)?",
                        re.IGNORECASE)  # fmt: skip


def parse_gate(text: str, source: str = "") -> Gate | str:
    """One gate, or the word of a group.

    Args:
        text: as written.
        source: where it was written (``--fail-on``, ``regress.yaml``), for messages and for the gate; may be empty.

    Raises:
        InputError: what was found, and what is allowed.
    """
    written = text.strip()
    if written in GROUPS:
        return written
    found = _WHOLE.fullmatch(written)
    if found is None:
        raise _error(source, written, _why_no_gate(written))
    metric = found["metric"].strip()
    if not _METRIC.fullmatch(metric):
        raise _error(source, written, f"{metric!r} is no metric name; `moeprof explain` lists them")
    labels = _labels(found["labels"], written, source)
    if found["mark"] == ":":
        kind, amount, sign = _threshold(found["amount"].strip(), written, source)
    else:
        kind, amount, sign = _bound(found["mark"], found["amount"].strip(), written, source)
    return Gate(text=written, metric=metric, labels=labels, kind=kind, amount=amount, sign=sign, source=source)


def parse_gates(settings: GateSettings, source: str) -> tuple[Gate | str, ...]:
    """The gates of a workload or of a regress.yaml.

    Raises:
        InputError: a text is no gate.
    """
    return tuple(parse_gate(text, source) for text in settings.fail_on)


def load_gate_settings(path: Path) -> GateSettings:
    """Read a regress.yaml: keys ``fail_on``, ``allow``, ``allow_undecided``.

    Raises:
        WorkloadError: missing file, YAML syntax, unknown key, a gate that cannot be read; with file and line.
    """
    return yamlfile.load(path, GateSettings)


def _threshold(amount: str, written: str, source: str) -> tuple[GateKind, float, Sign]:
    found = _THRESHOLD.fullmatch(amount)
    if found is None:
        raise _error(source, written, f"found {amount!r} as threshold; {_allowed(amount)}")
    number = _finite(found["number"], written, source)
    signs: dict[Any, Sign] = {"+": "+", "-": "-", "+-": "+-", None: None}
    return ("ratio", number / 100, signs[found["sign"]]) if found["percent"] else (
        "absolute", number, signs[found["sign"]])  # fmt: skip


def _bound(mark: str, amount: str, written: str, source: str) -> tuple[GateKind, float, Sign]:
    if not _NUMBER.fullmatch(amount):
        allowed = "a bound is a number in the metric's own unit"
        percent = ", without %" if amount.endswith("%") else ""
        raise _error(source, written, f"found {amount!r} as bound; {allowed}{percent}")
    return ("at_most" if mark == "<=" else "at_least"), _finite(amount, written, source), None


def _finite(number: str, written: str, source: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise _error(source, written, f"found {number}; a finite number is allowed")
    return value


def _labels(text: str | None, written: str, source: str) -> tuple[tuple[str, str], ...]:
    if text is None:
        return ()
    labels: dict[str, str] = {}
    for part in text.split(","):
        found = _LABEL.fullmatch(part)
        if found is None:
            raise _error(source, written, f"found {part.strip()!r} between braces; label=value is allowed, for example "
                         "{phase=decode}")  # fmt: skip
        if found["name"] in labels:
            raise _error(source, written, f"the label {found['name']!r} stands there twice")
        labels[found["name"]] = found["value"]
    return tuple(sorted(labels.items()))


def _allowed(amount: str) -> str:
    if re.search(r"[A-Za-z]", amount) and re.match(r"[+-]*\d", amount):
        return "no units are written: give a number in the metric's own unit (0.01 for 10 ms), or a share with %"
    return "a number with or without a sign and % is allowed: 3%, +0.2, -1%, +-2%, 0"


def _why_no_gate(written: str) -> str:
    if not written:
        return f"it is empty; allowed: METRIC:THRESHOLD, for example {EXAMPLES}, or one of {', '.join(GROUPS)}"
    if re.fullmatch(r"[A-Za-z0-9_]+(\{[^{}]*\})?", written):
        close = difflib.get_close_matches(written.lower(), GROUPS, n=1)
        mean = f"; did you mean {close[0]!r}?" if close else ""
        return f"no threshold; a group is one of {', '.join(GROUPS)}, a metric needs one: {written}:3%{mean}"
    if written.count("{") != written.count("}"):
        return "a brace is open; labels are written {label=value,label=value}"
    if re.search(r"(?<![<>])=(?![^{]*})|[<>](?!=)", written):
        return "thresholds are written with ':', bounds with '<=' or '>='"
    return f"allowed: METRIC:THRESHOLD, METRIC<=BOUND or METRIC>=BOUND, for example {EXAMPLES}"


def _error(source: str, written: str, message: str) -> InputError:
    return InputError(f"{source + ': ' if source else ''}gate {written!r}: {message}")
