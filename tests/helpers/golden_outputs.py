"""Whole outputs of report, compare, regress and explain, from committed records, for golden files.

``python -m tests.helpers.golden_outputs`` writes tests/golden/outputs/ again; read the difference first. What is large
is kept compressed. Digits after the ninth are left out, and differences of zero as well: they depend on the processor.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import moeprof
from tests.helpers.tiny_run import run_main

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden" / "outputs"
PUBLISHED, FORMAT_1 = "reports/published", "tests/records/format-1"
QUICKSTART, SWEEPS, AB = (f"{PUBLISHED}/{name}" for name in ("quickstart-cpu", "dense-vs-sparse-cpu", "regress-ab-cpu"))
PAGES = "md,html,json,csv"
CI_FILES = f"{PAGES},comment,junit,github,benchmark-action,bmf,codequality,metrics"
TEMPORARY = "TEMPORARY"
COMPRESSED = {".html", ".json", ".csv"}
LARGE_BYTES = 20_000
LONG_NUMBER = re.compile(r"-?\d+\.\d{8,}(?:e[+-]?\d+)?")
ZERO_FROM, ZERO_TO = 1e-18, 1e-13


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Command lines after one another; ``TEMPORARY`` stands for a new folder.

    Attributes:
        before: made first, what they print is not kept.
        command: its terminal output is kept at a width of 80 columns.
        write: files that it writes.
        wide: more options, at a width of 160; None: not shown at that width.
    """

    command: Sequence[str]
    write: str | None = None
    wide: Sequence[str] | None = None
    before: Sequence[Sequence[str]] = ()


def saved(name: str, run: str = FORMAT_1) -> Sequence[str]:
    """Makes a baseline in the temporary folder."""
    return ("baseline", "save", run, name, "--folder", f"{TEMPORARY}/baselines")


ALL = ("--all",)
CASES: Mapping[str, Case] = {
    "report-format-1": Case(command=("report", FORMAT_1), write=PAGES, wide=()),
    "report-quickstart": Case(command=("report", QUICKSTART, "--usd-per-device-hour", "2"), write=PAGES),
    "report-sweeps": Case(command=("report", SWEEPS), write=PAGES),
    "report-lone-model": Case(command=("report", f"{AB}/new"), write=PAGES, wide=()),
    "compare-format-1": Case(command=("compare", FORMAT_1), write=PAGES, wide=ALL),
    "compare-sweeps": Case(command=("compare", SWEEPS), write=PAGES),
    "compare-runs": Case(command=("compare", f"{AB}/base", f"{AB}/new", "--allow", "revision"), write=PAGES, wide=()),
    "compare-refused": Case(command=("compare", f"{AB}/base", f"{AB}/new")),
    "regress-pairs": Case(command=("regress", AB), write=CI_FILES, wide=ALL),
    "regress-runs": Case(command=("regress", QUICKSTART, "--baseline", QUICKSTART), write=CI_FILES),
    "regress-baseline": Case(
        before=(saved("older"), saved("main")),
        command=("regress", FORMAT_1, "--baseline", "main", "--baselines", f"{TEMPORARY}/baselines"),
        write=CI_FILES,
        wide=ALL,
    ),
    "regress-github": Case(
        command=("regress", f"{AB}/new", "--baseline", f"{AB}/base", "--allow", "revision", "--github"), wide=ALL
    ),
    "regress-refused": Case(
        command=("regress", f"{AB}/new", "--baseline", f"{AB}/base", "--github"), write="comment"
    ),
    "explain": Case(command=("explain", "--format", "md")),
}  # fmt: skip


def outputs(case: Case) -> dict[str, str]:
    """Name of a golden file -> the text that belongs into it now."""
    with _steady_surroundings() as folder:
        for arguments in case.before:
            assert run_main(_filled(arguments, folder)).code == 0, arguments
        written = ("--write", case.write, "--output-dir", f"{TEMPORARY}/out") if case.write else ()
        found = {"terminal-80.txt": _terminal((*case.command, *written), folder, 80)}
        if case.wide is not None:
            found["terminal-160.txt"] = _terminal((*case.command, *case.wide), folder, 160)
        paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".npz")
        found |= {path.name: path.read_text(encoding="utf-8") for path in paths}
        return {name: _portable(text.replace(str(folder), TEMPORARY)) for name, text in found.items()}


@contextmanager
def _steady_surroundings() -> Iterator[Path]:
    """A new folder; and no version, terminal or CI service of the machine shows through."""
    folder = Path(tempfile.mkdtemp()).resolve()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GITHUB_", "FORCE_COLOR"))}
    kept |= {"TERM": "dumb", "GITHUB_STEP_SUMMARY": str(folder / "step-summary.md")}
    with chdir(ROOT), mock.patch.dict(os.environ, kept, clear=True), mock.patch.object(moeprof, "__version__", "0.1.0"):
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _filled(arguments: Sequence[str], folder: Path) -> list[str]:
    return [argument.replace(TEMPORARY, str(folder)) for argument in arguments]


def _terminal(arguments: Sequence[str], folder: Path, columns: int) -> str:
    with mock.patch.dict(os.environ, {"COLUMNS": str(columns)}):
        ran = run_main(_filled(arguments, folder))
    talk = [line for line in ran.stderr.splitlines() if not line.startswith("Wrote ")]
    return "\n".join((ran.stdout, f"-- exit {ran.code} --", *talk, ""))


def _portable(text: str) -> str:
    return LONG_NUMBER.sub(_rounded, text)


def _rounded(found: re.Match[str]) -> str:
    value = float(found.group())
    return "0.0" if ZERO_FROM < abs(value) < ZERO_TO else f"{value:.9g}"


def read_golden(name: str) -> dict[str, str]:
    """The committed texts of a case."""
    found = {}
    for path in sorted((GOLDEN / name).iterdir()):
        data = path.read_bytes()
        is_compressed = path.suffix == ".gz"
        found[path.stem if is_compressed else path.name] = (gzip.decompress(data) if is_compressed else data).decode()
    return found


def write_golden(name: str) -> None:
    """Every text of a case, as the code makes it now."""
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for file, text in outputs(CASES[name]).items():
        data = text.encode()
        if Path(file).suffix in COMPRESSED and len(data) > LARGE_BYTES:
            (folder / f"{file}.gz").write_bytes(gzip.compress(data, mtime=0))
        else:
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    for name in CASES:
        write_golden(name)
        print(name)
