"""A tap on an engine that shows its picks after each step: the same counting, no watchers of ours on modules.

And the check of what it shows, before anything is measured: the claims of check.py that can be asked without a module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch

from moeprof.capture.engines.base import Engine, Step
from moeprof.capture.engines.deployment import ShownRouter
from moeprof.capture.models.moe_layers import MoeLayer
from moeprof.capture.replay import Recorder
from moeprof.capture.routing.check import Check, SelfCheck
from moeprof.capture.routing.tap import PICKS_CAP_BYTES, Removable, RoutingTap


class ShownTap(RoutingTap):
    """Counts what an engine shows; see RoutingTap for the arguments."""

    def __init__(
        self,
        router: ShownRouter,
        device: torch.device,
        class_names: Sequence[str] = ("all",),
        *,
        save_picks: bool = False,
        picks_cap_bytes: int = PICKS_CAP_BYTES,
    ) -> None:
        self.router = router
        layers = cast("Sequence[MoeLayer]", router.layers)  # counting needs names and numbers of them alone
        super().__init__(device, layers, class_names, save_picks=save_picks, picks_cap_bytes=picks_cap_bytes)

    def put_on(self) -> list[Removable]:
        """Ask the engine to show its picks."""
        self.router.watch(True)
        return [_Watched(self.router)]

    def after_forward(self) -> None:
        """Take what is shown, then keep it as any tap does."""
        if self._layout is not None and self._label is not None:
            for cell, picks in zip(self._cells, self.router.take(self._label.width), strict=True):
                cell[0] = picks
        super().after_forward()


class _Watched:
    """Until it is removed the engine shows its picks."""

    def __init__(self, router: ShownRouter) -> None:
        self._router = router

    def remove(self) -> None:
        """No longer."""
        self._router.watch(False)


class _Outputs(Recorder):
    """The tokens that the model itself would have chosen, by request."""

    def __init__(self) -> None:
        self.chosen: dict[int, list[int | None]] = {}

    def on_step(self, step: Step, num_waiting: int) -> None:
        for one in step.sequences:
            if one.token is not None:
                self.chosen.setdefault(one.request, []).append(one.chosen)


def check_shown(tap: ShownTap, engine: Engine, run: Callable[[Sequence[Recorder]], object]) -> SelfCheck:
    """Run some steps and check what is shown of them, then run them again with every executed pick moved on.

    Args:
        tap: enabled and listening, nothing pending.
        engine: that ``run`` drives.
        run: runs the same few requests, each with a prefill and a decode, told to these recorders.
    """
    seen: list[list[torch.Tensor | None]] = []
    own, moved = _Outputs(), _Outputs()
    picks, _, blocks = _ran(tap, engine, run, own, seen)
    checks = [_shown_once(picks), _ids(tap, picks), _sums(tap, blocks)]
    checks.append(_executed(tap, engine, run, picks, own, moved))
    return SelfCheck(
        passed=all(check.passed is not False for check in checks), checks=tuple(checks), notes=(tap.router.how,)
    )


Seen = list[list[torch.Tensor | None]]


def _ran(
    tap: ShownTap, engine: Engine, run: Callable[[Sequence[Recorder]], object], outputs: _Outputs, seen: Seen
) -> tuple[Seen, _Outputs, list[Any]]:
    tap.discard()

    def look(picks: list[torch.Tensor | None], layout: object) -> bool:
        seen.append([None if one is None else one.cpu() for one in picks])
        return _bad(tap, picks) is None

    tap.on_picks = look
    try:
        run([outputs])
        blocks = tap.collect_blocks(everything=True)
    finally:
        tap.on_picks = None
        engine.reset()
        tap.discard()
    return seen, outputs, blocks


def _bad(tap: ShownTap, picks: Sequence[torch.Tensor | None]) -> str | None:
    """Where ids are none of an expert, or None."""
    for layer, one in zip(tap.layers, picks, strict=True):
        if one is not None and one.numel() and not 0 <= int(one.min()) <= int(one.max()) < layer.num_experts:
            return f"{layer.name}: ids {int(one.min())} to {int(one.max())} for {layer.num_experts} experts"
    return None


def _shown_once(seen: Seen) -> Check:
    missed = sum(one is None for picks in seen for one in picks)
    detail = f"{len(seen)} forwards, {len(seen[0]) if seen else 0} MoE layers"
    if missed:
        detail += f"; {missed} times a layer did not show just the tokens of its forward"
    return Check(name="fires_once", passed=bool(seen) and not missed, detail=detail)


def _ids(tap: ShownTap, seen: Seen) -> Check:
    bad = next((found for picks in seen if (found := _bad(tap, picks)) is not None), None)
    return Check(name="ids_in_range", passed=bad is None, detail=bad or "all ids are experts")


def _sums(tap: ShownTap, blocks: Sequence[Any]) -> Check:
    name, tokens = "counts_are_tokens_times_k", sum(int(block.tokens_SG.sum()) for block in blocks)
    for i, layer in enumerate(tap.layers):
        counted = sum(int(block.counts_SLGE[:, i].sum()) for block in blocks)
        if counted != tokens * layer.top_k:
            return Check(name=name, passed=False, detail=f"{layer.name}: {counted} picks of {tokens} tokens")
    return Check(name=name, passed=bool(blocks), detail=f"{tokens} real tokens" if blocks else "nothing was counted")


def _executed(
    tap: ShownTap,
    engine: Engine,
    run: Callable[[Sequence[Recorder]], object],
    picks: Seen,
    own: _Outputs,
    moved: _Outputs,
) -> Check:
    """With every pick moved to the next expert, later layers must pick otherwise, or the model choose other tokens."""
    name = "executed_is_routed"
    if not tap.router.move(1):
        return Check(name=name, passed=None, detail="what is shown is written by the engine's own code")
    try:
        others, _, _ = _ran(tap, engine, run, moved, [])
    finally:
        tap.router.move(0)
    same = own.chosen == moved.chosen and all(
        a is not None and b is not None and torch.equal(a, b)
        for before, after in zip(picks, others, strict=False)
        for a, b in zip(before[1:], after[1:], strict=True)
    )
    detail = "other picks give the same output" if same else "other picks give another output"
    return Check(name=name, passed=not same, detail=detail)
