"""Decode steps captured once per batch size and replayed: one launch in place of some thousand.

A captured step is a fixed list of kernels on fixed addresses. What changes from step to step stands in a small table
that the host fills before each replay. Sizes between the captured ones are padded with copies of the first row, which
touch no expert that a real token does not touch. Nothing is captured in the middle of a pass: sizes are prepared
before, and a step that no captured size serves runs eagerly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from moeprof.capture.devices.streams import capture, side_stream
from moeprof.capture.engines.base import ListenerSet
from moeprof.core.errors import MoeprofError

T = TypeVar("T")
CHECKED_ROWS = 16  # one page: rows of a check must not overwrite each other's keys
CHECKED_SHARE = 0.9  # sums in another order may tip a near tie
WIDTHS_PAGES = (64, 256, 1024, 4096, 16384)  # 1 k, 4 k, 16 k ... tokens of context: a table is no wider than it must be


class CaptureError(Exception):
    """A decode step cannot be captured, or what was captured does something else; says why."""


class GraphBackend(Protocol):
    """Captures device work. ``run`` is called several times; its last result is what every replay fills anew."""

    def capture(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Returns how to replay, and the static result."""


class CudaGraphs:
    """CUDA graphs of one device; all share one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Capture after two runs aside, so that what libraries do once (handles, tuning, compiling) is done before."""
        current: Any = torch.cuda.current_stream(self._device)
        aside = side_stream(self._device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            run()
            run()
        current.wait_stream(aside)
        return capture(run, self._device, pool=self._pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Captured:
    """One captured step."""

    replay: Callable[[], None]
    rows_3B: torch.Tensor
    chosen_B: torch.Tensor
    kept: list[Any]


class DecodeGraphs:
    """The captured decode steps of one engine."""

    def __init__(
        self,
        backend: GraphBackend,
        forward: Callable[[torch.Tensor, int], torch.Tensor],
        listeners: ListenerSet,
        device: torch.device,
        *,
        most_pages: int,
    ) -> None:
        """``forward``: a decode step from a static table; ``most_pages``: width of the full block table."""
        self._backend, self._forward, self._listeners, self._device = backend, forward, listeners, device
        self._most_pages = most_pages
        self._captured: dict[tuple[int, int, Hashable], Captured] = {}
        self._sizes: dict[tuple[int, Hashable], list[int]] = {}

    def prepare(self, sizes: Iterable[int], num_pages: int) -> int:
        """Capture these sizes for contexts of ``num_pages`` with the listeners as they are; returns how many are new.

        Large sizes first: smaller ones then live in their memory.

        Raises:
            CaptureError: the model does something that cannot be captured, or a replay chose other tokens.
        """
        key, sizes, new = self._listeners.graph_key, sorted(set(sizes), reverse=True), 0
        if key is None:
            return 0
        for width in [w for w in self._widths() if w <= self._width(num_pages)]:
            for size in sizes:
                if (size, width, key) not in self._captured:
                    captured = self._captured[size, width, key] = self._capture(size, width)
                    new += 1
                    if size == max((s for s in sizes if s <= CHECKED_ROWS), default=0):
                        self._check(captured, width)
            self._sizes[width, key] = sorted(s for s, w, k in self._captured if (w, k) == (width, key))
        return new

    def find(self, num_rows: int, num_pages: int) -> Captured | None:
        """The smallest captured step that serves, or None."""
        key = self._listeners.graph_key
        if key is None:
            return None
        width = self._width(num_pages)
        size = next((size for size in self._sizes.get((width, key), ()) if size >= num_rows), None)
        return None if size is None else self._captured[size, width, key]

    def forget(self) -> None:
        """Give the memory back."""
        self._captured.clear()
        self._sizes.clear()

    def _capture(self, size: int, width: int) -> Captured:
        rows_3B = torch.zeros(3, size, dtype=torch.int64, device=self._device)
        self._listeners.enter_capture(size)

        def run() -> tuple[torch.Tensor, list[Any]]:
            chosen_B = self._forward(rows_3B, width)
            return chosen_B, self._listeners.leave_capture()

        try:
            replay, (chosen_B, kept) = self._backend.capture(run)
        except (torch.OutOfMemoryError, MoeprofError):
            raise
        except Exception as error:  # whatever a model, a library or a compiler says: steps run eagerly then
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CaptureError(f"{first[:200]} (batch of {size})") from error
        return Captured(replay=replay, rows_3B=rows_3B, chosen_B=chosen_B, kept=kept)

    def _check(self, captured: Captured, width: int) -> None:
        """A replay must choose the tokens that the same step chooses when it is launched operation by operation."""
        size = captured.rows_3B.shape[1]
        captured.rows_3B[1] = captured.rows_3B[2] = torch.arange(size, device=self._device)  # positions and tokens
        captured.replay()
        replayed_B = captured.chosen_B.clone()
        launched_B = self._forward(captured.rows_3B, width)
        agree = int((replayed_B == launched_B).sum())
        captured.rows_3B.zero_()
        if agree < CHECKED_SHARE * size:
            raise CaptureError(
                f"{size - agree} of {size} tokens of a replay are not those of the same step run eagerly"
            )

    def _widths(self) -> list[int]:
        return [*(w for w in WIDTHS_PAGES if w < self._most_pages), self._most_pages]

    def _width(self, num_pages: int) -> int:
        return next((w for w in self._widths() if w >= num_pages), self._most_pages)


def sizes_up_to(most: int) -> list[int]:
    """Batch sizes worth capturing: steps of one, then of at most an eighth, so that padding is at most an eighth."""
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += max(1, 2 ** (size.bit_length() - 1) // 8)
    return [*sizes, most]
