"""Text of a stranger's record, in every output: no tag, no formula, no order to a runner, no escape of a terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from benchmarks.soak.ledger import Ledger
from benchmarks.soak.readers import RECORD, run

PAYLOADS = (
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</style><svg onload=alert(1)>", "' onclick='a()",
    "javascript:alert(1)", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "::error::pwned",
    "::stop-commands::tok", "##[error]pwned", " ::warning::pwned", "x\n::error::pwned", "x\n##[group]pwned",
    "\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\u202eb", "${{ secrets.X }}", "<!-- moeprof -->", "|a|b|", "`x`",
    "[a](javascript:x)", "{{ 7*7 }}", "\x00", "\ud800", "&lt;b&gt;", "]]>", "%0a::error::x",
)  # fmt: skip
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
RUNNER = re.compile(r"^\s*(::\w|##\[)")
COMPARED_EVERY = 6  # comparing takes several times as long
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.found.append((tag, tuple(sorted(name for name, _ in attrs))))


def hostile(chosen: Sequence[str] = PAYLOADS) -> Ledger:
    """Each payload as name, note, error and label of a record; its pages are compared with those of plain text."""
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        plain = _outputs(Path(scratch) / "plain", "plain", compares=True)
        for number, payload in enumerate(chosen):
            folder = Path(scratch) / str(number)
            outputs = _outputs(folder, payload, compares=number % COMPARED_EVERY == 0)
            told = repr(payload)
            code = outputs.pop("code")
            ledger.note("a hostile record is read, or refused in one line", code in ("0", "2"), f"{told}: exit {code}")
            for name, text in outputs.items():
                _judge(ledger, name, text, plain.get(name, ""), told)
            shutil.rmtree(folder, ignore_errors=True)
    return ledger


def _judge(ledger: Ledger, name: str, text: str, plain: str, told: str) -> None:
    if name.endswith(".html"):
        ledger.note("HTML has the same tags as with plain text", _tags(text) == _tags(plain), f"{name}: {told}")
        return
    if name.endswith(".csv"):
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        bad = [cell for cell in cells if cell.startswith(FORMULA) and not _is_number(cell)]
        ledger.note("no CSV cell is a formula", not bad, f"{name}: {told}: {bad[:2]}")
        return
    lines = [line for line in text.splitlines() if RUNNER.match(line)]
    if name in ("stdout", "stderr"):
        ledger.note("no line is an order to a CI runner", not lines, f"{name}: {told}: {lines[:2]}")
        escapes = CONTROL.findall(text)
        ledger.note("no control character reaches a terminal", not escapes, f"{name}: {told}: {escapes[:3]}")


def _outputs(folder: Path, payload: str, *, compares: bool) -> dict[str, str]:
    """Everything that is written of a record with this text in it."""
    folder.mkdir()
    shutil.copytree(RECORD, folder / "run")
    _plant(folder / "run", payload)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run("report", folder / "run", "--write", "md,html,json,csv", "--output-dir", folder / "pages")
        if compares and not code:
            code = run("compare", folder / "run", "--write", "html,csv", "--output-dir", folder / "compared")
    found = {"code": str(code), "stdout": out.getvalue(), "stderr": err.getvalue()}
    for path in sorted(folder.glob("pages/*")) + sorted(folder.glob("compared/*")):
        found[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8", errors="surrogateescape")
    return found


def _plant(record: Path, payload: str) -> None:
    file = record / "experiment.json"
    file.chmod(0o644)
    experiment: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    experiment["notes"] = [payload]
    experiment.setdefault("workload", {})["label"] = payload
    experiment["device_why"] = payload
    experiment["environment"]["device_name"] = payload
    for model in experiment["models"]:
        model["error"] = payload
    experiment["models"][0]["name"] = payload
    file.write_text(json.dumps(experiment), encoding="utf-8")


def _tags(text: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = Tags()
    parser.feed(text)
    return parser.found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
