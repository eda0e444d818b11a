"""Capturing device work, with a stand-in for torch: what broke is told, the stream before is the stream after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from moeprof.capture.devices import peaks
from moeprof.capture.devices.streams import capture
from moeprof.capture.engines.base import ListenerSet
from moeprof.capture.engines.paged.graphs import CaptureError, DecodeGraphs
from moeprof.core.errors import EngineError
from tests.helpers.fake_cuda import GIB, FakeCuda

CARD = torch.device("cuda:0")


class FakeGraphs:
    """Streams and graphs of torch.cuda: a failed capture ends with an error of its own and leaves its stream on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.modes = "main", list[str]()
        for name in ("stream", "graph"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.now)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 5))
        self.ended: list[Any] = []
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self.end, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_releasePool", lambda *of: self.ended.append(("released", *of)), raising=False
        )

    def end(self, index: int, pool: Any) -> None:
        if self.is_told:
            raise RuntimeError("not currently recording to this pool")
        self.ended.append(("ended", index, pool))

    is_told = False  # torch's allocator knows by itself that a failed capture is over

    def __call__(self) -> FakeGraphs:
        return self

    def replay(self) -> None:
        pass

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, graph: Any, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        before, self.now = self.now, "capturing"
        self.modes.append(capture_error_mode)
        try:
            yield
        except BaseException:
            raise RuntimeError("operation failed due to a previous error during capture") from None
        self.now = before


def broken() -> None:
    raise ValueError("the model asked for a number")


def test_a_capture_gives_the_result_of_its_run_and_lets_other_threads_use_the_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeGraphs(monkeypatch)
    assert capture(lambda: 7, CARD)[1] == 7
    assert (fake.modes, fake.now) == (["thread_local"], "main")


def test_a_capture_that_fails_says_what_broke_it_and_leaves_no_stream_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeGraphs(monkeypatch)
    with pytest.raises(ValueError, match="asked for a number"):
        capture(broken, CARD)
    assert fake.now == "main"


@pytest.mark.parametrize(("is_told", "ended"), [(False, [("ended", 0, (0, 5)), ("released", 0, (0, 5))]), (True, [])])
def test_the_allocator_hears_that_a_failed_capture_is_over_unless_it_knows(
    is_told: bool, ended: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeGraphs(monkeypatch)
    fake.is_told = is_told
    with pytest.raises(ValueError, match="asked for a number"):
        capture(broken, CARD)
    assert fake.ended == ended


def test_a_capture_that_fails_as_it_ends_says_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending(FakeGraphs):
        @contextmanager
        def graph(self, graph: Any, pool: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
            yield
            raise RuntimeError("the capture was left unjoined")

    Ending(monkeypatch)
    with pytest.raises(RuntimeError, match="left unjoined"):
        capture(lambda: 7, CARD)


class Failing:
    """A backend that cannot capture."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def capture(self, run: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TypeError("a compiler stopped\nat line 3"), CaptureError),
        (RuntimeError("not permitted while capturing"), CaptureError),
        (torch.OutOfMemoryError("no room"), torch.OutOfMemoryError),
        (EngineError("picks are missing"), EngineError),
    ],
)
def test_whatever_stops_a_capture_is_a_reason_to_run_eagerly_but_for_memory_and_our_own_errors(
    error: Exception, told: type[Exception]
) -> None:
    graphs = DecodeGraphs(
        Failing(error), lambda rows, pages: rows[0], ListenerSet(), torch.device("cpu"), most_pages=4
    )  # fmt: skip
    with pytest.raises(told, match=str(error).splitlines()[0]):
        graphs.prepare([2], 1)


@pytest.mark.parametrize(("free", "size"), [(140 * GIB, 2**31 - 2**26), (4 * GIB, GIB), (GIB // 2, None)])
def test_a_card_is_measured_on_buffers_beside_which_a_launch_is_nothing(
    free: int, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCuda(total=free).install(monkeypatch)
    assert peaks._buffer_bytes(CARD, 60 * 2**20) == size
