"""Listens for where tokens went: ``routing.npz``.

After each step the tap's counts [layers, phase x class, experts] come to the host. They are added to the current
window, and the step's distinct experts and largest load are kept per layer. Each closed window goes to disk at once, so
a kill loses at most one window; the end of the pass joins the parts. Legend: W windows, P phases, C classes, L layers,
E experts, S steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moeprof.capture.engine.base import Step
from moeprof.capture.recorders.picks import PicksWriter
from moeprof.capture.routing_tap import RoutingTap
from moeprof.core.record import PHASES
from moeprof.core.routing_counts import Routing, join_routing_parts
from moeprof.core.trace import Request, Schedule


class RoutingRecorder:
    """Collects the tap's counts."""

    def __init__(
        self,
        folder: Path,
        tap: RoutingTap,
        *,
        layer_names: tuple[str, ...],
        class_names: tuple[str, ...],
        top_k: tuple[int, ...],
        window_steps: int,
        step_counts_cap_bytes: int,
        picks: PicksWriter | None = None,
    ) -> None:
        self._folder, self._tap, self._picks = folder, tap, picks
        self._layer_names, self._class_names = layer_names, class_names
        self._top_k_L = np.array(top_k, dtype=np.int64)
        self._window_steps = window_steps
        self._cap_bytes = step_counts_cap_bytes
        self._kept_bytes = self._part = self._step = 0

    def on_start(self, schedule: Schedule, origin_s: float) -> None:
        """Label requests by class and forget what warm-up left in the tap."""
        self._origin_s = origin_s
        self._tap.bind(schedule.request_class)
        self._tap.discard()
        self._open_window(0.0)

    def on_send(self, request: Request, sent_s: float, slack_s: float, refused: str | None) -> None:
        """Nothing to note."""

    def on_step(self, step: Step, num_waiting: int) -> None:
        """Take the step's counts from the tap."""
        seen = self._tap.collect()
        assert seen is not None, "the tap listens to every forward while a pass is watched"
        counts_LPCE = self._by_phase(seen.counts_LGE)
        tokens_PC = seen.tokens_G.reshape(len(PHASES), len(self._class_names))
        if self._counts is None:
            self._counts = np.zeros(counts_LPCE.shape, dtype=np.int64)
        self._counts += counts_LPCE
        self._tokens += tokens_PC
        self._dropped += self._per_phase(seen.dropped_LG)
        self._identity += self._per_phase(seen.identity_LG)
        load_LE = counts_LPCE.sum(axis=(1, 2))
        self._distinct.append((load_LE > 0).sum(axis=1))
        self._max_load.append(load_LE.max(axis=1))
        self._keep_step(counts_LPCE)
        if self._picks is not None:
            self._picks.append(self._step, step, seen)
        self._step += 1
        if len(self._distinct) >= self._window_steps:
            self._close_window()
            self._open_window(step.end_s - self._origin_s)

    def on_end(self, end_s: float) -> None:
        """Close the last window and join the parts."""
        if self._distinct:
            self._close_window()
        if self._picks is not None:
            self._picks.close()
        join_routing_parts(self._folder)

    def _by_phase(self, counts_LGE: npt.NDArray[Any]) -> npt.NDArray[Any]:
        layers, _, experts = counts_LGE.shape
        return counts_LGE.reshape(layers, len(PHASES), len(self._class_names), experts)

    def _per_phase(self, count_LG: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        summed: npt.NDArray[np.int64] = count_LG.reshape(len(self._layer_names), len(PHASES), -1).sum(axis=2).T
        return summed

    def _keep_step(self, counts_LPCE: npt.NDArray[Any]) -> None:
        """Per-step counts, until the cap; a step with a load over 65,535 ends the keeping."""
        step_PLE = counts_LPCE.sum(axis=2).transpose(1, 0, 2)
        size = step_PLE.size * 2
        if self._kept_bytes + size <= self._cap_bytes and step_PLE.max(initial=0) <= np.iinfo(np.uint16).max:
            self._kept_bytes += size
            self._step_counts.append(step_PLE.astype(np.uint16))
        else:
            self._cap_bytes = 0

    def _open_window(self, start_s: float) -> None:
        self._window_start_s, self._window_first_step = start_s, self._step
        self._counts: npt.NDArray[np.int64] | None = None
        self._tokens = np.zeros((len(PHASES), len(self._class_names)), dtype=np.int64)
        self._dropped = np.zeros((len(PHASES), len(self._layer_names)), dtype=np.int64)
        self._identity = np.zeros_like(self._dropped)
        self._distinct: list[npt.NDArray[Any]] = []
        self._max_load: list[npt.NDArray[Any]] = []
        self._step_counts: list[npt.NDArray[np.uint16]] = []

    def _close_window(self) -> None:
        assert self._counts is not None
        Routing(
            counts_WPCLE=self._counts.transpose(1, 2, 0, 3)[None],
            real_tokens_WPC=self._tokens[None],
            window_start_s=np.array([self._window_start_s]),
            window_first_step=np.array([self._window_first_step], dtype=np.int64),
            distinct_SL=np.stack(self._distinct).astype(np.int16),
            max_load_SL=np.stack(self._max_load).astype(np.int32),
            step_counts_SPLE=np.stack(self._step_counts) if self._step_counts else None,
            layer_names=self._layer_names,
            class_names=self._class_names,
            top_k_L=self._top_k_L,
            dropped_PL=self._dropped,
            identity_PL=self._identity,
        ).save(self._folder / f"routing.part-{self._part}.npz", compress=False)
        self._part += 1
