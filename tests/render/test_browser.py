"""The HTML report in a real browser: no errors, charts drawn, nothing wider than the page, in light, dark and print.

Screenshots are kept in the folder named by MOEPROF_ARTEFACTS, else in the test's own temporary folder.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from moeprof.analysis.report.document import Document, Section, StackedBars
from moeprof.render.html.page import render_html
from tests.helpers.documents import awkward_document, sample_document

pytestmark = pytest.mark.browser
TIMEOUT_S = 60
DOCUMENTS: dict[str, Callable[[], Document]] = {"sample": sample_document, "awkward": awkward_document}


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium, or a skip that says what to install."""
    found = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here (chromium, chromium-browser or google-chrome on the PATH)")
    return found


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots are kept."""
    folder = Path(os.environ.get("MOEPROF_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run(browser: str, profile: Path, page: Path, *options: str) -> tuple[str, str]:
    """What the browser printed: (stdout, its console). The window is 1280 wide unless an option says otherwise."""
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"]
    done = subprocess.run([*command, *options, page.as_uri()], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


# Run in place of a reader: opens definitions, filters, hovers, switches; what it saw stands in <html data-...>.
PROBE = """{
const seen = {};
const tip = () => document.querySelector(".tip");
const at = (node, x, y) => { const b = node.getBoundingClientRect();
  const spot = {clientX: b.left + b.width * x, clientY: b.top + b.height * y};
  node.dispatchEvent(new PointerEvent("pointermove", spot)); };
seen.window = innerWidth;
seen.excess = Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth;
seen.background = getComputedStyle(document.body).backgroundColor;
document.querySelector("table.metrics th a").click();
seen.unfolded = document.querySelector(".more")?.textContent ?? "";
const chart = document.querySelector("svg[data-axes]");
if (chart) { at(chart, 0.5, 0.5); seen.chart = tip().hidden ? "" : tip().textContent; }
const cells = document.querySelector(".cells");
if (cells) { at(cells, 0.01, 0.01); seen.cell = tip().hidden ? "" : tip().innerText; }
const tabs = [...document.querySelectorAll(".tabs button")];
if (tabs[1]) { tabs[1].click(); seen.maps = [...document.querySelectorAll(".map")].map(m => +m.hidden).join(""); }
const na = document.querySelector(".na");
if (na) { na.dispatchEvent(new PointerEvent("pointermove")); seen.reason = tip().textContent; }
const filter = document.querySelector(".filter");
if (filter) { filter.closest("details").open = true; filter.value = "distinct";
  filter.dispatchEvent(new Event("input"));
  seen.rows = filter.parentNode.querySelectorAll("tbody tr:not([hidden])").length; }
document.querySelector(".theme").click();
seen.switched = getComputedStyle(document.body).backgroundColor;
for (const [key, value] of Object.entries(seen))
  parent.document.documentElement.dataset["seen" + key[0].toUpperCase() + key.slice(1)] = value;
}"""


def probed(text: str, width: int) -> str:
    """A frame of that width around the page, with the probe at its end and the policy opened for it.

    A frame, because a window that prints its DOM is never narrower than 500 points.
    """
    text = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text, count=1)
    text = text.replace("</body>", f"<script>{PROBE}</script></body>")
    head = '<!doctype html><meta name="color-scheme" content="light dark">'
    return f'{head}<iframe width="{width}" height="3000" frameborder="0" srcdoc="{html.escape(text)}"></iframe>'


def seen(dom: str, what: str) -> str:
    """What the probe wrote down."""
    found = re.search(rf'data-seen-{what}="([^"]*)"', dom)
    assert found, f"the probe saw no {what}"
    return found[1]


def test_the_report_opens_without_errors_and_with_its_charts(browser: str, tmp_path: Path) -> None:
    for name, make in DOCUMENTS.items():
        page = tmp_path / f"{name}.html"
        page.write_text(render_html(make()), encoding="utf-8")
        dom, console = run(browser, tmp_path / "profile", page, "--window-size=1280,2000", "--dump-dom")
        assert console == ""
        assert "data-errors" not in dom
        assert 'data-ready="yes"' in dom
        kinds = re.findall(r'<figure[^>]*data-kind="(\w+)"', dom)
        assert (kinds.count("chart"), kinds.count("bars"), kinds.count("heat")) == (
            (6, 2, 1) if name == "sample" else (2, 1, 2)
        )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_it_fits_the_window_and_answers_the_pointer(
    browser: str, tmp_path: Path, artefacts: Path, name: str, width: int, scheme: str
) -> None:
    text = render_html(DOCUMENTS[name]())
    clean, page = tmp_path / f"{name}.html", tmp_path / "probed.html"
    clean.write_text(text, encoding="utf-8")
    page.write_text(probed(text, width), encoding="utf-8")
    dark = ("--blink-settings=preferredColorScheme=0",) if scheme == "dark" else ()
    shot = artefacts / f"report-{name}-{width}-{scheme}.png"
    size = f"--window-size={width},{3000 if width > 1000 else 5000}"
    _, console = run(browser, tmp_path / "profile", clean, size, f"--screenshot={shot}", *dark)
    assert console == ""
    assert shot.stat().st_size > 20_000
    dom, console = run(browser, tmp_path / "profile", page, "--window-size=1400,3000", "--dump-dom", *dark)
    assert console == ""
    assert int(seen(dom, "window")) == width
    assert int(seen(dom, "excess")) <= 0
    white, black = "rgb(255, 255, 255)", "rgb(18, 21, 26)"
    assert seen(dom, "background") == (black if scheme == "dark" else white)
    assert seen(dom, "switched") == (white if scheme == "dark" else black)
    assert "how" in seen(dom, "unfolded")
    assert "layer" in seen(dom, "cell") and "tokens" in seen(dom, "cell")
    assert seen(dom, "maps") == "10111"
    assert seen(dom, "reason")
    if name == "sample":
        assert "moe-16x2: " in seen(dom, "chart")
        assert int(seen(dom, "rows")) == 2  # the heading of the table and the one row


@pytest.mark.parametrize("width", [1180, 390])
def test_a_figure_with_many_bars_and_parts_stays_on_the_page(browser: str, tmp_path: Path, width: int) -> None:
    parts = tuple((f"a part of a step {n}", (0.0912,) * 5) for n in range(11))
    bars = tuple(f"decode, batch {n}" for n in range(5))
    wide = StackedBars(name="wide", title="Where a step goes", caption="", bars=bars, parts=parts, unit="ratio")
    document = sample_document()
    document = replace(document, sections=(Section(name="wide", title="Wide", blocks=(wide,)), *document.sections))
    page = tmp_path / "probed.html"
    page.write_text(probed(render_html(document), width), encoding="utf-8")
    dom, console = run(browser, tmp_path / "profile", page, "--window-size=1400,3000", "--dump-dom")
    assert console == ""
    assert int(seen(dom, "excess")) <= 0


def test_it_prints(browser: str, tmp_path: Path, artefacts: Path) -> None:
    page = tmp_path / "sample.html"
    page.write_text(render_html(sample_document()), encoding="utf-8")
    paper = artefacts / "report-sample.pdf"
    run(browser, tmp_path / "profile", page, "--no-pdf-header-footer", f"--print-to-pdf={paper}")
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.stat().st_size > 20_000
