"""Checks at the end of each pass, stored in pass.json: what must add up, does it?

Per layer, counts = real tokens x k, where real tokens = input + output - 1 + recomputed - cached per
request. A failing check is data (the metrics it concerns become null with that reason), not a crash.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moeprof.core.record.routing import Routing
from moeprof.core.record.tables import read_table


def check_pass(folder: Path, *, complete: bool, tells_steps: bool = True) -> dict[str, Any]:
    """The invariants of a finished pass folder: {name: {"passed": bool, "text": ...}}.

    Of an engine that tells no steps none can be checked but that tokens came as they were asked for.
    """
    requests, steps = read_table(folder, "requests"), read_table(folder, "steps")
    if not tells_steps:
        whole = requests[requests["status"] == "done"]
        most = int(whole["asked_output_tokens"].sum())
        return {"output_tokens": _equal("output tokens asked for and got", most, int(whole["output_tokens"].sum()))}
    ran = requests[requests["status"].isin(["done", "unfinished"])]
    done = requests[requests["status"] == "done"]
    computed = int((steps["prefill_tokens"] + steps["decode_tokens"]).sum())
    expected = int(
        (done["input_tokens"] + done["output_tokens"] - 1 + done["recomputed_tokens"] - done["cached_tokens"]).sum()
    )
    checks = {
        "new_tokens": _equal(
            "output tokens of requests", int(ran["output_tokens"].sum()), int(steps["new_tokens"].sum())
        ),
    }
    phantom = ran[(ran["recomputed_tokens"] > 0) & (ran["num_preemptions"] == 0)]
    checks["recomputed_only_after_preemption"] = {
        "passed": phantom.empty,
        "text": "no token was computed twice without a preemption"
        if phantom.empty
        else f"request {phantom['request_id'].iloc[0]}: {phantom['recomputed_tokens'].iloc[0]} tokens too many",
    }
    if complete:
        checks["computed_tokens"] = _equal("input + output - 1 + recomputed - cached", expected, computed)
    path = folder / "routing.npz"
    if path.exists():
        checks |= _routing_checks(Routing.load(path), computed)
    return checks


def _routing_checks(routing: Routing, computed: int) -> dict[str, Any]:
    tokens = int(routing.real_tokens_WPC.sum())
    executed_L = routing.counts_WPCLE.sum(axis=(0, 1, 2, 4))
    apart_L = routing.dropped_PL.sum(axis=0) + routing.identity_PL.sum(axis=0)
    wrong = [
        f"{name}: {int(n)} + {int(a)} apart, expected {tokens * int(k)}"
        for name, n, a, k in zip(routing.layer_names, executed_L, apart_L, routing.top_k_L, strict=True)
        if int(n) + int(a) != tokens * int(k)
    ]
    return {
        "routed_tokens": _equal("tokens computed in steps and tokens the tap saw", computed, tokens),
        "counts_are_tokens_times_k": {
            "passed": not wrong,
            "text": wrong[0] if wrong else f"{len(executed_L)} layers, {tokens} tokens each",
        },
    }


def _equal(what: str, expected: int, found: int) -> dict[str, Any]:
    return {"passed": expected == found, "text": f"{what}: {expected} and {found}"}
