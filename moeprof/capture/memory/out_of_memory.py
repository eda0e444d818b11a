"""The allocator's error in the user's words: what was being done, what was there, what to change to which value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch

from moeprof.capture.memory.predict import PAGE_TOKENS
from moeprof.capture.protocol import WorkerPlan
from moeprof.core.errors import OutOfMemoryError
from moeprof.core.units import num_bytes
from moeprof.core.workload.engine import TransformersSettings

FRAGMENTED_RATIO = 0.10  # more than that of the reserved memory lies in pieces
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """What the worker is at, for the message.

    Attributes:
        phase: in words: ``loading``, ``KV cache``, ``capturing``, ``a pass`` and the like.
        kv_bytes_per_token: of the cache, once it is known.
    """

    phase: str = "starting"
    kv_bytes_per_token: int | None = None


_START = Doing()
_DOING: ContextVar[Doing] = ContextVar("doing", default=_START)


def doing(phase: str, *, kv_bytes_per_token: int | None = None) -> None:
    """Say what begins now; the message of an out-of-memory error names it."""
    now = _DOING.get()
    _DOING.set(replace(now, phase=phase, kv_bytes_per_token=kv_bytes_per_token or now.kv_bytes_per_token))


@contextmanager
def as_out_of_memory(plan: WorkerPlan) -> Iterator[None]:
    """Turn the allocator's error into ours: what was needed, what was there, which setting to change.

    Raises:
        OutOfMemoryError: instead of torch's or Python's.
    """
    _DOING.set(_START)
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(explain(plan, error, _DOING.get())) from error


def explain(plan: WorkerPlan, error: BaseException, now: Doing) -> str:
    """One line."""
    first = (str(error).splitlines() or [""])[0]
    asked, free = _size(r"Tried to allocate ([\d.]+) (\w+)", first), _size(r"of which ([\d.]+) (\w+) is free", first)
    said = f"asked for {num_bytes(asked)}" if asked is not None else first or "the allocator gave up"
    if asked is not None and free is not None:
        said += f", {num_bytes(free)} was free"
    parts = [f"{plan.label}: out of memory on {plan.device} ({now.phase}): {said}"]
    state = allocator_state(torch.device(plan.device)) if plan.device != "cpu" else None
    if state is not None:
        parts.append(state.words())
    short = None if asked is None or free is None else max(0, asked - free)
    parts.append(_advice(plan, now, short, state))
    return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorState:
    """torch's allocator after the error.

    Attributes:
        allocated_bytes: held by tensors.
        reserved_bytes: taken from the device.
        largest_free_bytes: largest piece of the reserved memory that no tensor holds; None when not told.
    """

    allocated_bytes: int
    reserved_bytes: int
    largest_free_bytes: int | None

    @property
    def fragmentation_ratio(self) -> float:
        """1 - allocated / reserved."""
        return 1 - self.allocated_bytes / self.reserved_bytes if self.reserved_bytes else 0.0

    def words(self) -> str:
        """For the message."""
        largest = (
            "" if self.largest_free_bytes is None else f", largest free piece {num_bytes(self.largest_free_bytes)}"
        )
        return (
            f"the allocator holds {num_bytes(self.allocated_bytes)} in tensors of {num_bytes(self.reserved_bytes)} "
            f"reserved ({self.fragmentation_ratio:.1%} unused{largest})"
        )


def allocator_state(device: torch.device) -> AllocatorState | None:
    """What the allocator tells; None where it cannot (a lost device)."""
    try:
        stats = torch.cuda.memory_stats(device)
        allocated, reserved = stats["allocated_bytes.all.current"], stats["reserved_bytes.all.current"]
    except (RuntimeError, KeyError, AssertionError):
        return None
    largest = None
    with suppress(RuntimeError, KeyError, AttributeError, TypeError):
        snapshot: Any = torch.cuda.memory_snapshot  # not annotated in torch
        free = [block["size"] for part in snapshot() for block in part["blocks"] if block["state"] == "inactive"]
        largest = max(free, default=0)
    return AllocatorState(allocated_bytes=allocated, reserved_bytes=reserved, largest_free_bytes=largest)


def _size(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return None if found is None or found[2] not in _UNITS else int(float(found[1]) * _UNITS[found[2]])


def _advice(plan: WorkerPlan, now: Doing, short: int | None, state: AllocatorState | None) -> str:
    """What to change, with values."""
    engine = plan.engine
    if not isinstance(engine, TransformersSettings):
        return "choose a smaller model"
    changes = []
    if now.phase.startswith("loading"):
        changes.append("choose a smaller model or dtype, or fewer layers of random weights (override)")
    elif now.phase.startswith("captur"):
        changes.append(f"lower engine.max_sequences from {engine.max_sequences} to {max(1, engine.max_sequences // 2)}")
        changes.append("or set engine.decode_graphs: off")
    if not now.phase.startswith("loading"):
        changes += _fewer_tokens(engine, now, short)
    if state is not None and state.fragmentation_ratio > FRAGMENTED_RATIO:
        changes.append("the unused memory lies in pieces: PYTORCH_ALLOC_CONF=expandable_segments:True helps")
    return ", ".join(changes)


def _fewer_tokens(engine: TransformersSettings, now: Doing, short: int | None) -> list[str]:
    """A smaller cache by what was short and a tenth more, where that is known; else half of it. Smaller steps."""
    tokens, found = engine.max_batch_tokens, []
    if engine.kv_tokens is not None:
        fewer = engine.kv_tokens // 2
        if short is not None and now.kv_bytes_per_token:
            fewer = max(PAGE_TOKENS, engine.kv_tokens - int(1.1 * short / now.kv_bytes_per_token))
        fewer = fewer // PAGE_TOKENS * PAGE_TOKENS
        if 0 < fewer < engine.kv_tokens:
            found.append(f"lower engine.kv_tokens from {engine.kv_tokens} to {fewer}")
    if tokens >= 2 * PAGE_TOKENS:
        found.append(f"{'or ' if found else 'lower '}engine.max_batch_tokens from {tokens} to {tokens // 2}")
    return found or ["choose a smaller model"]
