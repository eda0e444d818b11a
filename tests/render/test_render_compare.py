"""Ratio tables and waterfalls in every renderer: no number cut, every verdict in words, text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from moeprof.analysis.report.document import Chart, Document, Series, Table, Waterfall
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.units import times
from moeprof.render.cells import block_bars, footnotes, ratio_interval, ratio_text, short_text, spans
from moeprof.render.html.charts.labels import place_labels
from moeprof.render.html.charts.lines import draw_chart
from moeprof.render.html.charts.waterfall import draw_waterfall
from moeprof.render.html.page import render_html
from moeprof.render.markdown import render_markdown
from moeprof.render.terminal import print_document
from tests.helpers.documents import sample_document
from tests.helpers.documents_compare import (
    ACTIVE_TWIN,
    MOE,
    TOTAL_TWIN,
    compare_awkward,
    compare_sample,
    headline_table,
    ladder,
    step,
)
from tests.render import test_browser

DOCUMENTS = {"sample": compare_sample, "awkward": compare_awkward}
VERDICTS = ("better", "worse", "no difference shown", "cannot tell", "incomparable")
browser = test_browser.browser  # the fixture


def shown(document: Document, width: int, **options: bool) -> str:
    out = io.StringIO()
    print_document(document, Console(file=out, width=width, highlight=False), sections=True, **options)
    return out.getvalue()


def words_of_values(table: Table) -> set[str]:
    return {
        word
        for row in table.rows
        for value, ratio in zip(row.values, row.ratios, strict=True)
        for word in (*short_text(value, row.unit).split(), ratio_text(ratio))
        if any(c.isdigit() for c in word)
    }


# -- numbers -----------------------------------------------------------------------------------------------------------


def test_a_ratio_near_one_keeps_the_digit_that_matters() -> None:
    assert [times(v) for v in (0.61, 1.0, 1.004, 0.996, 1.9, 25.0, 1234.5)] == [
        "0.61x", "1x", "1.004x", "0.996x", "1.9x", "25x", "1,234x"
    ]  # fmt: skip


def test_a_ratio_that_cannot_be_told_says_so_once() -> None:
    assert ratio_text(Ratio(value=None)) == "n/a"
    assert ratio_text(Ratio(value=None, verdict="incomparable")) == ""
    assert ratio_text(None) == ""
    assert ratio_interval(Ratio(value=2.0, low=1.5, high=2.5)) == "[1.5 \u2013 2.5]"
    assert ratio_interval(Ratio(value=2.0)) == ""


def test_each_reason_stands_once_with_all_its_rows() -> None:
    table = headline_table()
    doubled = replace(table, rows=(*table.rows, replace(table.rows[3], label="ITL p999")))
    notes = [note for note in footnotes(doubled) if "6 launches" in note]
    said = "ITL p99 of moe-16x2, ITL p999 of moe-16x2: cannot tell (needs 6 launches a side, 3 were run)"
    assert notes == [said]


def test_changes_of_a_waterfall_hang_between_their_levels() -> None:
    steps = (
        step("a", "level", 10.0, 1.0),
        step("up", "change", 5.0, 2.0),
        step("b", "level", 15.0, 1.0),
        step("down", "change", -3.0, 1.0),
    )
    fall = Waterfall(name="w", title="W", caption="", unit="s", steps=steps)
    found = [(s.start, s.end, s.low, s.high) for s in spans(fall)]
    assert found == [(0, 10, 9, 11), (10, 15, 13, 17), (0, 15, 14, 16), (15, 12, 11, 13)]
    assert block_bars(fall, 15) == ((0, 10), (10, 5), (0, 15), (12, 3))


@given(st.lists(st.tuples(st.sampled_from(["level", "change"]), st.integers(-(10**9), 10**9)), min_size=1, max_size=9))
def test_no_bar_is_invisible_or_longer_than_its_room(pairs: list[tuple[str, int]]) -> None:
    steps = tuple(step("s", kind, value / 1000, 1.0) for kind, value in pairs)
    fall = Waterfall(name="w", title="W", caption="", unit="s", steps=steps)
    for before, filled in block_bars(fall, 24):
        assert before >= 0 and filled >= 1 and before + filled <= 24
    assert draw_waterfall(fall) is not None


# -- terminal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 160, 300])
def test_no_number_is_cut_at_any_width(make: Callable[[], Document], width: int) -> None:
    document = make()
    text = shown(document, width)
    assert "\u2026" not in text
    assert max(map(len, text.splitlines())) <= width
    tables = [b for s in document.sections for b in s.blocks if isinstance(b, Table) and not b.folded]
    wanted = {word for table in tables for word in words_of_values(table)}
    assert wanted <= set(text.split()), wanted - set(text.split())


@pytest.mark.parametrize("width", [40, 80, 160, 300])
def test_every_verdict_stands_in_words(width: int) -> None:
    text = " ".join(shown(compare_sample(), width).split())
    for verdict in VERDICTS:
        assert verdict in text or (width == 40 and verdict == "no difference shown")
    assert "reference" in text


def test_three_models_stand_beside_each_other_at_80_columns_and_on_one_line_where_there_is_room() -> None:
    heads = [line for line in shown(compare_sample(), 80).splitlines() if MOE in line and ACTIVE_TWIN in line]
    assert len(heads) == 1  # the head of the table
    line = next(line for line in shown(compare_sample(), 200).splitlines() if line.startswith("Output tokens"))
    wanted = "$0.693 [$0.672 - $0.714] $0.418 0.603x [0.572 - 0.634] better $0.22 0.318x [0.298 - 0.338] better"
    assert " ".join(line.split()[2:]).replace("\u2013", "-") == wanted


def test_a_narrow_terminal_has_the_models_under_the_metric() -> None:
    lines = shown(compare_sample(), 40).splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip() == "TTFT p50")
    assert [line.split()[0] for line in lines[at + 1 : at + 5 : 2]] == [TOTAL_TWIN, MOE]


def test_folded_tables_are_on_the_terminal_only_when_asked_for() -> None:
    assert "Every metric" not in shown(compare_sample(), 80)
    assert "Every metric" in shown(compare_sample(), 80, folded=True)


def test_a_report_without_comparisons_prints_no_sections() -> None:
    out = io.StringIO()
    print_document(sample_document(), Console(file=out, width=80))
    assert shown(sample_document(), 80).split() == out.getvalue().split()


def test_the_waterfall_marks_what_cannot_be_told() -> None:
    lines = [line for line in shown(compare_sample(), 120).splitlines() if "\u2591" in line]
    assert len(lines) == 1 and "imbalance" in lines[0] and "-400 us" in lines[0]


# -- Markdown ----------------------------------------------------------------------------------------------------------


def test_markdown_has_whole_tables_and_folds_the_long_one() -> None:
    text = render_markdown(compare_sample())
    blocks = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M)]
    assert len(blocks) == 3
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1
    assert "|Output tokens|$0.693<br><sub>\\[$0.672 \u2013 $0.714\\]</sub>|$0.418<br>**0.603x better**" in text
    before, _, after = text.partition("<details>")
    assert "## The answer" in before and "Every metric" in after
    assert text.count("<details>") == text.count("</details>") == 1
    for verdict in VERDICTS:
        assert verdict in text


def test_markdown_bars_keep_their_place() -> None:
    row = next(line for line in render_markdown(compare_sample()).splitlines() if line.startswith("|dispatch"))
    assert row.endswith("|`" + "\u00a0" * 7 + "\u2593\u2593`|")


@pytest.mark.parametrize("render", [render_markdown, render_html])
def test_text_of_a_record_stays_text(render: Callable[[Document], str]) -> None:
    text = render(compare_awkward())
    assert not re.search(r"(?<!\\)<(script>alert|img src)", text)


# -- HTML --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_metric_of_the_page_has_its_definition(make: Callable[[], Document]) -> None:
    text = render_html(make())
    links = set(re.findall(r'href="#(card-[^"]+)"', text))
    assert links and links <= set(re.findall(r'id="(card-[^"]+)"', text))


def test_the_page_starts_with_the_verdict_and_its_table() -> None:
    text = render_html(compare_sample())
    answer = text.index("of the saving between the two dense twins")
    assert text.index("<h1") < answer < text.index('class="metrics ratios"')
    assert "Nothing was measured" not in text and 'id="summary"' not in text and 'class="answers"' not in text
    assert re.search(r'class="m0 reference"[^>]*><i class="dot"></i>dense-total <b class="chip">reference</b>', text)
    for verdict in VERDICTS:
        assert f"<em>{verdict}</em>" in text
    assert text.count('<details class="fold">') == 1
    assert render_html(compare_sample()) == text


def test_the_long_verdict_is_set_smaller_than_a_short_one() -> None:
    assert '<h1 class="long">' in render_html(compare_sample())
    assert "<h1>Same run.</h1>" in render_html(replace(compare_sample(), headline="Same run."))


def test_the_drawn_waterfall_has_whiskers_and_says_itself() -> None:
    text = str(draw_waterfall(ladder()))
    assert text.count('class="whisker"') == text.count("<title>") == 9
    assert text.count(" untold") == 1
    assert text.count('class="step more') == 3
    assert "<desc>" in text and "imbalance: -400 us" in text
    assert draw_waterfall(Waterfall(name="n", title="t", caption="", unit="s", steps=())) is None


def sweep_chart(**changes: object) -> Chart:
    series = Series(name=MOE, x=(1.0, 10.0, 100.0), y=(1.0, 0.0, 0.01), labels=("one", "two", "three"))
    chart = Chart(
        name="c", title="C", caption="", x_label="x", x_unit="", y_label="y", y_unit="", series=(series,),
        log_x=True, log_y=True,
    )  # fmt: skip
    return replace(chart, **changes)  # type: ignore[arg-type]


def test_a_logarithmic_y_axis_leaves_out_zero_and_says_so() -> None:
    drawing = draw_chart(sweep_chart(), [MOE])
    assert drawing.legend[0].note == "1 not drawn (0 or below on a logarithmic axis)"
    text = str(drawing.picture)
    assert ">one<" in text and ">three<" in text and ">two<" not in text
    assert text.count('class="mark m0"') == 1
    assert ">two<" in str(draw_chart(sweep_chart(log_y=False), [MOE]).picture)


@given(st.lists(st.tuples(st.floats(0, 560), st.floats(20, 250)), max_size=12))
def test_names_beside_points_never_leave_the_picture(points: list[tuple[float, float]]) -> None:
    text = str(place_labels([("m0", "label", point) for point in points], 560.0))
    for x, kind in re.findall(r'<text x="([\d.]+)" y="[\d.-]+" class="point-label m0( e)?"', text):
        assert (float(x) >= 40) if kind else (float(x) <= 520.1)


# -- a real browser ----------------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_the_window_and_unfolds_a_metric(browser: str, tmp_path: Path, width: int) -> None:
    page = tmp_path / "probed.html"
    page.write_text(test_browser.probed(render_html(compare_sample()), width), encoding="utf-8")
    dom, console = test_browser.run(browser, tmp_path / "p", page, "--window-size=1400,3000", "--dump-dom")
    assert console == ""
    assert int(test_browser.seen(dom, "excess")) <= 0
    unfolded = test_browser.seen(dom, "unfolded")
    assert f"{MOE} to {TOTAL_TWIN}: 0.603x, better" in unfolded
    assert f"{TOTAL_TWIN}: $0.693" in unfolded
