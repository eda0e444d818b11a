"""A Document as Markdown and on a terminal: nothing crashes, no number is cut, text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from moeprof.analysis.report.document import Cell, Document, ModelColumn
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core.metric import MetricValue
from moeprof.core.text import one_line, printable
from moeprof.render.cells import full_text, reasons, short_text
from moeprof.render.markdown import escape, render_markdown
from moeprof.render.terminal import print_document
from tests.helpers.documents import awkward_document, make_card, make_row, measured, sample_document

DOCUMENTS = {"sample": sample_document, "awkward": awkward_document}
EVIL = "<script>alert(1)</script>[bold red]`x`|*a*_b_~c~#1\\\x1b[31m\u202e"


def shown(document: Document, width: int, **options: bool) -> str:
    out = io.StringIO()
    print_document(document, Console(file=out, width=width, highlight=False, **options))  # type: ignore[arg-type]
    return out.getvalue()


def words_of_values(document: Document) -> set[str]:
    return {
        word
        for row in document.first_screen
        for value in row.values
        for word in short_text(value, row.unit).split()
        if any(c.isdigit() for c in word)
    }


# -- terminal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize("width", [24, 40, 80, 120, 400])
def test_no_number_is_cut_at_any_width(make: Callable[[], Document], width: int) -> None:
    document = make()
    text = shown(document, width)
    assert "…" not in text.replace("[1…", "")
    assert max(map(len, text.splitlines())) <= width
    found = set(text.split())
    assert words_of_values(document) <= found, words_of_values(document) - found


def test_models_that_do_not_fit_beside_each_other_stand_in_several_tables() -> None:
    names = tuple(ModelColumn(name=f"model-{i}", status="done", subtitle="8 B total, dense") for i in range(9))
    card = make_card("output_tokens_per_s", "Output rate", "tokens/s", "higher")
    values = tuple(measured(card.name, 1000.0 + i) for i in range(9))
    document = replace(
        sample_document(), models=names, first_screen=(make_row(card, card.name, "Output rate", *values),)
    )
    text = shown(document, 40)
    for i in range(9):
        assert f"model-{i}" in text
        assert f"{1000 + i:,}" in text.split()
    assert text.count("Output") > 1
    assert shown(document, 400).count("Output") == 1


def test_wide_terminals_have_a_value_and_its_interval_on_one_line() -> None:
    assert re.search(r"23\.1 ms  \[22\.4 \u2013 23\.8\]", shown(sample_document(), 120))


def test_a_pipe_gets_no_colour_and_a_terminal_does() -> None:
    assert "\x1b" not in shown(sample_document(), 80)
    assert "\x1b[1m" in shown(sample_document(), 80, force_terminal=True)


def test_text_of_a_record_is_neither_markup_nor_a_command_to_the_terminal() -> None:
    document = replace(sample_document(), headline=EVIL, subtitle=EVIL, banners=(EVIL,), notes=(EVIL,))
    document = replace(document, models=(ModelColumn(name="a", status="failed", subtitle=EVIL, error=EVIL),) * 2)
    text = shown(document, 200)
    assert "[bold red]" in text
    assert "\x1b" not in text and "\u202e" not in text
    assert "\\x1b[31m" in text


def test_a_document_without_models_or_figures_is_still_a_screen() -> None:
    empty = replace(sample_document(), models=(), first_screen=(), doubts=(), banners=(), subtitle="", notes=())
    assert shown(empty, 40).split() == empty.headline.split()


def test_doubts_over_the_limit_are_counted() -> None:
    doubt = sample_document().doubts[0]
    many = replace(sample_document(), doubts=tuple(replace(doubt, text=f"doubt {i}") for i in range(20)))
    text = shown(many, 80)
    assert "doubt 7" in text and "doubt 8" not in text
    assert "and 12 more in the report" in text


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.integers(20, 130))
def test_any_text_at_any_width_is_printed(text: str, width: int) -> None:
    document = replace(sample_document(), headline=text, banners=(text,), notes=(text,))
    document = replace(document, models=(ModelColumn(name=text, status="done", subtitle=text),) * 2)
    assert "\x1b" not in shown(document, width)


# -- cells -------------------------------------------------------------------------------------------------------------

TTFT = make_card("ttft_p50_s", "TTFT", "s")


def test_a_cell_says_value_interval_null_and_doubt() -> None:
    value = MetricValue(
        name=TTFT.name, value=0.1, ci_low=0.09, ci_high=0.11, null={"uniform": 0.05}, valid=False, reasons=("late",)
    )
    assert full_text(value, TTFT.unit) == "100 ms [90 \u2013 110] (chance: uniform 50 ms) (doubtful: late)"
    assert short_text(value, TTFT.unit) == "100 ms ?"


def test_what_was_not_measured_is_n_a_with_its_reason_and_what_does_not_exist_is_a_dash() -> None:
    missing = MetricValue(name=TTFT.name, value=None, reasons=("too few requests",))
    assert full_text(missing, TTFT.unit) == "n/a (too few requests)"
    assert short_text(missing, TTFT.unit) == "n/a"
    assert full_text(None, TTFT.unit) == short_text(None, TTFT.unit) == "-"


def test_a_reason_is_said_once_for_all_rows_that_have_it() -> None:
    missing = MetricValue(name=TTFT.name, value=None, reasons=("too few requests",))
    rows = tuple(make_row(TTFT, TTFT.name, label, missing, missing) for label in ("TTFT p90", "TTFT p99"))
    assert reasons(rows, ("moe", "dense")) == ("TTFT p90, TTFT p99: n/a (too few requests)",)


def test_values_of_a_row_that_miss_for_different_reasons_are_told_apart_by_model() -> None:
    fits = [MetricValue(name=TTFT.name, value=None, reasons=(f"{size} MiB fit the cache",)) for size in (8, 16)]
    assert reasons((make_row(TTFT, TTFT.name, "MBU", *fits),), ("moe", "dense")) == (
        "MBU of moe: n/a (8 MiB fit the cache)",
        "MBU of dense: n/a (16 MiB fit the cache)",
    )


def test_a_figure_without_a_better_side_needs_no_footnote_when_its_ratio_has_an_interval() -> None:
    value = MetricValue(name=TTFT.name, value=0.1)
    told, bare = (
        Cell(value=value, ratio=Ratio(value=2.0, low=low, high=high, reason=why))
        for low, high, why in ((1.9, 2.1, "speaks for this launch"), (None, None, "one round"))
    )
    row = make_row(TTFT, TTFT.name, "busy", value, value)
    assert reasons((replace(row, cells=(told, told)),), ("a", "b")) == ()
    assert reasons((replace(row, cells=(told, bare)),), ("a", "b")) == ("busy: one round",)


def test_zero_is_a_value() -> None:
    assert short_text(MetricValue(name=TTFT.name, value=0.0), TTFT.unit) == "0 s"


# -- markdown ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", DOCUMENTS.values(), ids=DOCUMENTS)
def test_every_row_of_a_markdown_table_has_as_many_cells_as_its_head(make: Callable[[], Document]) -> None:
    lines = render_markdown(make()).splitlines()
    heads = [i for i, line in enumerate(lines) if re.fullmatch(r"\|(:?-+:?\|)+", line)]
    assert heads
    for i in heads:
        cells = lines[i].count("|")
        for line in lines[i - 1 :]:
            if not line.startswith("|"):
                break
            assert len(re.findall(r"(?<!\\)\|", line)) == cells, line


def test_markdown_folds_every_section_and_closes_what_it_opens() -> None:
    text = render_markdown(sample_document())
    assert text.startswith("# ")
    assert text.count("<details>") == text.count("</details>") > 0
    assert "## Reasons to doubt this" in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_markdown_shows_the_values_of_the_first_screen() -> None:
    text = render_markdown(sample_document())
    assert "$0.418" in text and "23.1 ms" in text


@given(st.text(max_size=40))
def test_escaped_text_has_no_markup_left_and_says_the_same(text: str) -> None:
    escaped = escape(text)
    assert "\n" not in escaped
    assert not re.search(r"(?<!\\)[`*_\[\]<>|#~]", re.sub(r"\\\\", "", escaped))
    assert re.sub(r"\\([\\`*_\[\]<>|#~])", r"\1", escaped) == printable(" ".join(text.split())) or "\\" in printable(
        " ".join(text.split())
    )


def test_untrusted_text_is_text_in_markdown() -> None:
    evil = replace(
        sample_document(), title=EVIL, headline=EVIL, banners=(EVIL,), run=EVIL, workload_text=EVIL, started_at=EVIL
    )
    text = render_markdown(evil)
    assert "<script>" not in text and "\x1b" not in text
    assert "\\<script\\>" in text


# -- plain text --------------------------------------------------------------------------------------------------------


def test_printable_text_is_left_alone_and_the_rest_is_spelt_out() -> None:
    assert printable("a … é 漢 🙂\u00a0x") == "a … é 漢 🙂\u00a0x"
    assert printable("a\x1b[1m\x07\u202eb\x00") == "a\\x1b[1m\\x07\\u202eb\\x00"
    assert printable("a\nb") == "a\nb"
    assert one_line("a\n  b\r\nc\x1b") == "a b c\\x1b"


@given(st.text())
def test_no_control_character_survives(text: str) -> None:
    assert all(c == "\n" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in printable(text))
    assert "\n" not in one_line(text)
