"""``python -m benchmarks.gpu.publish DIR...``: from the files brought back to pages in ``reports/published``.

Unpacks every record into ``<name>-<card>``, renders its HTML here, merges the results of the calls, and writes the
evidence page, the block of docs/gpu.md and the results in EXPERIMENTS.md. Without DIR it writes the pages anew from
what is published already; before any card has run the script, all of them read "not yet measured".
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.experiments import filled
from benchmarks.gpu.pack import unpack
from benchmarks.gpu.page import docs_block, evidence_page, with_block
from benchmarks.gpu.results import Results, read_results
from benchmarks.gpu.steps import ROOT
from moeprof.core.errors import MoeprofError, RecordError
from moeprof.core.files import read_json

PUBLISHED = ROOT / "reports" / "published"
DOCS_PAGE = ROOT / "docs" / "gpu.md"
EXPERIMENTS = ROOT / "benchmarks" / "gpu" / "EXPERIMENTS.md"


def main(arguments: list[str] | None = None) -> int:
    """Publish; exit code 2 and one line where something cannot be published."""
    options = _parse(arguments)
    try:
        for folder in options.folders:
            _take_over(folder, options.to, replace=options.replace, allow_tiny=options.allow_tiny)
        results = published_results(options.to)
    except MoeprofError as error:
        print(f"gpu-publish: {error}", file=sys.stderr)
        return 2
    page = options.to / "gpu" / "README.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(evidence_page(results), encoding="utf-8")
    if options.to.resolve() == PUBLISHED:
        _fill_in(results)
    print(page)
    return 0


def _fill_in(results: Results) -> None:
    """The results in EXPERIMENTS.md, and the block of docs/gpu.md."""
    EXPERIMENTS.write_text(filled(EXPERIMENTS.read_text(encoding="utf-8"), results), encoding="utf-8")
    DOCS_PAGE.write_text(with_block(DOCS_PAGE.read_text(encoding="utf-8"), docs_block(results)), encoding="utf-8")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.publish", description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help="what each call left under --out")
    parser.add_argument("--to", type=Path, default=PUBLISHED, help="another folder; the documents then stay")
    parser.add_argument("--replace", action="store_true", help="put a record in the place of one of the same name")
    parser.add_argument("--allow-tiny", action="store_true", help="publish tiny models too (tests)")
    return parser.parse_args(arguments)


def published_results(to: Path) -> Results:
    """What is published: results-*.json under ``gpu/`` and the records beside it.

    Raises:
        RecordError: a file of results is damaged.
    """
    return read_results(sorted((to / "gpu").glob("results-*.json")), to)


def _take_over(folder: Path, to: Path, *, replace: bool, allow_tiny: bool) -> None:
    """Records and results of one call."""
    files = sorted(folder.glob("results-*.json"))
    if not files:
        raise RecordError(f"{folder}: holds no results-*.json of the evidence script")
    told = read_results(files)
    if not allow_tiny and any(part["tiny"] for part in told.parts):
        raise RecordError(f"{folder}: results of tiny models are no evidence; run the script on a card, without --tiny")
    for archive in sorted(folder.glob("*.tar.gz")):
        publish_record(archive, to, replace=replace)
    (to / "gpu").mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, to / "gpu" / file.name)


def publish_record(archive: Path, to: Path, *, replace: bool) -> Path:
    """Unpack one record as ``<name>-<card>`` and render it; returns the folder.

    Raises:
        RecordError: damaged, or there is one of that name.
    """
    name = archive.name.removesuffix(".tar.gz")
    with tempfile.TemporaryDirectory(dir=_made(to)) as scratch:
        found = unpack(archive, Path(scratch) / "record")
        experiment = read_json(found / "experiment.json")
        folder = to / f"{name}-{card_name(str((experiment.get('environment') or {}).get('device_name')))}"
        if folder.exists():
            if not replace:
                raise RecordError(f"{folder}: is published already; --replace puts the new one in its place")
            shutil.rmtree(folder)
        shutil.move(found, folder)
    render(folder)
    return folder


def card_name(device_name: str) -> str:
    """``NVIDIA H200`` -> ``h200``; any CPU -> ``cpu``."""
    found = re.search(r"\b([A-Z]{1,2}\d{2,4}[A-Z]?)\b", device_name.removeprefix("NVIDIA "))
    return found.group(1).lower() if device_name.startswith("NVIDIA") and found else "cpu"


def render(record: Path) -> None:
    """report.html and, for several models, compare.html beside the record; a page that fails is left out and told."""
    for command, page in (("report", "report.html"), ("compare", "compare.html")):
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch) / "pages"
            arguments = [sys.executable, "-m", "moeprof", command, str(record), "--write", "html"]
            done = subprocess.run(
                [*arguments, "--output-dir", str(made)], cwd=ROOT, capture_output=True, text=True, check=False
            )
            pages: Sequence[Path] = sorted(made.glob("*.html")) if made.is_dir() else []
            if done.returncode == 0 and pages:
                shutil.copyfile(pages[0], record / page)
            elif not (command == "compare" and "nothing to compare" in done.stderr):
                print(f"{record.name}: no {page}: {done.stderr.strip()[-300:]}", file=sys.stderr)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
