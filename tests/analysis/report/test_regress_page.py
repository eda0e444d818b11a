"""The page of a regression check: the sentence, the table of gates, and each form that people read."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len

from moeprof.analysis.metrics.labels import figure_label, from_to
from moeprof.analysis.regress.result import GateResult, Overall, Regression
from moeprof.analysis.report.document import Table
from moeprof.analysis.report.regress import changed_figures, check_of, headline, limit_text, regress_document
from moeprof.analysis.report.result import Check
from moeprof.analysis.stats.estimate import Ratio
from moeprof.core import units
from moeprof.render.ci.comment import bar, guarded, marker, render, spark
from moeprof.render.html.page import render_html
from moeprof.render.markdown import render_markdown
from tests.helpers.documents import facts_in
from tests.helpers.planted_pages import PAGES, document, terminal
from tests.helpers.planted_regression import GOLDEN, gate, planted, told, undecided

PARSER = MarkdownIt("commonmark").enable("table")
ALLOWED = re.compile(
    r"</?(details|sub|b|span|summary)>|<br>|<details><summary><b>[^<>]*</b></summary>|<!-- moeprof-regress: [^<>]* -->"
)


def check(verdict: Overall, *found: GateResult, **changes: object) -> Regression:
    """A check of one model with these gates."""
    return replace(
        undecided(allow_undecided=False),
        verdict=verdict,
        gates=tuple(replace(one, model="moe") for one in found),
        **changes,  # type: ignore[arg-type]
    )


def decode(value: float, low: float, high: float, verdict: str, **more: str) -> GateResult:
    ratio = told(value, low, high, verdict, "planted")
    return gate(
        "step_mean_s{phase=decode}:1.5%", "timed", ratio=ratio, amount=0.015, n="6 pairs", phase="decode", **more
    )


def same(name: str) -> GateResult:
    return gate(f"{name}:0%", "exact", ratio=told(1.0, None, None, "no difference shown", "equal"), n="exact")


# -- the sentence ------------------------------------------------------------------------------------------------------


def test_a_worse_step_is_said_with_ratio_interval_and_samples() -> None:
    found = check("worse", decode(1.112, 1.098, 1.127, "worse"), same("total_params"), same("weights_bytes"))
    assert headline(found) == "WORSE: decode step 1.112x [1.098, 1.127] (6 pairs); 2 gates show no difference."


def test_no_regression_says_how_finely_it_was_looked_at() -> None:
    found = check("no difference shown", decode(1.002, 0.995, 1.009, "no difference shown"), same("total_params"))
    assert headline(found) == "No regression: 2 gates hold; decode step 1.002x [0.995, 1.009] (6 pairs)."
    counted = check("no difference shown", same("total_params"))
    assert headline(counted) == "No regression: 1 gate holds; none of them is timed."


def test_cannot_tell_says_what_would_decide() -> None:
    open_gate = decode(0.98, 0.91, 1.06, "cannot tell", decide="about 14 launch pairs (6 were measured)")
    text = headline(check("cannot tell", open_gate))
    wanted = "decode step 0.980x [0.910, 1.060] needs about 14 launch pairs (6 were measured)."
    assert text == f"CANNOT TELL: {wanted}"
    assert headline(check("cannot tell", open_gate, allow_undecided=True)) == f"CANNOT TELL, which is allowed: {wanted}"


def test_a_check_without_gates_claims_nothing() -> None:
    assert headline(check("no difference shown")) == "Nothing was judged: no gate applies to these runs."


def test_the_sentence_names_three_gates_and_counts_the_rest() -> None:
    text = headline(planted())
    assert "; 2 more; 2 gates are undecided, 2 are better, 4 show no difference." in text
    assert "dead experts, decode 0 \u2192 1 expert (2,048 tokens)" in text, "a count has no ratio to 0"
    assert text.count("moe-demo:") == 1, "a model is named once for the gates that follow each other"


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "amount", "better", "text"),
    [
        ("step_mean_s", "ratio", 0.03, "lower", "+3 %"),
        ("output_tokens_per_s", "ratio", 0.03, "higher", "-3 %"),
        ("total_params", "ratio", 0.0, "neither", "no change"),
        ("dead_experts", "absolute", 0.0, "lower", "no rise"),
        ("router_load_max_over_mean", "absolute", 0.2, "lower", "+0.2"),
        ("itl_p99_s", "at_most", 0.05, "lower", "at most 50 ms"),
    ],
)
def test_limits_are_said_in_words(name: str, kind: str, amount: float, better: str, text: str) -> None:
    ratio = told(1.0, None, None, "no difference shown", "equal")
    made = gate(f"{name}:1", "exact", kind, amount=amount, better=better, ratio=ratio, n="exact")  # type: ignore[arg-type]
    assert limit_text(made) == text


def test_figures_have_names_that_people_use() -> None:
    assert figure_label(("step_mean_s", (("phase", "decode"),))) == "decode step"
    assert figure_label(("usd_per_1m_output_tokens", ())) == "price of 1M output tokens"
    assert figure_label(("dead_experts", (("phase", "decode"),))) == "dead experts, decode"
    assert figure_label(("kv_bytes_per_token", ())) == "KV bytes per token"
    closed = ("usd_per_1m_output_tokens", (("traffic", "closed"),))
    assert figure_label(closed) == "price of 1M output tokens, closed loop"
    assert figure_label(closed, hide_traffic="closed") == "price of 1M output tokens"


def test_a_traffic_that_all_gates_share_is_not_said() -> None:
    def of(traffic: str) -> GateResult:
        return replace(
            decode(1.1, 1.09, 1.11, "worse"), key=("step_mean_s", (("phase", "decode"), ("traffic", traffic)))
        )

    assert headline(check("worse", of("closed"))).startswith("WORSE: decode step 1.100x")
    both = headline(check("worse", of("closed"), of("offline")))
    assert "decode step, closed loop 1.100x" in both and "decode step, offline 1.100x" in both


def test_what_would_decide_several_gates_is_said_once() -> None:
    open_gate = decode(0.98, 0.91, 1.06, "cannot tell", decide="about 14 launch pairs")
    text = headline(check("cannot tell", open_gate, replace(open_gate, key=("step_mean_s", (("phase", "prefill"),)))))
    assert text == "CANNOT TELL: decode step 0.980x and prefill step 0.980x need about 14 launch pairs."


def test_undecided_gates_with_the_same_cure_are_counted_and_the_largest_number_is_said() -> None:
    few = "5 launches a side (1 was measured): moeprof run WORKLOAD --launches 6"
    timed = [decode(0.9, 0.9, 0.9, "cannot tell", decide=few) for _ in range(4)]
    near = replace(decode(1.01, 0.99, 1.03, "cannot tell"), decide="no affordable number of launches (planted)")
    wanted = f"4 timed gates need {few}; decode step 1.010x is too close to its limit; 1 gate shows no difference."
    assert headline(check("cannot tell", *timed, near, same("total_params"))) == f"CANNOT TELL: {wanted}"
    pairs = [replace(near, decide=f"about {num} launch pairs (6 were measured)") for num in (9, 14, 7, 8)]
    assert headline(check("cannot tell", *pairs)) == (
        "CANNOT TELL: 4 timed gates need about 14 launch pairs (6 were measured)."
    )
    other = replace(near, decide="about 20 launch pairs (5 were measured)")
    assert headline(check("cannot tell", *pairs, other)) == "CANNOT TELL: 5 timed gates need about 20 launch pairs."


def test_of_many_cures_three_are_said() -> None:
    why = [Ratio(value=None, verdict="cannot tell", reason=f"reason {i}") for i in range(5)]
    text = headline(check("cannot tell", *(gate("weights_bytes:0%", "exact", ratio=one, n="") for one in why)))
    assert text == "CANNOT TELL: weights: reason 0; weights: reason 1; weights: reason 2; 2 more."


def test_a_shared_unit_stands_once() -> None:
    assert from_to(["24.1 ms", "26.8 ms"]) == "24.1 \u2192 26.8 ms"
    assert from_to(["980 us", "1.2 ms"]) == "980 us \u2192 1.2 ms"
    assert from_to(["$0.5", "$0.6"]) == "$0.5 \u2192 $0.6"
    assert from_to(["0 experts", "1 expert"]) == "0 \u2192 1 expert"


def test_what_changed_stands_open_and_what_holds_is_folded() -> None:
    first = regress_document(planted()).sections[0]
    tables = [block for block in first.blocks if isinstance(block, Table) and block.head == "gate"]
    assert [(len(table.rows), table.folded) for table in tables] == [(9, False), (4, True)]
    assert {row.cells[2].ratio.verdict for row in tables[1].rows} == {"no difference shown"}
    opened = regress_document(planted(), all_metrics=True)
    every = [b for s in opened.sections for b in s.blocks if isinstance(b, Table) and b.compares]
    assert every and not any(table.folded for table in every)


def test_gates_stand_in_the_order_of_the_check() -> None:
    first = regress_document(planted()).sections[0].blocks[0]
    assert isinstance(first, Table)
    assert [row.name for row in first.rows] == [g.label for g in planted().gates if g.verdict != "no difference shown"]


def test_figures_without_a_gate_that_changed_are_shown() -> None:
    tables = [b for b in regress_document(planted()).sections[0].blocks if isinstance(b, Table) and b.head == "metric"]
    assert [[row.name for row in table.rows] for table in tables] == [["kv_bytes_per_token"]]


def test_of_many_figures_that_changed_the_first_screen_comes_first() -> None:
    whole = planted()
    one = whole.changes[-2]
    many = [replace(one, key=(f"step_p{p}_s", ())) for p in range(50, 60)]
    last = replace(one, key=("ttft_p50_s", ()))
    (table,) = changed_figures(replace(whole, changes=(*many, last)))
    assert table.title == "Also changed, without a gate: 8 of 11 figures"
    assert table.rows[0].name == "ttft_p50_s"


def test_differences_noise_and_launches_are_told() -> None:
    sections = {section.name: section.blocks for section in document().sections}
    (facts,) = (block for block in sections["differences"] if isinstance(block, Table))
    assert list(facts_in(facts).items())[1] == (
        "revision of moe-demo",
        "1a2b3c4 in the reference, 5d6e7f8 in the new run (allowed)",
    )
    assert document().notes[-1] == "The reference kernel stayed within 2 % of itself."
    (launches,) = sections["launches"]
    assert isinstance(launches, Table)
    assert next(iter(facts_in(launches).items())) == (
        "moe-demo: decode step",
        "ratio of each pair: 1.090, 1.110, 1.100, 1.080, 1.120, 1.100",
    )


def test_the_machine_stands_first_only_where_a_timed_gate_was_tested() -> None:
    whole = planted()
    sentence = "The reference kernel stayed within 2 % of itself."
    assert whole.noise is not None and sentence in regress_document(whole).notes
    counted = regress_document(replace(whole, gates=tuple(one for one in whole.gates if one.kind != "timed")))
    assert sentence not in counted.notes
    (facts,) = (b for s in counted.sections if s.name == "differences" for b in s.blocks)
    assert isinstance(facts, Table) and list(facts_in(facts).items())[-1] == ("the machine", sentence)


def test_launch_pairs_are_not_called_launches() -> None:
    assert regress_document(planted()).subtitle.endswith("lock-step pairs in one process, 6 launch pairs.")
    stored = replace(planted(), mode="stored", launches={"reference": 1, "other": 6})
    assert regress_document(stored).subtitle.endswith("against a stored baseline, 1 or 6 launches.")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1, "experts", "1 expert"), (-1, "experts", "-1 expert"), (1, "requests", "1 request"),
     (1, "s", "1 s"), (1, "bits / byte", "1 bits / byte")],
)  # fmt: skip
def test_of_one_the_unit_stands_in_the_singular(value: float, unit: str, text: str) -> None:
    assert units.display(value, unit) == text
    assert units.interval(1, 3, "experts") == "1 \u2013 3 experts"


# -- golden files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_the_golden_file_has_it(name: str) -> None:
    hint = "python -m tests.helpers.planted_pages writes it again; read the difference first"
    assert PAGES[name]() == (GOLDEN / name).read_text(encoding="utf-8"), hint


# -- terminal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(width: int) -> None:
    text = terminal(document(), width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    for number in ("1.100x", "[1.070 \u2013 1.130]", "62.5 ms", "cannot tell"):
        assert number in text


def test_a_terminal_shows_what_holds_only_when_asked() -> None:
    assert "routing agreement of two runs" not in terminal(document())
    assert "routing agreement of two runs" in terminal(document(), folded=True)


# -- the comment -------------------------------------------------------------------------------------------------------


def test_a_bot_finds_its_comment_by_the_hidden_first_line() -> None:
    assert render(check_of(planted())).splitlines()[0] == "<!-- moeprof-regress: ci-smoke 1 x NVIDIA H200 -->"
    assert marker("a --> b", "c----d") == "<!-- moeprof-regress: a - - b c- - - -d -->"


def test_the_comment_parses_as_tables_with_equal_rows_and_balanced_folds() -> None:
    _check_markdown(render(Check(regression=planted(), document=document())))


def test_markdown_and_html_pages_hold_every_gate() -> None:
    for text in (render_markdown(document()), render_html(document())):
        for row in ("decode step", "prefill step", "router load in decode", "routing agreement of two runs"):
            assert row in text
    html = render_html(document())
    assert 'id="s-trend"' in html and html.count('id="fig-trend-') == 3
    assert html.index(">What changed</h2>") < html.index('id="s-trend"') < html.index('id="s-all"')
    assert "<m&'e'>" not in html


def test_a_long_comment_is_cut_between_rows_and_says_so() -> None:
    whole = planted()
    many = replace(whole, gates=tuple(replace(whole.gates[1], model=f"model-{i}") for i in range(3000)))
    text = render(check_of(many))
    assert len(text.encode()) <= 65_000
    assert "left out for length" in text and "Cut for length: what changed" in text
    _check_markdown(text)
    short = render(check_of(whole), limit_bytes=4000)
    assert len(short.encode()) <= 4000
    _check_markdown(short)


@settings(max_examples=40, deadline=None)
@given(st.text(min_size=1, max_size=40), st.sampled_from(["", "|", "`", "</details>", "<!-- x -->", "&lt;", "@team"]))
def test_names_make_no_markup(name: str, tail: str) -> None:
    odd = name + tail
    whole = planted()
    gates = tuple(replace(one, model=odd, n=odd, decide=odd) for one in whole.gates)
    changed = replace(whole, gates=gates, workload=odd, reference=odd, notes=(odd,), changes=())
    _check_markdown(render(check_of(changed)))


def test_people_are_not_called_and_dollars_are_no_formula() -> None:
    assert guarded("by @team and a@b.c") == "by @&#8203;team and a@b.c"
    assert guarded("from $1 to $2 & `a & b`") == "from <span>$</span>1 to <span>$</span>2 &amp; `a & b`"


def test_bars_and_lines_of_blocks() -> None:
    assert bar(0.5, 1.0, 4) == "\u2588\u2588\u2591\u2591"
    assert bar(0.001, 1.0, 4)[0] == "\u2588", "what is not zero is seen"
    assert bar(0.0, 0.0, 2) == "\u2591\u2591"
    assert spark([1.0, 2.0, 1.5]) == "\u2581\u2588\u2585"
    assert spark([2.0, 2.0]) == "\u2584\u2584"


def test_a_verdict_without_a_figure_has_an_empty_change() -> None:
    nothing = gate("energy_j_per_output_token:1%", "timed", n="", ratio=Ratio(value=None, verdict="cannot tell"))
    text = terminal(regress_document(check("cannot tell", nothing)))
    assert "energy / output token" in text and "None" not in text


CELLS = ("td_open", "th_open")


def _check_markdown(text: str) -> None:
    """Tables are tables, folds are balanced, and no HTML stands in it but ours."""
    tokens = PARSER.parse(text)
    flat = [child for token in tokens for child in (token, *(token.children or ()))]
    html = [token.content.strip() for token in flat if token.type in ("html_block", "html_inline")]
    for piece in html:
        for line in piece.splitlines():
            assert ALLOWED.fullmatch(line.strip()), line
    joined = "\n".join(html)
    assert joined.count("<details>") == joined.count("</details>")
    tables = [i for i, token in enumerate(tokens) if token.type == "table_open"]
    assert tables
    pairs = [(before, token.content) for before, token in pairwise(tokens) if token.type == "inline"]
    outside = [text for before, text in pairs if before.type not in CELLS]
    assert not [line for line in outside if line.startswith("|")], "every row belongs to a table"
    assert not [line for _, line in pairs if "****" in line]
