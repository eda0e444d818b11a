"""The HTML report as text: nothing loaded, nothing executed but our script, nothing lost, same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeprof.analysis.report.document import Chart, Document, HeatMapVariant, Section, Series
from moeprof.core.metric import MetricValue
from moeprof.core.units import axis_scale, interval, short, tick
from moeprof.render.html.charts.bars import draw_bars
from moeprof.render.html.charts.heatmap import NO_TOKENS, base36, draw_heatmap, png, short_names
from moeprof.render.html.charts.lines import colour_of, draw_chart
from moeprof.render.html.charts.points import as_steps, distinct_dots, line_path, simplify
from moeprof.render.html.charts.svg import axis_title, linear_axis, log_axis
from moeprof.render.html.page import render_html
from moeprof.render.html.tables import cell
from tests.helpers.documents import (
    DENSE,
    MARKUP,
    MOE,
    SCRIPT,
    awkward_document,
    cdf_chart,
    heat_map,
    memory_bars,
    sample_document,
)


class Page(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


DOCUMENTS = {"sample": sample_document, "awkward": awkward_document}


@cache
def html(name: str) -> str:
    return render_html(DOCUMENTS[name]())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_same_document_gives_the_same_bytes(name: str) -> None:
    assert html(name) == render_html(DOCUMENTS[name]())


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_loads_nothing(name: str) -> None:
    page = Page(html(name))
    for tag, attributes in page.elements:
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert (attributes.get("href") or "#").startswith(("#", "data:")), tag
    assert "@import" not in html(name)
    assert "url(" not in html(name)


@pytest.mark.parametrize(("name", "limit"), [("sample", 150_000), ("awkward", 250_000)])
def test_the_page_is_small(name: str, limit: int) -> None:
    assert len(html(name).encode()) < limit


@pytest.mark.parametrize("name", DOCUMENTS)
def test_only_our_script_can_run_and_its_hash_is_stated(name: str) -> None:
    page = Page(html(name))
    kinds = [attributes.get("type") for attributes in page.all("script")]
    assert kinds.count(None) == 1
    ours = page.scripts[kinds.index(None)]
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert f"'sha256-{base64.b64encode(hashlib.sha256(ours.encode()).digest()).decode()}'" in policy
    assert not any(key.startswith("on") for _, attributes in page.elements for key in attributes)


def test_hostile_names_are_text_everywhere() -> None:
    page = Page(html("awkward"))
    assert all(attributes.get("src") != "x" for attributes in page.all("img"))
    assert "alert" not in "".join(s for s, a in zip(page.scripts, page.all("script"), strict=True) if not a.get("type"))
    assert page.text.count(SCRIPT) > 10
    assert page.text.count(MARKUP) > 10


def test_data_inside_scripts_cannot_end_them() -> None:
    heat = replace(heat_map(2, 4, ("all",)), layers=(SCRIPT, MARKUP))
    document = replace(sample_document(), sections=(Section(name="r", title="R", blocks=(heat,)),))
    page = Page(render_html(document))
    data = next(s for s, a in zip(page.scripts, page.all("script"), strict=True) if a.get("type"))
    assert json.loads(data)["layers"] == [SCRIPT, MARKUP]


def test_the_answer_comes_first_and_reference_matter_last() -> None:
    ids = [a["id"] for _, a in Page(html("sample")).elements if a.get("id")]
    order = ["top", "summary", "s-latency", "s-routing", "doubts", "glossary", "workload-text", "s-machine"]
    assert [i for i in ids if i in order] == order
    assert len(ids) == len(set(ids))


def test_every_link_inside_the_page_has_its_target() -> None:
    for name in DOCUMENTS:
        page = Page(html(name))
        ids = {a["id"] for _, a in page.elements if a.get("id")}
        assert {a["href"][1:] for a in page.all("a") if a.get("href")} <= ids  # type: ignore[index]


def test_every_value_without_a_number_says_why() -> None:
    page = Page(html("sample"))
    missing = [a for tag, a in page.elements if tag in ("td", "span") and "na" in (a.get("class") or "").split()]
    assert len(missing) > 3
    assert all(a.get("title") for a in missing)


def test_a_failed_check_is_shown_with_its_reason() -> None:
    value = MetricValue(name="power_mean_w", value=31.0, valid=False, reasons=("counter and samples differ",))
    shown = cell(value, "W")
    assert (shown.text, shown.kind) == ("31 W", "doubtful")
    assert "counter and samples differ" in shown.detail


def test_an_interval_inside_the_shown_digits_is_said_and_not_drawn() -> None:
    shown = cell(MetricValue(name="x", value=1.0, n=3, ci_low=0.9999, ci_high=1.0001), "ratio")
    assert shown.interval == ""
    assert "within the digits shown" in shown.detail


def test_an_empty_document_still_makes_a_page() -> None:
    bare = Document(
        title="t", run="r", status="started", started_at="", headline="h", subtitle="", banners=(), models=(),
        first_screen=(), sections=(), doubts=(),
    )  # fmt: skip
    assert "Nothing was measured" in render_html(bare)


def test_a_series_takes_the_colour_of_its_model() -> None:
    models = ["moe", "moe-large", "dense"]
    others: list[str] = []
    assert colour_of("moe", models, others) == "m0"
    assert colour_of("moe-large fit", models, others) == "m1"
    assert colour_of("dense, prompts", models, others) == "m2"
    assert colour_of("densest", models, others) == "m3"
    assert colour_of("fit", models, others) == "m4"
    assert colour_of("densest", models, others) == "m3"


def test_a_chart_of_one_model_has_that_models_colour_throughout() -> None:
    chart = replace(cdf_chart("ttft", "TTFT", 0.02, 20), name=f"steps-{DENSE}")
    assert {entry.colour for entry in draw_chart(chart, [MOE, DENSE]).legend} == {"m1"}


def test_points_that_cannot_be_drawn_are_counted_in_the_legend() -> None:
    series = Series(name="s", x=(0.0, 1.0, math.nan, 10.0), y=(1.0, 2.0, 3.0, 4.0))
    chart = Chart(
        name="c", title="", caption="", x_label="x", x_unit="", y_label="y", y_unit="", series=(series,), log_x=True
    )
    assert "2 not drawn" in draw_chart(chart, []).legend[0].note


def test_thousands_of_samples_become_a_short_path() -> None:
    series = cdf_chart("itl", "ITL", 0.01, 20_000)
    picture = str(draw_chart(series, [MOE, DENSE]).picture)
    assert len(picture) < 12_000


POINTS = st.lists(st.tuples(st.floats(0, 500), st.floats(0, 250)), min_size=2, max_size=60).map(sorted)


@given(POINTS)
def test_thinning_a_line_moves_it_by_less_than_half_a_unit(points: list[tuple[float, float]]) -> None:
    kept = simplify(points, 0.3)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    for point in points:
        assert min(_distance(point, a, b) for a, b in pairwise(kept)) <= 0.301


def _distance(point: tuple[float, float], a: tuple[float, float], b: tuple[float, float]) -> float:
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = dx * dx + dy * dy
    share = 0.0 if length == 0 else max(0.0, min(1.0, ((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / length))
    return math.hypot(point[0] - a[0] - share * dx, point[1] - a[1] - share * dy)


def test_a_spike_between_many_points_survives() -> None:
    points = [(i / 100, 100.0) for i in range(5000)]
    points[2500] = (25.0, 3.0)
    assert "25 3" in line_path(points)


def test_a_staircase_holds_its_value_until_the_next_step() -> None:
    assert as_steps([(0, 1), (2, 5)]) == [(0, 1), (2, 1), (2, 5)]


@given(st.lists(st.tuples(st.floats(0, 500), st.floats(0, 250)), max_size=300), st.integers(1, 50))
def test_a_cloud_is_thinned_to_its_limit(points: list[tuple[float, float]], limit: int) -> None:
    kept = distinct_dots(points, limit)
    assert len(kept) <= limit
    assert set(kept) <= set(points)
    assert bool(kept) == bool(points)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=5), st.sampled_from(["s", "bytes", "USD", "ratio", "W"]))
def test_ticks_are_few_distinct_and_inside_the_axis(values: list[float], unit: str) -> None:
    axis = linear_axis(values, unit, 0.0, 100.0)
    texts = [text for _, text in axis.ticks]
    assert 2 <= len(texts) <= 12
    assert len(set(texts)) == len(texts)
    assert all(-0.01 <= axis.place(value) <= 100.01 for value, _ in axis.ticks)
    assert all(-0.01 <= axis.place(value) <= 100.01 for value in values)


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=5))
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    axis = log_axis(values, "s", 0.0, 100.0)
    assert all(-0.01 <= axis.place(value) <= 100.01 for value in values)


def test_ticks_of_a_logarithmic_axis_are_round() -> None:
    assert [text for _, text in log_axis([0.003, 0.11], "s", 0.0, 1.0).ticks] == ["5", "10", "20", "50", "100"]


def test_axes_show_the_unit_that_keeps_numbers_short() -> None:
    assert axis_scale("s", 0.2) == (1e-3, "ms")
    assert axis_scale("s", 60.0) == (1.0, "s")
    assert axis_scale("s", 1800.0) == (60.0, "min")
    assert axis_scale("bytes", 3e9) == (2.0**30, "GiB")
    assert axis_scale("ratio", 1.0) == (1.0, "")
    assert axis_scale("USD", 2e-5) == (1e-6, "millionths of USD")
    assert (tick(0.5, 0.25), tick(-0.0, 1.0), tick(12500.0, 2500.0)) == ("0.50", "0", "12,500")


def test_an_axis_names_its_unit_once() -> None:
    assert axis_title("time since the start", "s") == "time since the start, s"
    assert axis_title("distinct experts", "experts") == "distinct experts"
    assert axis_title("step time", "ms") == "step time, ms"


def test_an_interval_writes_its_unit_once_where_both_ends_share_it() -> None:
    assert interval(0.0012, 0.0014, "s") == "1.2 \u2013 1.4 ms"
    assert interval(0.9, 1.1, "s") == "900 ms \u2013 1.1 s"
    assert interval(1.0, 2.0, "USD / 1M tokens") == "$1 \u2013 $2"
    assert short(None, "USD") == "n/a"


def test_bars_add_up_and_unknown_parts_are_not_drawn() -> None:
    drawing = draw_bars(memory_bars())
    assert drawing.totals == ("23.3 MiB", "16 MiB")
    unknown = drawing.rows[-1]
    assert unknown.cells[1] == ("n/a", "")
    assert str(drawing.picture).count("<rect") == 4 + 1 + 4  # five groups and four, zeros and the unknown left out


def decode_png(uri: str) -> tuple[int, int, list[bytes]]:
    """Width, height and palette indices of our own kind of PNG."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[start:])
    return width, height, [rows[i * (width + 1) + 1 : (i + 1) * (width + 1)] for i in range(height)]


def test_the_picture_of_a_heat_map_has_one_pixel_per_expert() -> None:
    variant = HeatMapVariant(label="all", loads=((1.0, 2.0), (0.0, 0.5)), counts=((3, 6), (0, 2)))
    drawing = draw_heatmap(replace(heat_map(2, 2, ("all",)), variants=(variant,)))
    assert drawing is not None
    width, height, rows = decode_png(drawing.variants[0].image)
    assert (width, height) == (2, 2)
    assert list(rows[0]) == [16, 32]  # the mean in the middle of the scale, twice the mean at its end
    assert list(rows[1]) == [NO_TOKENS, 0]
    assert drawing.variants[0].loads != ""  # these loads do not follow from these counts, so both are written


def test_counts_are_packed_so_that_the_script_reads_them_back() -> None:
    heat = heat_map(3, 5, ("all",))
    drawing = draw_heatmap(heat)
    assert drawing is not None
    rows = drawing.variants[0].counts.split(";")
    assert tuple(tuple(int(n or "0", 36) for n in row.split(",")) for row in rows) == heat.variants[0].counts
    assert drawing.variants[0].loads == ""
    assert (base36(35), base36(36), base36(0)) == ("z", "10", "")


def test_a_layer_without_tokens_is_left_blank() -> None:
    nan = math.nan
    variant = HeatMapVariant(label="all", loads=((1.0, 1.0), (nan, nan)), counts=((4, 4), (0, 0)), null_high=(1.1, nan))
    document = replace(
        sample_document(),
        sections=(Section(name="r", title="R", blocks=(replace(heat_map(2, 2, ("all",)), variants=(variant,)),)),),
    )
    text = render_html(document)
    assert not re.search(r"\bnan\b", text.casefold())
    assert '"nulls": [1.1, null]' in text


def test_layers_are_called_by_number_where_that_tells_them_apart() -> None:
    assert short_names(["model.layers.3.mlp", "model.layers.10.mlp"]) == ["3", "10"]
    assert short_names(["layer1.moe.0", "layer1.moe.1"]) == ["layer1.moe.0", "layer1.moe.1"]


def test_a_png_says_its_size_and_colours() -> None:
    data = png([[0, 1, 0]], [(1, 2, 3, 4), (5, 6, 7, 255)])
    assert data.startswith(b"\x89PNG")
    assert b"PLTE\x01\x02\x03\x05\x06\x07" in data
    assert b"tRNS\x04\xff" in data
