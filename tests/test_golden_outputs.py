"""Whole outputs of the commands that read records are byte for byte the committed ones."""

from __future__ import annotations

import difflib

import pytest

from tests.helpers.golden_outputs import CASES, GOLDEN, outputs, read_golden

HINT = "after a wanted change: python -m tests.helpers.golden_outputs, and read the difference"
MOST_LINES, MOST_COLUMNS = 60, 300


def difference(name: str, golden: str, now: str) -> list[str]:
    """A unified diff, short enough to read. A page has lines of many thousand characters, so its tags are split."""
    old, new = (text.replace("><", ">\n<").splitlines(keepends=True) for text in (golden, now))
    found = difflib.unified_diff(old, new, f"golden/{name}", f"now/{name}", n=1)
    return [line.rstrip("\n")[:MOST_COLUMNS] for line, _ in zip(found, range(MOST_LINES), strict=False)]


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_as_the_golden_files_have_them(name: str) -> None:
    golden, now = read_golden(name), outputs(CASES[name])
    assert golden.keys() == now.keys(), HINT
    changed = [file for file in golden if golden[file] != now[file]]
    assert not changed, "\n".join(
        [HINT, *(line for file in changed for line in difference(file, golden[file], now[file]))]
    )


def test_every_golden_folder_is_of_a_case() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == set(CASES)


def test_a_changed_word_is_shown() -> None:
    golden = read_golden("compare-refused")["terminal-80.txt"]
    changed = difference("page", golden, golden.replace("not comparable", "comparable"))
    assert len([line for line in changed if line.startswith(("-", "+")) and "comparable" in line]) == 2
