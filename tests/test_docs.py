"""README and docs: what repeats the code is equal to it, links lead somewhere, figures are those of the records."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_init_ci import parse
from tests.helpers.docs_reference import filled

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=IDS)
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """Lines of listings without the remark behind a command, and commands within sentences."""
    text = page.read_text(encoding="utf-8")
    for listing in FENCE.findall(text):
        yield from (re.sub(r"\s+#.*", "", line) for line in listing.replace("\\\n", " ").splitlines())
    yield from (re.sub(r"\s+", " ", code) for code in re.findall(r"`((?:make|moeprof) [^`]+)`", FENCE.sub("", text)))


def plain(text: str) -> str:
    """Text without tags, marks and line breaks."""
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>|\\", " ", text)))


def test_the_readme_is_a_page_and_a_half() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@EVERY_PAGE
def test_generated_parts_are_what_the_code_says(page: Path) -> None:
    """After a wanted change: ``make docs``, and read the diff."""
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text


@EVERY_PAGE
def test_every_link_leads_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            broken += [] if anchor in slugs or f'id="{anchor}"' in target.read_text(encoding="utf-8") else [link]
    assert broken == []


@EVERY_PAGE
def test_every_command_and_option_that_is_named_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    added = re.findall(r'^"(\w+)": "moeprof\.cli\.', page.read_text(encoding="utf-8"), re.MULTILINE)  # by a recipe
    for line in commands(page):
        words = line.split()
        if words[:1] == ["make"]:
            assert set(words[1:]) <= targets, line
        if words[:1] == ["moeprof"] and words[-1] != "--help" and words[1] not in added:
            parse(shlex.split(line)[1:])


@EVERY_PAGE
def test_an_answer_is_word_for_word_in_the_page_of_its_record(page: Path) -> None:
    answers = re.findall(r"<!-- answer: (\S+) -->\n```\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert answers or page.name != "README.md"
    for record, answer in answers:
        shown = ROOT / record / "compare.html"
        told = plain((shown if shown.exists() else ROOT / record / "report.html").read_text(encoding="utf-8"))
        for sentence in re.split(r"(?<=[.:]) (?=On|moe|Ladder|Its)", plain(answer).strip()):
            assert sentence in told, sentence


def test_the_map_names_every_folder_and_every_path_on_it_is_there() -> None:
    text = FENCE.sub("", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    named = set(re.findall(r"`((?:core|sources|capture|analysis|render|cli|data)/[\w./]*)`", text))
    package = ROOT / "moeprof"
    assert sorted(path for path in named if not (package / path).exists()) == []
    files = [file for file in package.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    folders = {f"{file.parent.relative_to(package).as_posix()}/" for file in files} - {"./"}
    assert sorted(folders - named) == []


def test_every_file_that_the_package_names_is_there() -> None:
    """In docstrings, comments and data: a file that moved is named by its new place."""
    files = [f"/{file.relative_to(ROOT).as_posix()}" for file in ROOT.rglob("*.py") if ".venv" not in file.parts[:-1]]
    sources = [file for kind in ("*.py", "*.yaml") for file in (ROOT / "moeprof").rglob(kind)]
    named = {(file, name) for file in sources for name in re.findall(r"[\w/]+\.py\b", file.read_text(encoding="utf-8"))}
    lost = [
        f"{file.relative_to(ROOT)}: {name}" for file, name in named if not any(f.endswith(f"/{name}") for f in files)
    ]
    assert sorted(lost) == []
