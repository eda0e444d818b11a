"""docs/recipes/block.md, executed: every renderer draws the new kind of block."""

from __future__ import annotations

import importlib
import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from moeprof.render.html.page import render_html
from moeprof.render.markdown import render_markdown
from moeprof.render.terminal import print_document
from tests.helpers.documents_compare import compare_sample
from tests.helpers.recipes import blocks


def test_a_new_kind_of_block_is_drawn_by_every_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    (kind, *renderers), (row,) = (
        [(file, code) for language, file, code in blocks("block") if language == "python" and bool(file) == named]
        for named in (True, False)
    )
    new: dict[str, Any] = {"__name__": "moeprof.analysis.report.document"}
    exec(kind[1], new)
    for file, code in renderers:
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        found: dict[str, Any] = {"Quote": new["Quote"]}
        exec(code, found)
        monkeypatch.setattr(module, "DRAW", module.DRAW | eval("{" + row[1] + "}", found))
    page = compare_sample()
    quote = new["Quote"](text="It is <b>fine</b>.", who="a reader")
    first = replace(page.sections[0], blocks=(*page.sections[0].blocks, quote))
    page = replace(page, sections=(first, *page.sections[1:]))
    out = io.StringIO()
    print_document(page, Console(file=out, width=80, highlight=False), sections=True)
    assert '"It is <b>fine</b>." (a reader)' in out.getvalue()
    assert "> It is \\<b\\>fine\\</b\\>. (a reader)" in render_markdown(page)
    assert '<blockquote class="prose">It is &lt;b&gt;fine&lt;/b&gt;. (a reader)</blockquote>' in render_html(page)
