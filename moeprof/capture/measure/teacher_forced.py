"""Teacher-forced routing of a launch: where the model sends a fixed text, in ``forced.npz`` beside launch.json."""

from __future__ import annotations

from typing import Any

from moeprof.capture.instrumented import Launched
from moeprof.capture.routing.teacher_forced import record_forced_picks
from moeprof.core.record.picks import FILE_NAME, save_forced_picks


def measure(launched: Launched) -> dict[str, Any]:
    """Record it; how many tokens of what text, or why there are none."""
    plan, routing = launched.plan, launched.model.routing
    if plan.engine.parallel is not None and routing.always:
        return {"reason": "routing is overridden and ranks share the model"}
    with launched.model.without_engine():
        found = record_forced_picks(
            launched.model.deployment.module, routing.layers, launched.schedule, plan.alone.class_names,
            listeners=routing.always, should_stop=launched.should_stop,
        )  # fmt: skip
    if isinstance(found, str):
        return {"reason": found}
    save_forced_picks(plan.folder / FILE_NAME, found)
    return {"tokens": found.num_tokens, "requests": found.num_requests, "sha256": found.tokens_sha256}
