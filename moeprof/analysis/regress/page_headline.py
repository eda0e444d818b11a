"""The check in one sentence that can be forwarded: the verdict in a word, the figures behind it, and how many hold."""

from __future__ import annotations

from collections.abc import Sequence

from moeprof.analysis.regress.page_cures import cures
from moeprof.analysis.regress.page_gates import from_to, is_difference, limit_text
from moeprof.analysis.regress.page_names import Names, names_of
from moeprof.analysis.regress.result import GateResult, Regression
from moeprof.core import units

MOST = 3  # gates that the sentence names; the table has them all
COUNTED = (  # verdict -> what is said of one gate, and of several
    ("worse", "is worse", "are worse"),
    ("cannot tell", "cannot be told", "cannot be told"),
    ("incomparable", "is incomparable", "are incomparable"),
    ("better", "is better", "are better"),
    ("no difference shown", "shows no difference", "show no difference"),
)


def headline(regression: Regression) -> str:
    """The sentence: ``WORSE: decode step 1.112x [1.098, 1.127] (6 pairs); 7 gates show no difference``."""
    if not regression.gates:
        return "Nothing was judged: no gate applies to these runs."
    if regression.verdict == "no difference shown":
        return _holds(regression)
    own, names = regression.with_verdict(regression.verdict), names_of(regression)
    if regression.verdict == "cannot tell":
        said = cures(own, lambda gate, whole: _open(gate, names, whole))
    else:
        said = _all_said(own[:MOST], names) + ([f"{len(own) - MOST} more"] if len(own) > MOST else [])
    rest = _counts([gate for gate in regression.gates if gate.verdict != regression.verdict])
    allowed = ", which is allowed" if regression.verdict == "cannot tell" and regression.allow_undecided else ""
    return f"{regression.verdict.upper()}{allowed}: {'; '.join((*said, *rest))}."


def _holds(regression: Regression) -> str:
    """Says how much was looked at: the widest of the timed gates shows what could have been seen."""
    held = regression.with_verdict("no difference shown")
    timed = [gate for gate in held if gate.kind == "timed" and gate.ratio.low and gate.ratio.high]
    text = f"No regression: {len(held)} {'gate holds' if len(held) == 1 else 'gates hold'}"
    if timed:
        widest = max(timed, key=lambda gate: (gate.ratio.high or 1.0) / (gate.ratio.low or 1.0))
        which = "" if len(timed) == 1 else f"; the widest of {len(timed)} timed ones is"
        text += f"{which or ';'} {_all_said([widest], names_of(regression))[0]}"
    else:
        text += "; none of them is timed" if all(gate.kind != "timed" for gate in held) else ""
    rest = _counts([gate for gate in regression.gates if gate.verdict != "no difference shown"])
    return f"{'; '.join((text, *rest))}."


def _counts(gates: Sequence[GateResult]) -> list[str]:
    """``2 gates cannot be told, 1 is better, 4 show no difference``; nothing where no gate is left."""
    found: list[str] = []
    for verdict, one, several in COUNTED:
        num = sum(gate.verdict == verdict for gate in gates)
        if num:
            noun = "" if found else " gate" if num == 1 else " gates"
            found.append(f"{num}{noun} {one if num == 1 else several}")
    return [", ".join(found)] if found else []


def _all_said(gates: Sequence[GateResult], names: Names) -> list[str]:
    """Each gate with its figure; the model is named where it is another one than before."""
    said, before = [], names.models[0] if len(names.models) == 1 else None
    for gate in gates:
        text = _said(gate, names)
        said.append(text if gate.model == before else f"{gate.model}: {text}")
        before = gate.model
    return said


def _said(gate: GateResult, names: Names) -> str:
    """One gate with its figure: ``decode step 1.112x [1.098, 1.127] (6 pairs)``."""
    told = _figure(gate)
    text = " ".join(part for part in (names.figure(gate.key), told) if part)
    return f"{text} ({gate.n})" if told and gate.n not in ("exact", "not measured", "") else text


def _open(gate: GateResult, names: Names, whole: bool) -> str:
    """One undecided gate: ``moe: decode step 1.012x``; its interval only where it is the only one."""
    told = _figure(gate) if whole else _figure(gate).partition(" [")[0]
    return " ".join(part for part in (names.full(gate.model, gate.key), told) if part)


def _figure(gate: GateResult) -> str:
    ratio = gate.ratio
    if is_difference(gate):
        known = [side.value for side in (gate.reference, gate.other) if side is not None and side.value is not None]
        text = from_to([units.short(value, gate.card.unit) for value in known])
        return f"{text} ({limit_text(gate)})" if gate.gate.kind in ("at_most", "at_least") and text else text
    if ratio.value is None:
        return ""
    between = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.value:.3f}x{between}"
