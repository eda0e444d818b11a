"""A page as one picture, through a headless browser that the machine has."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from moeprof.analysis.report.document import Document
from moeprof.core.errors import InputError
from moeprof.render.html.page import render_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SIZE = "1200,1600"
LONGEST_S = 60


def find_browser() -> str:
    """The first browser of the list on PATH.

    Raises:
        InputError: there is none.
    """
    found = next((path for name in BROWSERS if (path := shutil.which(name)) is not None), None)
    if found is None:
        raise InputError(f"a picture needs a browser, and none of these is on PATH: {', '.join(BROWSERS)}")
    return found


def take_picture(browser: str, document: Document, path: Path) -> Path:
    """The top of the page, 1200 x 1600 pixels; the page holds no script but its own and loads nothing.

    Raises:
        InputError: the browser made no picture.
    """
    with tempfile.TemporaryDirectory(prefix="moeprof-picture-") as folder:
        page = Path(folder) / "page.html"
        page.write_text(render_html(document), encoding="utf-8", errors="backslashreplace")
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={folder}/profile", f"--window-size={SIZE}",
                   f"--screenshot={path.resolve()}", page.as_uri()]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, timeout=LONGEST_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InputError(f"{browser}: no picture ({type(error).__name__}); the page itself is html") from error
    if not path.is_file():
        raise InputError(f"{browser}: no picture (exit code {done.returncode}); the page itself is html")
    return path
