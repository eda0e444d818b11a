"""Which facts may differ between two sides, and the refusal where one forbids a gate in use: one line per fact."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from moeprof.analysis.compare.comparable import NOTHING, Difference, forbidden_by
from moeprof.analysis.compare.metric_classes import classes_of
from moeprof.analysis.regress.gates import ChosenGate
from moeprof.core.errors import IncomparableError

# What base and new of launch pairs may differ in: it is what is being tried.
TRIED = frozenset({
    "model",
    "revision",
    "dtype",
    "backend",
    "routing_policy",
    "prefix_cache",
    "max_batch_tokens",
    "max_batch",
    "kv_tokens",
    "format_version",  # of the base's own moeprof
})  # fmt: skip
GROUPS = ("exact", "routing", "quality", "timed")
ARITHMETIC = ("torch", "transformers", "driver")  # packages that decide how numbers are rounded


def tried(found: Iterable[Difference]) -> tuple[Difference, ...]:
    """The same differences between base and new of launch pairs: what is tried forbids nothing, and is noted."""
    return tuple(replace(one, forbids=NOTHING) if one.name in TRIED else one for one in found)


def is_exact_routing(found: Iterable[Difference], model: str) -> bool:
    """Whether both sides route alike by their facts: the same weights, dtype, kernels, kind of device and tokens.

    Asked whatever the user allows to differ: what was allowed is compared, but as a sample. Another device of the kind
    or another torch rounds otherwise, which forbids nothing, but flips tokens whose scores are nearly equal: the demo
    MoE in bfloat16 sent 7 of 10,000 picks elsewhere without AVX-512. An expert with one pick can die of that.
    """
    return not forbidden_by(found, {"routing"}, model=model) and not any(map(_rounds_otherwise, found))


def _rounds_otherwise(difference: Difference) -> bool:
    if difference.name != "versions":
        return difference.name == "device"
    sides = [
        dict(part.rpartition(" ")[::2] for part in said.split(", ")) for said in (difference.first, difference.second)
    ]
    return any(sides[0].get(package) != sides[1].get(package) for package in ARITHMETIC)


def refuse_incomparable(gates: Sequence[ChosenGate], found: Sequence[Difference], allow: Collection[str]) -> None:
    """Refuse where a fact that differs forbids a gate in use. Bounds look at one side, so nothing forbids them.

    Args:
        gates: in use.
        found: facts that differ.
        allow: names of facts that may.

    Raises:
        IncomparableError: one line per fact, with the flag that allows it and the gates that could still be judged.
    """
    hit: dict[str, tuple[Difference, dict[str, None]]] = {}
    free: set[str] = set()
    for chosen in gates:
        if chosen.kind == "bound":
            continue
        against = forbidden_by(found, classes_of(chosen.gate.metric), model=chosen.model, allow=allow)
        for one in against:
            hit.setdefault(one.text, (one, {}))[1][chosen.kind] = None
        if not against:
            free.add(chosen.kind)
    stopped = {kind for _, kinds in hit.values() for kind in kinds}
    groups = [group for group in GROUPS if group in free - stopped]
    if hit:
        raise IncomparableError([_line(one, list(kinds), groups) for one, kinds in hit.values()])


def _line(difference: Difference, kinds: Sequence[str], groups: Sequence[str]) -> str:
    gates = " and ".join(kind for kind in (*GROUPS, "bound") if kind in kinds)
    other = "".join(f" --fail-on {group}" for group in groups)
    rest = f", or gate what can be compared:{other}" if groups else ""
    return f"{difference.text}: forbids the {gates} gates; {difference.flag_to_allow}{rest}"
