"""A short cut of `make soak`, the same each time: damaged files of every kind, hostile text, a stdout that is full."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from benchmarks.soak.bombs import BOMBS
from benchmarks.soak.fuzz import fuzz
from benchmarks.soak.hostile import PAYLOADS, hostile
from benchmarks.soak.ledger import Ledger
from benchmarks.soak.mutate import mutated, with_wrong_value
from benchmarks.soak.readers import TARGETS, TRACES
from benchmarks.soak.starved import full_stdout
from benchmarks.soak.trial import Trials, attempt
from moeprof.core.errors import InputError
from moeprof.sources.formats import READERS

QUICK = [name for name in TARGETS if name not in ("record", "config", "checkpoint", "trace, told by content")]
QUICK_BOMBS = [
    "record: deep JSON", "record: an npz that lies about its size", "profile: deep JSON",
    "profile: a count of 400 digits", "profile: an expert of ten digits", "trace: deep JSON",
    "workload: a billion laughs",
]  # fmt: skip


def test_every_trace_format_has_a_sample() -> None:
    assert set(TRACES) == set(READERS)


def test_damaged_files_are_read_or_refused_in_one_line() -> None:
    ledger = fuzz(250, 17, time.monotonic() + 60, only=QUICK, here=True)
    assert ledger.failed == 0, "\n".join(ledger.lines())
    assert sum(entry.tried for name, entry in ledger.entries.items() if name.startswith("damaged ")) == 250


def test_damaged_records_are_read_or_refused_in_one_line() -> None:
    ledger = fuzz(3, 17, time.monotonic() + 60, only=["record"], here=True)
    assert ledger.failed == 0, "\n".join(ledger.lines())


@pytest.mark.parametrize("name", QUICK_BOMBS)
def test_bombs_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    found = attempt(BOMBS[name], tmp_path)
    assert found.kind == "refused", found
    assert found.cpu_s < 5


def test_text_of_a_stranger_is_text() -> None:
    ledger = hostile(["=1+1", "::error::pwned"])
    assert ledger.failed == 0, "\n".join(ledger.lines())
    assert len(PAYLOADS) > 30


def test_a_full_stdout_is_one_line(tmp_path: Path) -> None:
    ledger = Ledger()
    full_stdout(ledger, tmp_path)
    assert ledger.failed == 0, "\n".join(ledger.lines())


# -- the soak itself ---------------------------------------------------------------------------------------------------


def test_damage_is_the_same_for_the_same_seed_and_changes_the_file() -> None:
    content = b'{"a": [1, {"b": null}]}'
    first = [mutated(content, random.Random(seed)) for seed in range(50)]
    assert first == [mutated(content, random.Random(seed)) for seed in range(50)]
    assert len(set(first)) > 30
    assert with_wrong_value(b"not json", random.Random(0)) is None


def _hangs(name: str, folder: Path) -> None:
    if name == "hangs":
        time.sleep(60)
    raise (InputError if name == "refused" else ZeroDivisionError)(name)


def test_a_trial_that_hangs_is_ended_and_the_next_one_is_made() -> None:
    trials = Trials(_hangs)
    try:
        assert trials.run("refused", Path()).kind == "refused"
        assert trials.run("hangs", Path(), limit_s=0.2).text == "hangs: over 0 s"
        assert trials.run("fails", Path()).text.startswith("ZeroDivisionError: fails")
    finally:
        trials.close()


def test_the_table_counts_what_was_broken() -> None:
    ledger, other = Ledger(), Ledger()
    ledger.note("held", True, figure=2.0)
    other.note("held", True, figure=3.0)
    other.note("broken", False, "how")
    ledger.add(other)
    assert ledger.failed == 1
    assert list(ledger.lines())[2:] == ["| held | 2 | 0 | 3 |", "| broken | 1 | 1 |  |", "FAILED broken: how"]
