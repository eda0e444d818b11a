"""Can a workload's lock-step and ladder be run? Told before anything is loaded, from configs and schedules alone."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from moeprof.capture.lockstep_plan import wanted_requests
from moeprof.capture.routing_replay import check_same_requests
from moeprof.capture.schedules import Scheduled
from moeprof.core.errors import WorkloadError
from moeprof.core.modelspec import ModelSpec
from moeprof.core.workload import Workload

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
TOP_K_KEYS = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k",
)
FREE = "a request may end early under `outputs: free`, so steps have no equal batches; use forced or forced_length"


def check_workload(workload: Workload, configs: dict[str, dict[str, Any]], schedules: dict[str, Scheduled]) -> Workload:
    """The workload with the ladder's model chosen, checked.

    Raises:
        WorkloadError: no MoE for the ladder, more requests in flight than there are, outputs that are not forced, or
            recorded picks of other requests.
    """
    for spec in workload.models:
        if spec.routing.policy == "replay":
            if workload.sweep is not None:
                raise WorkloadError(
                    f"sweep: model {spec.name} replays the picks of recorded requests, and a sweep sends others; leave "
                    "sweep or routing out"
                )
            check_same_requests(Path(str(spec.routing.path)), schedules[spec.name].measured)
    if workload.lockstep is not None:
        available = len(schedules[workload.models[0].name].measured)
        _check_enough("lockstep", workload.lockstep.concurrency, workload.lockstep.num_requests, available)
    if workload.ladder is None:
        return workload
    if workload.outputs == "free":
        raise WorkloadError(f"ladder: {FREE}")
    model = choose_moe(workload, configs)
    _check_distinct(workload.ladder.distinct, configs[model.name])
    available = len(schedules[model.name].measured)
    _check_enough("ladder", workload.ladder.concurrency, workload.ladder.num_requests, available)
    return replace(workload, ladder=replace(workload.ladder, model=model.name))


def choose_moe(workload: Workload, configs: dict[str, dict[str, Any]]) -> ModelSpec:
    """The MoE of the ladder: the named one, or the first of the workload.

    Raises:
        WorkloadError: no such model, a twin, or no model with routed experts.
    """
    assert workload.ladder is not None
    moes = [spec for spec in workload.models if spec.twin_of is None and _has_experts(configs[spec.name])]
    asked, names = workload.ladder.model, ", ".join(spec.name for spec in moes) or "none"
    if asked is None and not moes:
        listed = ", ".join(spec.name for spec in workload.models)
        raise WorkloadError(f"ladder: no model of this workload has routed experts (found {listed}); add an MoE")
    found = moes[0] if asked is None else next((spec for spec in workload.models if spec.name == asked), None)
    if found is None:
        raise WorkloadError(f"ladder.model: no model named {asked!r} in this workload; models with experts: {names}")
    if found not in moes:
        raise WorkloadError(f"ladder.model: {found.name} has no routed experts; models with experts: {names}")
    return found


def ladder_twins(workload: Workload, moe: ModelSpec) -> tuple[ModelSpec, ModelSpec]:
    """The active-matched and the total-matched twin: the workload's own, or new ones with random weights."""
    return _twin(workload, moe, "active"), _twin(workload, moe, "total")


def _twin(workload: Workload, moe: ModelSpec, match: str) -> ModelSpec:
    own = (spec for spec in workload.models if spec.twin_of == moe.name and spec.match == match)
    new = ModelSpec(name=f"{moe.name[: 63 - len(match)]}-{match}", twin_of=moe.name, match=match, dtype=moe.dtype)
    return next(own, new)


def _has_experts(config: dict[str, Any]) -> bool:
    """Does a config.json, or a part of it, name more than one expert?"""
    for key, value in config.items():
        if key in EXPERT_COUNTS and isinstance(value, int) and value > 1:
            return True
        if isinstance(value, dict) and _has_experts(value):
            return True
    return False


def _check_distinct(distinct: tuple[int, ...], config: dict[str, Any]) -> None:
    """A step cannot touch fewer experts than one token takes, or more than there are."""
    least, most = _number(config, TOP_K_KEYS), _number(config, EXPERT_COUNTS)
    for wanted in distinct:
        if (least is not None and wanted < least) or (most is not None and wanted > most):
            raise WorkloadError(
                f"ladder.distinct: found {wanted}; {least or 1} (what one token takes) to "
                f"{most or 'all experts'} is allowed"
            )


def _number(config: dict[str, Any], keys: Collection[str]) -> int | None:
    """The largest number under one of these keys, in a config.json or a part of it."""
    found = [value for key, value in config.items() if key in keys and type(value) is int]
    found += [n for value in config.values() if isinstance(value, dict) and (n := _number(value, keys)) is not None]
    return max(found, default=None)


def _check_enough(key: str, concurrency: tuple[int, ...], num_requests: int | None, available: int) -> None:
    for wanted in concurrency:
        found = wanted_requests(num_requests, wanted, available)
        if wanted > found:
            raise WorkloadError(
                f"{key}.concurrency: {wanted} in flight, but only {found} requests are sent; lower it, or give more "
                f"requests ({key}.num_requests, traffic.num_requests)"
            )
