"""Undecided gates by what would decide them; each cure is said once: ``4 timed gates need 5 launches a side``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from moeprof.analysis.regress.result import GateResult

MOST = 3  # cures that are said, and gates that are named
NEAR = "no affordable number"
_ASIDE = re.compile(r" \([^()]*\)")
_NUMBER = re.compile(r"\d[\d,]*")


def cures(gates: Sequence[GateResult], name: Callable[[GateResult, bool], str]) -> list[str]:
    """What the undecided gates need, those with the same cure together; what is not said is counted.

    Args:
        gates: that cannot be told, in order.
        name: of a gate with its figure; True: with its interval.
    """
    groups: dict[str, list[GateResult]] = {}
    for gate in gates:
        groups.setdefault(_kind(gate), []).append(gate)
    named = len(gates) <= MOST
    said = [_said(group, name, named, len(gates)) for group in list(groups.values())[:MOST]]
    more = sum(len(group) for group in list(groups.values())[MOST:])
    return [*said, f"{more} more"] if more else said


def _kind(gate: GateResult) -> str:
    """Equal for gates that one measurement would decide: numbers may differ, the largest does for all."""
    if gate.decide is None:
        return f"reason: {gate.ratio.reason}"
    return NEAR if gate.decide.startswith(NEAR) else _NUMBER.sub("#", _ASIDE.sub("", gate.decide))


def _said(group: Sequence[GateResult], name: Callable[[GateResult, bool], str], named: bool, num: int) -> str:
    if len(group) == 1 or named:
        who = _listed([name(gate, num == 1) for gate in group])
    else:
        timed = "timed " if all(gate.kind == "timed" for gate in group) else ""
        who = f"{len(group)} {timed}gates"
    one = len(group) == 1
    if group[0].decide is None:
        return f"{who}: {group[0].ratio.reason}" if group[0].ratio.reason else who
    if group[0].decide.startswith(NEAR):
        return f"{who} {'is too close to its limit' if one else 'are too close to their limits'}"
    return f"{who} {'needs' if one else 'need'} {_cure(group)}"


def _cure(group: Sequence[GateResult]) -> str:
    """The largest of the cures; what stands in brackets only where it is true of all, or holds the number itself."""
    texts = [gate.decide or "" for gate in group]
    most = max(texts, key=_size)
    bare = _ASIDE.sub("", most)
    differ = len({tuple(_ASIDE.findall(text)) for text in texts}) > 1
    return bare if differ and _NUMBER.search(bare) else most


def _size(text: str) -> int:
    found = _NUMBER.search(_ASIDE.sub("", text)) or _NUMBER.search(text)
    return int(found[0].replace(",", "")) if found else 0


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
