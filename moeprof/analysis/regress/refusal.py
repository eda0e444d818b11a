"""Which facts may differ between two sides, and the refusal where one forbids a gate in use: one line per fact."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from moeprof.analysis.compare.comparable import NOTHING, Difference, classes_of, forbidden_by
from moeprof.analysis.metrics.cards import has_card
from moeprof.analysis.regress.exact import exact_gate
from moeprof.analysis.regress.result import ChosenGate, GateResult
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import VERSION
from moeprof.core.baseline.baseline import Baseline
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
MOST_NAMED = 3  # figures that a line names
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


def forbidding(
    gates: Iterable[ChosenGate], found: Sequence[Difference], allow: Collection[str]
) -> list[tuple[Difference, ...]]:
    """For each gate the facts that differ and forbid it; none for a bound, which looks at one side.

    A model of another size is what the exact gates of a workload are there to tell, so that forbids them nothing; that
    of another workload is another model. The allocated KV cache is as large as the schedule needs, so that of another
    schedule forbids it.
    """
    free = [one for one in found if one.name not in allow]
    is_another = any(one.name == "workload" for one in free)

    def forbids(one: Difference, chosen: ChosenGate) -> bool:
        if chosen.gate.metric == "kv_cache_bytes":
            return one.name == "schedule"
        if chosen.kind == "exact" and one.name == "model":
            return is_another
        return bool(one.forbids & classes_of(chosen.gate.metric))

    def against(chosen: ChosenGate) -> tuple[Difference, ...]:
        own = [one for one in free if one.model in (None, chosen.model)]
        hit = [one for one in own if forbids(one, chosen)]
        # that a fact forbids a count is the other workload's doing, which comes first in `found`
        return tuple(one for one in own if one in hit or (one.name == "workload" and hit))

    return [() if chosen.kind == "bound" else against(chosen) for chosen in gates]


def refuse_incomparable(gates: Sequence[ChosenGate], found: Sequence[Difference], allow: Collection[str]) -> None:
    """Refuse where a fact that differs forbids a gate in use.

    Raises:
        IncomparableError: one line per fact, with the flag that allows it and the gates that could still be judged.
    """
    hit: dict[str, tuple[Difference, dict[str, None]]] = {}
    free: set[str] = set()
    for chosen, against in zip(gates, forbidding(gates, found, allow), strict=True):
        for one in against:
            hit.setdefault(one.text, (one, {}))[1][chosen.kind] = None
        if not against and chosen.kind != "bound":
            free.add(chosen.kind)
    stopped = {kind for _, kinds in hit.values() for kind in kinds}
    groups = [group for group in GROUPS if group in free - stopped]
    if hit:
        raise IncomparableError([_line(one, list(kinds), groups) for one, kinds in hit.values()])


def judged_all_the_same(
    gates: Sequence[ChosenGate], found: Sequence[Difference], allow: Collection[str]
) -> tuple[tuple[ChosenGate, ...], tuple[GateResult, ...]]:
    """The gates that nothing forbids, and the others as incomparable, where a counted fact is worse for certain.

    That is known whatever else differs, and hiding it behind a refusal would help nobody. Of another workload it is no
    regression of this one.

    Raises:
        IncomparableError: something forbids a gate, and no counted fact is worse.
    """
    against = forbidding(gates, found, allow)
    free = tuple(chosen for chosen, facts in zip(gates, against, strict=True) if not facts)
    is_another = any(one.name == "workload" for facts in against for one in facts)
    if is_another or not any(chosen.kind == "exact" and exact_gate(chosen).verdict == "worse" for chosen in free):
        refuse_incomparable(gates, found, allow)
    stopped = tuple(_stopped(chosen, facts) for chosen, facts in zip(gates, against, strict=True) if facts)
    return free, stopped


def _stopped(chosen: ChosenGate, facts: Sequence[Difference]) -> GateResult:
    """The gate as incomparable, for the fact that nothing allows, or for the first; all flags together decide it."""
    final = next((one for one in facts if one.flag_to_allow is None), None)
    names = ",".join(dict.fromkeys(one.name for one in facts))
    return replace(chosen, reference=None, other=None, figure=None).judged(
        Ratio(value=None, verdict="incomparable", reason=(final or facts[0]).text),
        n="not compared",
        decide=f"--allow {names}" if final is None else None,
    )


def without_agreement_between_checkpoints(
    gates: Iterable[ChosenGate], found: Sequence[Difference]
) -> tuple[ChosenGate, ...]:
    """The gates without the default one on agreement where a model's revision differs.

    Another checkpoint routes otherwise by its nature: a few training steps moved 3 to 4 % of the demo MoE's picks. How
    much stands on the page; what is gated is what tells collapse: dead experts, the busiest expert's load, quality.
    """
    new = {one.model for one in found if one.name == "revision"}
    return tuple(
        chosen
        for chosen in gates
        if not (
            chosen.is_default
            and chosen.gate.metric == "routing_agreement_ratio"
            and (None in new or chosen.model in new)
        )
    )


def refuse_lost_models(
    reference: Baseline, other: Baseline, found: Sequence[Difference], allow: Collection[str]
) -> None:
    """A model that the new run lacks has lost its gates, which must not look like a pass.

    Raises:
        IncomparableError: there is one, and that was not allowed.
    """
    held = {model.name for model in other.models}
    lost = [model.name for model in reference.models if model.name not in held]
    if lost and "models" not in allow:
        another = [f"{_what(one)}; {one.flag_to_allow}" for one in found if one.name == "workload"]
        what = f"models: {', '.join(lost)} of {reference.name}, not in {other.name}"
        cure = "--allow models, or give the model its old name"
        raise IncomparableError([*another, f"{what}: its gates would be lost in silence; {cure}"])


def without_unknown_metrics(side: Baseline, allow: Collection[str]) -> tuple[Baseline, str | None]:
    """The side without figures that this version has no card for, and what to say about them; None where it has none.

    A file of another version may hold a figure under another name, so that the gate on it would look at nothing.

    Raises:
        IncomparableError: it has some, and that was not allowed.
    """
    names = [name for name in dict.fromkeys(v.name for m in side.models for v in m.metrics) if not has_card(name)]
    if not names:
        return side, None
    listed = ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
    figures = "a figure" if len(names) == 1 else f"{len(names)} figures"
    held = f"the baseline {side.name} has {figures} that this version of moeprof does not know: {listed}"
    versions = f"it was saved by moeprof {side.moeprof or 'of an unknown version'}, this is {VERSION}"
    if "metrics" not in allow:
        cure = "save it again with this version (--replace) or upgrade moeprof; --allow metrics judges without"
        raise IncomparableError([f"{held} ({versions}); {cure}"])
    known = (replace(m, metrics=tuple(v for v in m.metrics if v.name not in names)) for m in side.models)
    return replace(side, models=tuple(known)), f"Judged without: {held} ({versions})."


def _what(difference: Difference) -> str:
    """The difference as a refusal begins: ``another workload: chat against ci-smoke``."""
    return f"another {difference.text}" if difference.name == "workload" else difference.text


def _line(difference: Difference, kinds: Sequence[str], groups: Sequence[str]) -> str:
    *others, last = [kind for kind in (*GROUPS, "bound") if kind in kinds]
    gates = f"{', '.join(others)} and {last}" if others else last
    other = "".join(f" --fail-on {group}" for group in groups)
    rest = f", or gate what can be compared:{other}" if groups else ""
    cure = difference.flag_to_allow or "nothing allows it"
    return f"{_what(difference)}: forbids the {gates} gates; {cure}{rest}"
