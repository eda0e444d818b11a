"""The section that says where a step goes: in every kind of report, and in a real run's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moeprof.analysis.metrics.summary import summarise
from moeprof.analysis.report.document import Document, FactTable, Paragraph, Section, StackedBars
from moeprof.analysis.report.run import build_document
from moeprof.core.pricing import resolve_pricing
from moeprof.core.record.layout import open_record
from moeprof.core.workload.workload import Prices
from moeprof.render.html.charts.bars import draw_bars
from moeprof.render.html.page import render_html
from moeprof.render.markdown import render_markdown
from tests.helpers.gap_points import PEAKS, make_launch, make_point, make_profiled
from tests.helpers.records import make_facts, make_pass, make_steps, write_record
from tests.helpers.tiny_run import Ran


def document_of(folder: Path, launch: dict[str, Any]) -> Document:
    facts = make_facts()
    write_record(folder, {"moe": (facts, [[make_pass(steps=make_steps(20))]])}, launch_info=launch)
    return build_document(summarise(open_record(folder), resolve_pricing(Prices(usd_per_device_hour=1.0), "cpu")))


def section_of(document: Document) -> Section:
    (section,) = (section for section in document.sections if section.name == "gap")
    return section


def blocks(section: Section, kind: type[Any]) -> list[Any]:
    return [block for block in section.blocks if isinstance(block, kind)]


@pytest.fixture
def on_a_device(tmp_path: Path) -> Document:
    points = [make_point(wall_ms=4, device_ms=3), make_point(wall_ms=4, device_ms=3, phase="prefill", tokens=512)]
    return document_of(tmp_path / "run", make_launch(*points, clock="kernels"))


def test_a_run_says_in_a_sentence_what_its_gap_consists_of(on_a_device: Document) -> None:
    first = blocks(section_of(on_a_device), Paragraph)[0]
    assert first.text.startswith(
        "At batch 4 a decode step of moe takes 2.2x its roofline (1.84 ms). Above it: host 0.54x"
    )


def test_the_sentence_stands_on_the_first_screen_where_there_is_a_roofline(on_a_device: Document) -> None:
    assert sum("its roofline" in note for note in on_a_device.notes) == 1


def test_bars_are_in_multiples_of_the_roofline(on_a_device: Document) -> None:
    (bars,) = blocks(section_of(on_a_device), StackedBars)
    assert bars.bars == ("decode, batch 4", "prefill, 512 tokens")
    decode = [values[0] for _, values in bars.parts if values[0] is not None]
    assert sum(decode) == pytest.approx(4 / 1.844)


def test_tables_set_each_part_against_its_own_floor(on_a_device: Document) -> None:
    sizes, decode, _ = (dict(table.rows) for table in blocks(section_of(on_a_device), FactTable))
    assert (
        decode["attention projections"] == "1 ms, 25 % of the step; least 800 us, above it 200 us (0.11x the roofline)"
    )
    assert decode["host"].startswith("1 ms, 25 % of the step; least 0 s")
    timed = "4 ms (median of 3), on the device 3 ms, roofline 1.84 ms, gap 2.16 ms; profiled 5 ms with 30 launches"
    assert sizes["decode, batch 4"].startswith(timed)


def test_where_weights_fit_the_cache_bars_are_shares(tmp_path: Path) -> None:
    launch = make_launch(make_point(wall_ms=4), peaks=PEAKS | {"cache_bytes": 10**9})
    document = document_of(tmp_path / "run", launch)
    assert not any("roofline" in note for note in document.notes)
    section = section_of(document)
    (bars,) = blocks(section, StackedBars)
    assert sum(values[0] for _, values in bars.parts if values[0] is not None) == pytest.approx(1)
    assert "fit the last-level cache" in blocks(section, Paragraph)[0].text
    (sizes,) = blocks(section, FactTable)  # without floors, bars say all there is of the parts
    assert dict(sizes.rows)["decode, batch 4"].startswith("4 ms (median of 3); profiled 5 ms")


def test_a_profiled_step_much_longer_than_the_plain_one_is_a_doubt(tmp_path: Path) -> None:
    launch = make_launch(make_point(wall_ms=4, profiled_P=(make_profiled(wall_ms=8),)))
    table = dict(blocks(section_of(document_of(tmp_path / "run", launch)), FactTable)[0].rows)
    told = "profiled 8 ms with 30 operations, 2x the plain one: its parts may be too long, and host too short"
    assert table["decode, batch 4"].endswith(told)


def test_steps_that_could_not_be_itemised_say_why(tmp_path: Path) -> None:
    launch = make_launch(make_point(device_ms=3, profiled_P=(), reason="the profiler saw no kernels"), clock="kernels")
    table = dict(blocks(section_of(document_of(tmp_path / "run", launch)), FactTable)[0].rows)
    assert table["decode, batch 4"].endswith("; not itemised: the profiler saw no kernels")


def test_compiled_layers_are_said_to_be_itemised_uncompiled(tmp_path: Path) -> None:
    launch = make_launch(make_point(), compiled="layers")
    told = [block.text for block in blocks(section_of(document_of(tmp_path / "run", launch)), Paragraph)]
    assert any("were not compiled" in text for text in told)


def test_a_run_without_itemised_steps_has_no_such_section(tmp_path: Path) -> None:
    document = document_of(tmp_path / "run", {"engine": {}})
    assert "gap" not in {section.name for section in document.sections}


def test_pages_and_markdown_show_the_section(on_a_device: Document) -> None:
    for text in (render_html(on_a_device), render_markdown(on_a_device)):
        assert "Where a step goes" in text
        assert "attention projections" in text


def test_a_real_run_itemises_the_steps_of_all_its_models(tiny_run: tuple[Path, Ran]) -> None:
    folder, ran = tiny_run
    assert ran.code == 0, ran.stderr
    for model in ("moe", "dense"):
        gap = json.loads((folder / model / "launch-0" / "launch.json").read_text())["gap"]
        assert gap["points"][0]["phase"] == "decode"  # a busy machine may have no time for the others
        assert all(point["profiled_P"] for point in gap["points"])
    summary = json.loads((folder / "summary.json").read_text())
    for model in ("moe", "dense"):
        values = [value for value in summary["models"][model]["metrics"] if value["labels"].get("batch") == "1"]
        parts = sum(value["value"] for value in values if value["name"] == "gap_part_s")
        (whole,) = (value["value"] for value in values if value["name"] == "gap_step_s")
        assert parts == pytest.approx(whole, rel=1e-9)
    assert "Where a step goes" in (folder / "report.md").read_text()


def test_a_part_of_a_step_has_one_colour_in_the_figures_of_all_models() -> None:
    one = StackedBars(
        name="a", title="a", caption="", bars=("b",), parts=(("x", (1.0,)), ("y", (1.0,))), unit="ratio", colours=(0, 5)
    )
    drawn = draw_bars(one)
    assert [row.colour for row in drawn.rows] == ["p0", "p5"]
    assert "part p5" in str(drawn.picture) and "part p1" not in str(drawn.picture)
