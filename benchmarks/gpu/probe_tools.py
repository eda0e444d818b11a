"""What the probes share: options, a deadline, cases that fail alone, time of device work, capture into a CUDA graph."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from moeprof.capture.devices.streams import capture, side_stream

WARM_CALLS = 3
CALLS = 15
TINY_CALLS = 2
QUEUE_CYCLES = 40_000_000  # of a card's clock, about 20 ms: fifteen calls of some dozen launches each


class Probe:
    """One probe's run: its options, its clock and its findings, written after every case.

    Attributes:
        is_tiny: on a CPU, with tiny shapes.
        device: the first CUDA device; the CPU for tiny runs and where there is no card.
        found: what will be written as JSON.
    """

    def __init__(self, description: str | None, arguments: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
        parser.add_argument("--seconds", type=float, default=60.0, help="no new case starts after so long")
        parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
        options = parser.parse_args(arguments)
        self.is_tiny: bool = options.tiny
        self._out: Path = options.out
        self._deadline_s: float = time.monotonic() + options.seconds
        on_card = torch.cuda.is_available() and not self.is_tiny
        self.device = torch.device("cuda:0" if on_card else "cpu")
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        if not on_card and not self.is_tiny:
            raise SystemExit("no CUDA device was found; --tiny runs this on the CPU")
        self.found: dict[str, Any] = {"device": str(self.device), "cases": [], "figures": []}
        self.save()

    @property
    def over(self) -> bool:
        """No time is left for another case."""
        return time.monotonic() > self._deadline_s

    @property
    def calls(self) -> int:
        """Timed calls per case."""
        return TINY_CALLS if self.is_tiny else CALLS

    def case(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure one case; whatever goes wrong is its result, and the next case still runs."""
        row: dict[str, Any] = {"name": name}
        if self.over:
            row["reason"] = "no time was left"
        else:
            try:
                row |= measure()
            except Exception as error:  # whatever it is: a probe is there to find out what fails
                row["reason"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        print(json.dumps(row), flush=True)
        self.found["cases"].append(row)
        self.save()
        return row

    def save(self) -> None:
        """Write what was found so far."""
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def time_s(self, work: Callable[[], Any], calls: int | None = None, *, queued: bool = False) -> float:
        """Median seconds of one call: by events on a card, by the clock on a CPU.

        Args:
            work: what to call.
            calls: how often; left out: as often as other cases.
            queued: let the card idle until all calls are launched, so that what launching costs the host does not count
                (work that waits for the card on its way waits here too, and counts as it is).
        """
        for _ in range(1 if self.is_tiny else WARM_CALLS):
            work()
        num = calls or self.calls
        if self.device.type == "cpu":
            return median(_clocked(work) for _ in range(num))
        events: list[tuple[Any, Any]] = [(_event(), _event()) for _ in range(num)]
        torch.cuda.synchronize()
        if queued:
            torch.cuda._sleep(QUEUE_CYCLES)  # type: ignore[no-untyped-call]
        for start, end in events:
            start.record()
            work()
            end.record()
        torch.cuda.synchronize()
        return median(float(start.elapsed_time(end)) for start, end in events) / 1e3

    def capture(self, work: Callable[[], Any]) -> Callable[[], None]:
        """The work as a CUDA graph.

        Raises:
            Exception: why it cannot be captured; there may be no card.
        """
        if self.device.type == "cpu":
            raise RuntimeError("a CPU has no graphs")
        side = side_stream(self.device)
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_CALLS):
                work()
        torch.cuda.current_stream().wait_stream(side)
        return capture(work, self.device)[0]

    def graph_case(self, work: Callable[[], Any]) -> dict[str, Any]:
        """``graph_s``, or ``graph_reason``: why the work cannot be captured."""
        try:
            return {"graph_s": self.time_s(self.capture(work))}
        except Exception as error:  # whatever it is: that is what the case is there to find out
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return {"graph_s": None, "graph_reason": " ".join(str(error).split())[:200]}


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _clocked(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """``|out - reference| / |reference|`` in float64; infinite where anything is not finite."""
    out64, ref64 = out.double(), reference.double()
    if not bool(torch.isfinite(out64).all()):
        return float("inf")
    return float((out64 - ref64).norm() / ref64.norm().clamp_min(1e-30))
