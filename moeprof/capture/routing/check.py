"""Does the tap say the truth about this model? Asked before every replay; the answer goes into the record.

Five claims: a hook fires once per MoE layer and forward, the number of picks per token is the configured top-k, every
id is an expert's, the counts are real tokens x k, and changing the picks changes what the layer computes (what was
routed is what is executed). A claim that fails makes the routing figures null with that reason; it is no crash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from moeprof.capture.engines.base import BatchLayout, Engine, ListenerSet
from moeprof.capture.models.moe_layers import MoeLayer
from moeprof.capture.models.wrap import before, plain_forward, put_on
from moeprof.capture.routing.tap import RoutingTap


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One claim.

    Attributes:
        name: stable identifier.
        passed: whether it holds; None where it cannot be asked of this model (the detail says why).
        detail: what was seen.
    """

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """The answer.

    Attributes:
        passed: no claim failed.
        checks: the claims.
        notes: what a reader should know about this architecture.
        executes_all_experts: the code runs every expert on every token: counts are what was routed.
    """

    passed: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    executes_all_experts: bool = False

    @property
    def reason(self) -> str | None:
        """Why routing figures are null, or None."""
        failed = [f"{check.name}: {check.detail}" for check in self.checks if check.passed is False]
        return "; ".join(failed) or None


class _Watcher:
    """Counts calls, keeps picks of the forwards, and the inputs of one experts module."""

    def __init__(self, tap: RoutingTap) -> None:
        self._tap = tap
        self.fired = [0] * len(tap.layers)
        self.num_replayed = 0
        self.forwards: list[tuple[list[torch.Tensor | None], BatchLayout]] = []
        self.bad_ids: list[str] = []
        self.inputs: tuple[MoeLayer, tuple[Any, ...]] | None = None
        self._handles = [put_on(layer.tapped, "probe", before(self._count(i))) for i, layer in enumerate(tap.layers)]
        tap.on_picks = self.on_picks

    def _count(self, index: int) -> Callable[[tuple[Any, ...]], None]:
        def look(args: tuple[Any, ...]) -> None:
            if not self._tap.announced:
                return  # a step is being captured: nothing of this may become part of it
            self.fired[index] += 1
            layer = self._tap.layers[index]
            if self.inputs is None and layer.hook == "experts_arguments" and len(args) >= 3:
                self.inputs = (layer, tuple(arg.clone() for arg in args[:3]))

        return look

    def on_picks(self, seen: list[torch.Tensor | None], layout: BatchLayout) -> bool:
        """Look before the tap counts: an id out of range would be an error of the device, so it is not counted."""
        self.forwards.append((seen, layout))
        self.num_replayed += self._tap.was_replayed
        good = True
        for layer, picks in zip(self._tap.layers, seen, strict=True):
            if picks is None or not picks.numel():
                continue
            low, high = int(picks.min()), int(picks.max())
            if low < 0 or (high >= layer.num_experts + layer.num_identity and high != self._tap.dropped_id):
                self.bad_ids.append(f"{layer.name}: ids {low} to {high} for {layer.num_experts} experts")
                good = False
        return good

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._tap.on_picks = None


def self_check(tap: RoutingTap, engine: Engine, listeners: ListenerSet, run: Callable[[], object]) -> SelfCheck:
    """Run a few steps and check every claim the tap makes.

    Args:
        tap: enabled, nothing pending.
        engine: the engine that ``run`` drives (named in the details).
        listeners: its listeners; the tap is added for the run when it is not among them.
        run: runs some steps with at least one prefill and one decode.
    """
    added = tap not in listeners.listeners
    if added:
        listeners.listeners.append(tap)
    tap.discard()
    watcher = _Watcher(tap)
    try:
        run()
        blocks = tap.collect_blocks(everything=True)
    finally:
        watcher.close()
        if added:
            listeners.listeners.remove(tap)
    checks = [_fired_once(tap, watcher, engine), _top_k(tap, watcher), _ids(watcher)]
    checks += [_sums(tap, blocks, bool(watcher.bad_ids)), _executed(tap, watcher)]
    notes = tuple(dict.fromkeys(note for layer in tap.layers for note in layer.notes))
    return SelfCheck(
        passed=all(check.passed is not False for check in checks),
        checks=tuple(checks),
        notes=notes,
        executes_all_experts=any(layer.executes_all_experts for layer in tap.layers),
    )


def _fired_once(tap: RoutingTap, watcher: _Watcher, engine: Engine) -> Check:
    num = len(watcher.forwards)
    called = num - watcher.num_replayed  # in a captured step no module is called; its picks are looked at below
    wrong = [(layer.name, n) for layer, n in zip(tap.layers, watcher.fired, strict=True) if n != called]
    detail = f"{num} forwards of the {engine.facts.batching} engine, {len(tap.layers)} MoE layers"
    if watcher.num_replayed:
        detail += f", {watcher.num_replayed} of the forwards were replays of captured steps"
    if wrong:
        detail += f"; {wrong[0][0]} fired {wrong[0][1]} times"
    return Check(name="fires_once", passed=num > 0 and not wrong, detail=detail)


def _top_k(tap: RoutingTap, watcher: _Watcher) -> Check:
    for seen, _ in watcher.forwards:
        for layer, picks in zip(tap.layers, seen, strict=True):
            if picks is None:
                return Check(name="top_k", passed=False, detail=f"{layer.name}: called without picks by position")
            if picks.shape[-1] != layer.top_k:
                detail = f"{layer.name}: {picks.shape[-1]} picks per token, top-k is {layer.top_k}"
                return Check(name="top_k", passed=False, detail=detail)
    return Check(name="top_k", passed=bool(watcher.forwards), detail="picks per token = top-k in every layer")


def _ids(watcher: _Watcher) -> Check:
    detail = watcher.bad_ids[0] if watcher.bad_ids else "all ids are experts"
    return Check(name="ids_in_range", passed=not watcher.bad_ids, detail=detail)


def _sums(tap: RoutingTap, blocks: list[Any], unusable: bool) -> Check:
    if unusable or not blocks:
        return Check(name="counts_are_tokens_times_k", passed=False, detail="nothing could be counted")
    for block in blocks:
        sums_SLG = block.counts_SLGE.sum(axis=-1) + block.dropped_SLG + block.identity_SLG
        for i, layer in enumerate(tap.layers):
            if (sums_SLG[:, i] != block.tokens_SG * layer.top_k).any():
                detail = f"{layer.name}: {int(sums_SLG[:, i].sum())} picks of {int(block.tokens_SG.sum())} tokens"
                return Check(name="counts_are_tokens_times_k", passed=False, detail=detail)
    tokens = sum(int(block.tokens_SG.sum()) for block in blocks)
    return Check(name="counts_are_tokens_times_k", passed=True, detail=f"{tokens} real tokens, padding left out")


def _executed(tap: RoutingTap, watcher: _Watcher) -> Check:
    """Run one experts module again with every pick moved to the next expert: its output must change."""
    name = "executed_is_routed"
    if any(layer.executes_all_experts for layer in tap.layers):
        return Check(name=name, passed=None, detail="this code runs every expert on every token; counts are routed")
    if watcher.inputs is None:
        return Check(name=name, passed=None, detail="picks are read from the router's own dispatch order")
    layer, (hidden, picks, weights) = watcher.inputs
    if layer.num_experts < 2:
        return Check(name=name, passed=None, detail="one expert only")
    with torch.inference_mode():
        run = plain_forward(layer.experts)  # the tap and a routing override stay out of it
        moved = run(hidden, (picks + 1) % layer.num_experts, weights)
        same = bool(torch.equal(run(hidden, picks, weights), moved))
    detail = "other picks give the same output" if same else "other picks give another output"
    return Check(name=name, passed=not same, detail=f"{layer.name}: {detail}")
