"""Signals that ask for an end, sent to this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from moeprof.core.signals import ENDING, SignalWatch, held_back, let_in
from tests.helpers.tiny_run import run_main


@pytest.fixture(autouse=True)
def handlers_stay() -> Iterator[None]:
    before = [signal.getsignal(number) for number in ENDING]
    yield
    assert [signal.getsignal(number) for number in ENDING] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDING)
def test_a_patient_watch_remembers_the_first_and_raises_the_second(number: int) -> None:
    with SignalWatch() as watch:
        send(number)
        assert watch.number == number
        assert not watch.at_once
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert watch.at_once


def test_outside_of_a_measurement_the_first_ends_what_is_under_way() -> None:
    with SignalWatch(patient=False), pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


def test_one_that_a_library_swallowed_is_raised_where_measuring_begins() -> None:
    with SignalWatch(patient=False):
        with contextlib.suppress(KeyboardInterrupt):  # as a bare `except` in an import does
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), SignalWatch():
            raise AssertionError("measuring began")


def test_hup_that_was_ignored_at_the_start_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            send(signal.SIGHUP)
            assert watch.number == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_held_back_comes_afterwards() -> None:
    with SignalWatch() as watch:
        with held_back():
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # libraries have threads that would hear it
            assert watch.number == 0
        assert watch.number == signal.SIGTERM


def test_a_process_that_began_deaf_hears_once_it_lets_them_in() -> None:
    code = (
        "import signal, sys; from moeprof.core.signals import let_in\n"
        "print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "let_in(); print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    )
    with held_back():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    let_in()
    assert found.stdout.split() == ["True", "False"], found.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_ended_says_so_in_a_line_whatever_it_was_doing(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeprof.core.record import layout

    def opened(folder: object) -> None:
        send(number)

    monkeypatch.setattr(layout, "open_record", opened)
    ran = run_main(["report", "run"])
    assert (ran.code, ran.stderr.strip().splitlines()[-1], ran.stdout) == (code, "moeprof: stopped", "")


def test_a_library_that_makes_another_error_of_it_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from moeprof.core.record import layout

    def opened(folder: object) -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("partially initialised module") from None

    monkeypatch.setattr(layout, "open_record", opened)
    ran = run_main(["report", "run"])
    assert (ran.code, ran.stderr.strip()) == (143, "moeprof: stopped")


def test_the_third_does_not_even_clean_up() -> None:
    code = """
import os, signal
from moeprof.core.signals import SignalWatch
with SignalWatch():
    for _ in range(3):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            pass
print("went on")
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (143, "")
