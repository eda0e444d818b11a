"""From a profiler's trace to seconds per stage of each step. No torch: events in, numbers out.

The trace is the one that ``torch.profiler`` exports for Chrome (Kineto's JSON): ``user_annotation`` events are our
ranges (a step, and inside it the parts of the model), ``cpu_op`` events are operations, ``cuda_runtime`` and
``cuda_driver`` events launch kernels, and a ``kernel`` event carries the ``correlation`` of its launch. A kernel
belongs to the range that was open on the host when it was launched; an operation on a CPU owns its time without that
of the operations inside it. Times of the trace are microseconds.

Of the experts' module only matrix products are ``experts``; what it does around them (sorting tokens by expert,
gathering, scattering, weighing) is ``dispatch``.

Which part of a step each module of a model is, and profiler ranges around them.

Found by structure, with the groups that parameters are counted by: the largest modules that hold one group alone are
one part (an experts module, a router, a norm, a dense MLP); what holds the projections of attention and nothing but
norms beside them is ``attention``, and the projections inside it are a part of their own; a block of experts and router
is ``dispatch`` wherever it is neither. So cache writes, rotary embedding and the attention function are ``attention``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.profiler import record_function

from moeprof.capture.models.groups import find_expert_layers
from moeprof.capture.models.parameters import parameter_groups
from moeprof.capture.models.wrap import Forward, Wrap, put_on
from moeprof.core.record.breakdown import Clock, ProfiledStep

PREFIX = "moeprof:"
STEP = f"{PREFIX}step"
EXPERTS = f"{PREFIX}experts"
LAUNCHES = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
# Operations and kernels that multiply matrices, by name: aten::bmm, aten::_grouped_mm, cutlass gemm, Triton products.
PRODUCT = re.compile(
    r"(^|[^a-z])(add|b|baddb|grouped_|scaled_|_int_)?mm([^a-z]|$)|matmul|linear|gemm|gemv|cutlass|cublas|nvjet|experts"
)
Event = Mapping[str, Any]


def profiled_steps(events: Iterable[Event], clock: Clock) -> list[ProfiledStep] | str:
    """Seconds per stage of every step in a trace, or why they cannot be told.

    Args:
        events: ``traceEvents`` of the exported trace.
        clock: ``kernels`` reads kernels of a device, ``operations`` operations of the host.
    """
    kept = [event for event in events if event.get("ph") == "X" and "dur" in event]
    steps = sorted((e for e in kept if _is(e, "user_annotation") and e["name"] == STEP), key=_start)
    if not steps:
        return "the profiler saw no step"
    host = _of_thread(kept, steps[0]["tid"])
    walk = _Walk([_Step(wall_us=float(step["dur"]), start=_start(step), end=_end(step)) for step in steps])
    walk.over(sorted((e for e in host if _is_ours(e)), key=lambda e: (_start(e), -float(e["dur"]))))
    if clock == "operations":
        return [step.of_operations() for step in walk.steps]
    kernels = [e for e in kept if _is(e, *ON_DEVICE)]
    if not any(_is(e, "kernel") for e in kernels):
        return "the profiler saw no kernels (no access to the device's counters, as in some virtual machines)"
    return _of_kernels(kernels, walk)


def _of_thread(events: list[Event], tid: Any) -> list[Event]:
    """What the thread of the steps did; all launches where the driver's library numbers threads in its own way."""
    launches = [e for e in events if _is(e, *LAUNCHES)]
    own = [e for e in launches if e.get("tid") == tid]
    return [e for e in events if e.get("tid") == tid and _is(e, "user_annotation", "cpu_op")] + (own or launches)


def _is_ours(event: Event) -> bool:
    """All but annotations of others (the profiler marks its own steps)."""
    return not _is(event, "user_annotation") or str(event["name"]).startswith(PREFIX)


def _of_kernels(kernels: list[Event], walk: _Walk) -> list[ProfiledStep]:
    spent: list[list[tuple[_Owner | None, float, str]]] = [[] for _ in walk.steps]
    for kernel in kernels:
        owner = walk.launched.get(_correlation(kernel))
        number = owner.step if owner is not None else walk.step_at(_start(kernel))
        if number is not None:
            spent[number].append((owner, float(kernel["dur"]) / 1e6, str(kernel["name"])))
    return [step.of_kernels(rows) for step, rows in zip(walk.steps, spent, strict=True)]


@dataclass(slots=True)
class _Owner:
    """Where on the host something happened: step, innermost range (None = the step itself), inside a product, when."""

    step: int
    range: str | None
    in_product: bool
    start: float

    def stage(self, step: _Step, name: str) -> str:
        if self.range is None:
            return step.stage_outside(self.start)
        if self.range == EXPERTS and not (self.in_product or PRODUCT.search(name.lower())):
            return "dispatch"
        return self.range.removeprefix(PREFIX)


@dataclass(slots=True)
class _Step:
    """One step of the trace; times in microseconds. ``first`` and ``last`` bound the ranges of the model in it."""

    wall_us: float
    start: float
    end: float
    first: float | None = None
    last: float | None = None
    operations: list[tuple[_Owner, float, str]] = field(default_factory=list)
    num_operations: int = 0

    def stage_outside(self, at: float) -> str:
        """What is in a step and in no part of the model: the batch before it, sampling after it, sums between."""
        if self.first is None or self.last is None or at < self.first:
            return "batch"
        return "sampling" if at >= self.last else "elementwise"

    def of_operations(self) -> ProfiledStep:
        stage_s = self._sums((owner, us / 1e6, name) for owner, us, name in self.operations)
        return ProfiledStep(wall_s=self.wall_us / 1e6, stage_s=stage_s, launches=self.num_operations)

    def of_kernels(self, rows: list[tuple[_Owner | None, float, str]]) -> ProfiledStep:
        placed = [(owner, seconds, name) for owner, seconds, name in rows if owner is not None]
        unplaced_s = sum(seconds for owner, seconds, _ in rows if owner is None)
        return ProfiledStep(
            wall_s=self.wall_us / 1e6, stage_s=self._sums(placed), launches=len(rows), unplaced_s=unplaced_s
        )

    def _sums(self, rows: Iterable[tuple[_Owner, float, str]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        for owner, seconds, name in rows:
            stage = owner.stage(self, name)
            sums[stage] = sums.get(stage, 0.0) + seconds
        return sums


@dataclass(slots=True)
class _Open:
    """An event that has not ended yet, in a walk through the host's events."""

    event: Event
    end: float
    owner: _Owner | None
    inner_us: float = 0.0


class _Walk:
    """Goes through the host's events in order of time and notes who owns what."""

    def __init__(self, steps: list[_Step]) -> None:
        self.steps = steps
        self.launched: dict[Any, _Owner] = {}
        self._open: list[_Open] = []
        self._number = -1

    def over(self, events: Iterable[Event]) -> None:
        """Events sorted by start, longer first."""
        for event in events:
            while self._open and self._open[-1].end <= _start(event):
                self._close()
            self._enter(event)
        while self._open:
            self._close()

    def step_at(self, at: float) -> int | None:
        """The step whose host time this is in (a device runs behind, so up to the next step's start)."""
        return next((n for n in range(len(self.steps) - 1, -1, -1) if self.steps[n].start <= at), None)

    def _enter(self, event: Event) -> None:
        around = self._open[-1] if self._open else None
        is_range = _is(event, "user_annotation")
        if is_range and event["name"] == STEP:
            self._number += 1
            owner: _Owner | None = _Owner(self._number, None, False, _start(event))
        elif around is None or around.owner is None:
            owner = None  # outside of every step
        elif is_range:
            owner = _Owner(self._number, str(event["name"]), False, _start(event))
            step = self.steps[self._number]
            step.first = _start(event) if step.first is None else step.first
            step.last = max(_end(event), step.last or 0.0)
        else:
            in_product = around.owner.in_product or bool(PRODUCT.search(str(event["name"]).lower()))
            owner = _Owner(self._number, around.owner.range, in_product, _start(event))
        if owner is not None and _is(event, *LAUNCHES):
            self.launched[_correlation(event)] = owner
        self._open.append(_Open(event, _end(event), owner))

    def _close(self) -> None:
        closed = self._open.pop()
        duration = float(closed.event["dur"])
        if self._open:
            self._open[-1].inner_us += duration
        if closed.owner is None or not _is(closed.event, "cpu_op"):
            return
        step = self.steps[closed.owner.step]
        step.num_operations += not self._open or not _is(self._open[-1].event, "cpu_op")
        step.operations.append((closed.owner, duration - closed.inner_us, str(closed.event["name"])))


def _correlation(event: Event) -> Any:
    """What a kernel shares with its launch; where there is none, what nothing shares."""
    found = (event.get("args") or {}).get("correlation")
    return id(event) if found is None else (found,)


def _is(event: Event, *categories: str) -> bool:
    return event.get("cat") in categories


def _start(event: Event) -> float:
    return float(event["ts"])


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])


OF_GROUP = {
    "embedding": "embedding",
    "attention": "attention_projections",
    "dense_mlp": "mlp",
    "router": "router",
    "shared_experts": "mlp",
    "routed_experts": "experts",
    "norm": "elementwise",
    "lm_head": "lm_head",
    "other": "elementwise",
}


def find_stages(model: nn.Module) -> dict[str, str]:
    """Module path -> stage, outer modules before inner ones; what runs inside both belongs to the inner one."""
    layers = find_expert_layers(model)
    of_module = _groups_of_modules(model, parameter_groups(model, layers))
    modules = dict(model.named_modules())
    blocks = {layer.name for layer in layers}
    stages: dict[str, str] = {}
    for path, groups in of_module.items():
        parent = path.rpartition(".")[0]
        if not path or not _is_called(modules[path]):
            continue
        if path in blocks:
            stages[path] = "dispatch"
        elif _is_attention(groups):
            if not _is_attention(of_module[parent]) or not _is_called(modules[parent]):
                stages[path] = "attention"
            if groups == {"attention"} and any(p.ndim >= 2 for p in modules[path].parameters(recurse=False)):
                stages[path] = "attention_projections"
        elif len(groups) == 1 and (of_module[parent] != groups or not _is_called(modules[parent])):
            stages[path] = OF_GROUP[next(iter(groups))]
    _add_tied_head(model, stages)
    return stages


def _add_tied_head(model: Any, stages: dict[str, str]) -> None:
    """A head that shares the embedding's weights is still the head; weights alone would call it an embedding."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for path, module in model.named_modules():
        if head is not None and module is head:
            stages[path] = "lm_head"


def _groups_of_modules(model: nn.Module, of_parameter: dict[str, str]) -> dict[str, frozenset[str]]:
    """The groups of all parameters in each module that has any."""
    found: dict[str, set[str]] = {path: set() for path, _ in model.named_modules()}
    for parameter, group in of_parameter.items():
        owner = parameter
        while owner:
            owner = owner.rpartition(".")[0]
            found[owner].add(group)
    return {path: frozenset(groups) for path, groups in found.items() if groups}


def _is_attention(groups: frozenset[str]) -> bool:
    return "attention" in groups and groups <= {"attention", "norm"}


def _is_called(module: nn.Module) -> bool:
    """Lists of modules are never called, so no range would open; their children are asked instead."""
    return not isinstance(module, nn.ModuleList | nn.ModuleDict)


@contextmanager
def stage_ranges(model: nn.Module, stages: dict[str, str]) -> Iterator[None]:
    """Inside, every module of ``stages`` opens a profiler range named after its stage; outside nothing is left."""
    handles = [
        put_on(model.get_submodule(path), "probe", _ranged(f"{PREFIX}{stage}")) for path, stage in stages.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ranged(name: str) -> Wrap:
    def wrap(inner: Forward) -> Forward:
        @functools.wraps(inner)
        def forward(*args: Any, **kwargs: Any) -> Any:
            with record_function(name):
                return inner(*args, **kwargs)

        return forward

    return wrap
