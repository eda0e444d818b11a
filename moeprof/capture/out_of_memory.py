"""The allocator's error in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moeprof.capture.lockstep_plan import LockstepPlan
from moeprof.capture.plan import LaunchPlan
from moeprof.core.errors import OutOfMemoryError


@contextmanager
def as_out_of_memory(plan: LaunchPlan | LockstepPlan) -> Iterator[None]:
    """Turn the allocator's error into ours: what was needed, what was there, which setting to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        first = str(error).splitlines()[0] if str(error) else "the allocator gave up"
        raise OutOfMemoryError(
            f"{plan.label}: out of memory on {plan.device}: {first} "
            f"Lower engine.kv_tokens (now {plan.engine.kv_tokens}) or engine.max_batch_tokens "
            f"(now {plan.engine.max_batch_tokens}), or choose a smaller model"
        ) from error
